"""POST and DELETE /v1/subscriptions/{id}: what a person changes about a subscription.

A change of items takes effect at once and without proration; a change of interval, an anchor set to now and the end of
a trial end the current period and begin the next, with an invoice between the two.
An item that is taken away takes its unbilled usage with it, as in Stripe's classic billing mode.
"""

from __future__ import annotations

from typing import Any

from billing_pipeline.stripe_simulator.billing_periods import first_period_end, months_of, with_periods
from billing_pipeline.stripe_simulator.calls import Call, Write, created, updated
from billing_pipeline.stripe_simulator.due import trial_ends_soon
from billing_pipeline.stripe_simulator.endings import canceled_records, trial_notice
from billing_pipeline.stripe_simulator.journal import Record
from billing_pipeline.stripe_simulator.parameters import (
    checked,
    flag,
    group,
    integer,
    one_of,
    sequence,
    string_map,
    text,
)
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.subscription_invoices import period_invoice
from billing_pipeline.stripe_simulator.subscription_items import changed_item, new_item, price_of, refuse_mixed
from billing_pipeline.stripe_simulator.wire import Body, forbidden, invalid, no_such

_ITEM = group(optional={"id": text(), "deleted": flag, "metadata": string_map, "price": text(), "quantity": integer(0)})
_PAUSE = group({"behavior": one_of("keep_as_draft", "mark_uncollectible", "void")}, {"resumes_at": integer(0)})


def _now_or(check: Any) -> Any:
    return lambda name, raw: raw if raw == "now" else check(name, raw)


def _unset_or(check: Any) -> Any:
    return lambda name, raw: None if raw == "" else check(name, raw)


_CHANGES = {
    "billing_cycle_anchor": one_of("now", "unchanged"),
    "cancel_at": _unset_or(integer(0)),
    "cancel_at_period_end": flag,
    "items": sequence(_ITEM),
    "metadata": string_map,
    "pause_collection": _unset_or(_PAUSE),
    "proration_behavior": one_of("none"),
    "trial_end": _now_or(integer(0)),
}


def update_subscription(state: State, call: Call) -> Write:
    """POST /v1/subscriptions/{id}"""
    given = checked(call.params, optional=_CHANGES)
    before = _going_on(state, call)
    after = _with_metadata({**before, **_paused(given, call.epoch)}, given)
    if "items" in given:
        after = _with_items(state, after, given["items"], call.epoch)
    begins_anew = given.get("billing_cycle_anchor") == "now" or _months(after) != _months(before)
    if "trial_end" in given:
        after, ended = _with_trial(after, given["trial_end"], call.epoch)
        begins_anew = begins_anew or ended
    # A trial goes on until its end, whatever is changed during it.
    begins_anew = begins_anew and after["status"] != "trialing"
    if begins_anew:
        after["billing_cycle_anchor"] = call.epoch
    after = _with_cancellation(with_periods(after, call.epoch), given, call.epoch)
    return Write(tuple(_records(state, before, after, call.epoch, begins_anew)))


def cancel_subscription(state: State, call: Call) -> Write:
    """DELETE /v1/subscriptions/{id}, at once"""
    checked(call.params)
    return Write(tuple(canceled_records(state, _going_on(state, call), call.epoch)))


def _records(state: State, before: Body, after: Body, epoch: int, begins_anew: bool) -> list[Record]:
    if trial_ends_soon(after, epoch):
        return [updated("subscription", after), trial_notice(after)]
    if not begins_anew:
        return [updated("subscription", after)]
    draft = period_invoice(state, before, after, epoch, "subscription_update")
    assert draft is not None, "a subscription that goes on has an invoice"
    after["latest_invoice"] = draft["id"]
    return [created("invoice", draft), updated("subscription", after)]


def _going_on(state: State, call: Call) -> Body:
    subscription = state.find("subscription", call.target)
    if subscription is None or subscription["ended_at"] is not None:
        raise no_such("subscription", call.target)
    return with_periods(subscription, call.epoch)


def _months(subscription: Body) -> int:
    return months_of(subscription["items"]["data"][0]["price"])


def _with_metadata(subscription: Body, given: dict[str, Any]) -> Body:
    if "metadata" not in given:
        return subscription
    merged = {**subscription["metadata"], **given["metadata"]} if given["metadata"] else {}
    return {**subscription, "metadata": {key: value for key, value in merged.items() if value != ""}}


def _paused(given: dict[str, Any], epoch: int) -> Body:
    if "pause_collection" not in given:
        return {}
    pause = given["pause_collection"]
    if pause is None:
        return {"pause_collection": None}
    if pause.get("resumes_at", epoch + 1) <= epoch:
        raise invalid("resumes_at must lie in the future.", "pause_collection[resumes_at]")
    return {"pause_collection": {"behavior": pause["behavior"], "resumes_at": pause.get("resumes_at")}}


def _with_items(state: State, subscription: Body, changes: list[dict[str, Any]], epoch: int) -> Body:
    items = {item["id"]: item for item in subscription["items"]["data"]}
    made = subscription["_items_made"]
    for change in changes:
        if "id" not in change:
            if "price" not in change:
                raise invalid("Missing required param: items[price].", "items[price]", code="parameter_missing")
            made += 1
            item = new_item(state, subscription["id"], made, change, price_of(state, change), epoch)
            items[item["id"]] = item
        elif change["id"] not in items:
            raise no_such("subscription item", change["id"], param="items[id]")
        elif change.get("deleted"):
            del items[change["id"]]
        else:
            items[change["id"]] = changed_item(state, items[change["id"]], change)
    if not items:
        raise forbidden("A subscription must have at least one item; cancel it instead.", param="items")
    refuse_mixed([item["price"] for item in items.values()])
    return {**subscription, "items": {**subscription["items"], "data": list(items.values())}, "_items_made": made}


def _with_trial(subscription: Body, trial_end: int | str, epoch: int) -> tuple[Body, bool]:
    """The subscription with its trial until `trial_end`, and whether that ended one."""
    if trial_end == "now":
        if subscription["status"] != "trialing":
            return subscription, False
        return {**subscription, "status": "active", "trial_end": epoch}, True
    if int(trial_end) <= epoch:
        raise invalid("trial_end must lie in the future, or be 'now'.", "trial_end")
    begun = subscription["trial_start"] if subscription["status"] == "trialing" else epoch
    trial = {"billing_cycle_anchor": trial_end, "status": "trialing", "trial_end": trial_end, "trial_start": begun}
    return {**subscription, **trial}, False


def _with_cancellation(subscription: Body, given: dict[str, Any], epoch: int) -> Body:
    at_end = given.get("cancel_at_period_end", subscription["cancel_at_period_end"])
    if "cancel_at" in given:
        at_end, at = False, given["cancel_at"]
        if at is not None and at <= epoch:
            raise invalid("cancel_at must lie in the future.", "cancel_at")
    elif at_end:
        at = first_period_end(subscription, epoch)
    else:
        at = None if "cancel_at_period_end" in given else subscription["cancel_at"]
    canceled_at = None if at is None else subscription["canceled_at"] or epoch
    return {**subscription, "cancel_at": at, "cancel_at_period_end": at_end, "canceled_at": canceled_at}
