"""Histories: what a few customers live through on the Stripe simulator, for tests of whoever reads the events.

A history is a list of steps, so Hypothesis can shrink it; `random_steps` makes long ones from a seed.
Playing it gives every event in the order of making, each in the shape of the API version asked for, and every object
as Stripe shows it at the end.  Most steps take no time, so many events share their second.
A step that Stripe refuses at its moment (to pay what is paid) changes nothing and is counted.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

from billing_pipeline.stripe_simulator.core import SimulatedStripe
from billing_pipeline.stripe_simulator.old_shape import OLD_VERSION
from billing_pipeline.stripe_simulator.snapshots import API_VERSION
from billing_pipeline_tests.fix_simulator import KEY, SimulatorClock, make_core

Body = dict[str, Any]

BEGINNING = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
CUSTOMERS_MAX = 4
HOUR, DAY = 3_600, 86_400
PAUSES = (0, 0, 0, 0, 0, 0, 1, 60, HOUR, DAY, 3 * DAY, 8 * DAY, 31 * DAY)
"""Seconds that may pass before a step."""


@dataclass(frozen=True)
class Step:
    """After `pause` seconds, one thing that happens to one of the customers; `choice` picks among its variants."""

    pause: int
    move: str
    who: int
    choice: int


@dataclass(frozen=True)
class History:
    """What was lived: `events` oldest first, `final` by kind and id as retrieved at the end.

    `final` has the kinds customer, subscription, invoice and checkout_session; a deleted customer is there as Stripe's
    stub.  Under active_entitlements it has the list of each customer's.
    `played` and `refused` count the steps by move.
    """

    events: list[Body]
    final: dict[str, dict[str, Body]]
    core: SimulatedStripe
    clock: SimulatorClock
    played: Counter[str]
    refused: Counter[str]


def form(value: Any) -> Any:
    """Parameters as the simulator's parser would nest them: everything a string, lists by position."""
    match value:
        case dict():
            return {str(name): form(inner) for name, inner in value.items()}
        case list() | tuple():
            return {str(position): form(inner) for position, inner in enumerate(value)}
        case bool():
            return str(value).lower()
    return str(value)


@dataclass
class Player:
    """Plays steps on a simulator of its own; every move is one API call, or a few."""

    core: SimulatedStripe
    clock: SimulatorClock
    customers: dict[int, str] = field(default_factory=dict)
    prices: list[str] = field(default_factory=list)
    products: list[str] = field(default_factory=list)
    features: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    played: Counter[str] = field(default_factory=Counter)

    def call(self, method: str, path: str, **params: Any) -> Body | None:
        """The answer's body, or None when it was refused."""
        answer = self.core.handle(method, path, form(params), key=KEY)
        assert answer.status < 500, answer.body
        assert isinstance(answer.body, dict)
        if answer.status != 200:
            return None
        return answer.body

    def must(self, method: str, path: str, **params: Any) -> Body:
        body = self.call(method, path, **params)
        assert body is not None, f"{method} {path} was refused"
        return body

    def open_shop(self) -> None:
        """Two plans in advance, a yearly one, and calls by usage; each price names its plan."""
        meter = self.must(
            "POST",
            "/v1/billing/meters",
            display_name="Calls",
            event_name="calls",
            default_aggregation={"formula": "sum"},
        )["id"]
        for code, amount, recurring in (
            ("starter", 1_000, {"interval": "month"}),
            ("pro", 5_000, {"interval": "month"}),
            ("pro_yearly", 50_000, {"interval": "year"}),
            ("calls", 2, {"interval": "month", "usage_type": "metered", "meter": meter}),
        ):
            product = self.must("POST", "/v1/products", name=code, metadata={"plan_code": code})["id"]
            self.products.append(product)
            price = self.must(
                "POST",
                "/v1/prices",
                currency="usd",
                product=product,
                unit_amount=amount,
                nickname=code,
                metadata={"plan_code": code},
                recurring=recurring,
            )
            self.prices.append(price["id"])
        for lookup_key in ("api-access", "sso", "audit-log"):
            feature = self.must("POST", "/v1/entitlements/features", lookup_key=lookup_key, name=lookup_key)
            self.features.append(feature["id"])
        self.must("POST", f"/v1/products/{self.products[0]}/features", entitlement_feature=self.features[0])

    def play(self, step: Step) -> None:
        """Let time pass, then make the step's move."""
        self.clock.advance(seconds=step.pause)
        done = MOVES[step.move](self, step.who % CUSTOMERS_MAX, step.choice)
        (self.refused if done is None else self.played)[step.move] += 1

    def customer_of(self, who: int) -> str:
        if who not in self.customers:
            metadata = {"tenant_id": f"org_{who}"}
            made = self.must("POST", "/v1/customers", name=f"Org {who}", email=f"org{who}@x.test", metadata=metadata)
            self.customers[who] = made["id"]
        return self.customers[who]

    def newest(self, kind: str, who: int, **filters: Any) -> Body | None:
        """The customer's newest object of a kind."""
        data = self.must("GET", f"/v1/{kind}", customer=self.customer_of(who), limit=1, **filters)["data"]
        return data[0] if data else None


def _subscribe(player: Player, who: int, choice: int) -> Body | None:
    # A yearly plan has no usage beside it: prices of one subscription share their interval.
    plan = choice % 3
    items: list[Body] = [{"price": player.prices[plan], "quantity": 1 + choice % 4}]
    if plan != 2 and choice % 2:
        items.append({"price": player.prices[3]})
    trial = {"trial_period_days": (1, 7)[choice % 2]} if choice % 5 == 0 else {}
    ending = {"cancel_at_period_end": True} if choice % 11 == 0 else {}
    metadata = {"tenant_id": f"org_{who}"}
    customer = player.customer_of(who)
    return player.call(
        "POST", "/v1/subscriptions", customer=customer, items=items, metadata=metadata, **trial, **ending
    )


def _change(**params: Any) -> Move:
    return lambda player, who, choice: _update(player, who, params)


def _update(player: Player, who: int, params: Body) -> Body | None:
    found = player.newest("subscriptions", who)
    return None if found is None else player.call("POST", f"/v1/subscriptions/{found['id']}", **params)


def _plan(player: Player, who: int, choice: int) -> Body | None:
    found = player.newest("subscriptions", who)
    if found is None:
        return None
    change = {"id": found["items"]["data"][0]["id"], "price": player.prices[choice % 3], "quantity": 1 + choice % 5}
    return player.call("POST", f"/v1/subscriptions/{found['id']}", items=[change])


def _pause(player: Player, who: int, choice: int) -> Body | None:
    behavior = ("void", "mark_uncollectible", "keep_as_draft")[choice % 3]
    until = {"resumes_at": int(player.clock().timestamp()) + 20 * DAY} if choice % 2 else {}
    return _update(player, who, {"pause_collection": {"behavior": behavior, **until}})


def _trial(player: Player, who: int, choice: int) -> Body | None:
    until = "now" if choice % 3 == 0 else int(player.clock().timestamp()) + (choice % 9 + 1) * DAY
    return _update(player, who, {"trial_end": until})


def _cancel(player: Player, who: int, choice: int) -> Body | None:
    found = player.newest("subscriptions", who)
    return None if found is None else player.call("DELETE", f"/v1/subscriptions/{found['id']}")


def _card(method: str) -> Move:
    settings = {"default_payment_method": method}
    return lambda player, who, choice: player.call(
        "POST", f"/v1/customers/{player.customer_of(who)}", invoice_settings=settings
    )


def _invoice(action: str, status: str) -> Move:
    def move(player: Player, who: int, choice: int) -> Body | None:
        found = player.newest("invoices", who, status=status)
        return None if found is None else player.call("POST", f"/v1/invoices/{found['id']}/{action}")

    return move


def _rename(player: Player, who: int, choice: int) -> Body | None:
    path = f"/v1/customers/{player.customer_of(who)}"
    return player.call("POST", path, name=f"Org {who} ({choice % 3})", metadata={"seen": str(choice % 2)})


def _leave(player: Player, who: int, choice: int) -> Body | None:
    gone = player.call("DELETE", f"/v1/customers/{player.customer_of(who)}")
    # The organization may come back, as another customer.
    player.customers.pop(who, None)
    return gone


def _use(player: Player, who: int, choice: int) -> Body | None:
    payload = {"stripe_customer_id": player.customer_of(who), "value": str(choice % 50)}
    return player.call("POST", "/v1/billing/meter_events", event_name="calls", payload=payload)


def _grant(player: Player, who: int, choice: int) -> Body | None:
    feature, product = player.features[choice % 3], player.products[choice // 3 % 3]
    return player.call("POST", f"/v1/products/{product}/features", entitlement_feature=feature)


def _revoke(player: Player, who: int, choice: int) -> Body | None:
    path = f"/v1/products/{player.products[choice % 3]}/features"
    attached = player.must("GET", path)["data"]
    return player.call("DELETE", f"{path}/{attached[0]['id']}") if attached else None


def _next_moment(player: Player, who: int, choice: int) -> Body | None:
    """To the very second of what happens next by itself, or the one before it."""
    ahead = player.core.state.due.next_at - int(player.clock().timestamp()) - choice % 2
    if not 0 <= ahead <= 40 * DAY:
        return None
    player.clock.advance(seconds=ahead)
    return player.must("GET", "/v1/account")


def _checkout(player: Player, who: int, choice: int) -> Body | None:
    """A session by somebody who is a customer, or is about to be one, and what becomes of it."""
    known = {"customer": player.customers[who]} if who in player.customers else {"customer_email": f"org{who}@x.test"}
    metadata = {"tenant_id": f"org_{who}"}
    session = player.call(
        "POST",
        "/v1/checkout/sessions",
        mode="subscription",
        client_reference_id=f"org_{who}",
        line_items=[{"price": player.prices[choice % 2], "quantity": 1}],
        metadata=metadata,
        subscription_data={"metadata": metadata},
        **known,
    )
    assert session is not None
    if choice % 4 == 0:
        return session
    done = player.call(
        "POST", f"/_control/checkout/sessions/{session['id']}/{'complete' if choice % 4 < 3 else 'expire'}"
    )
    if done is not None and done["customer"]:
        player.customers[who] = done["customer"]
    return done


def _wait(player: Player, who: int, choice: int) -> Body | None:
    return player.must("GET", "/v1/account")


Move = Callable[[Player, int, int], Body | None]
MOVES: dict[str, Move] = {
    "check out": _checkout,
    "subscribe": _subscribe,
    "change plan": _plan,
    "annotate": lambda player, who, choice: _update(player, who, {"metadata": {"note": str(choice % 3)}}),
    "pause": _pause,
    "resume": _change(pause_collection=""),
    "begin or end trial": _trial,
    "reset anchor": _change(billing_cycle_anchor="now"),
    "cancel": _cancel,
    "cancel at period end": _change(cancel_at_period_end=True),
    "stay": _change(cancel_at_period_end=False),
    "card fails": _card("pm_card_chargeCustomerFail"),
    "card pays": _card("pm_card_visa"),
    "finalize": _invoice("finalize", "draft"),
    "pay": _invoice("pay", "open"),
    "void": _invoice("void", "open"),
    "give up": _invoice("mark_uncollectible", "open"),
    "rename": _rename,
    "leave": _leave,
    "use": _use,
    "grant": _grant,
    "revoke": _revoke,
    "next moment": _next_moment,
    "wait": _wait,
}
_OFTEN = ("subscribe", "subscribe", "change plan", "next moment", "next moment", "use", "wait")
_SELDOM = ("leave", "cancel")
_DRAWN = (*(move for move in MOVES for _ in range(2) if move not in _SELDOM), *_OFTEN, *_SELDOM)


def histories(*, steps_max: int = 40) -> st.SearchStrategy[History]:
    """Any history of up to `steps_max` steps, in the new shape, the old one, or mixed."""
    step = st.builds(
        Step,
        pause=st.sampled_from(PAUSES),
        move=st.sampled_from(_DRAWN),
        who=st.integers(0, CUSTOMERS_MAX - 1),
        choice=st.integers(0, 59),
    )
    steps = st.lists(step, max_size=steps_max)
    return st.builds(play, steps, old_percent=st.sampled_from((0, 50, 100)), seed=st.integers(0, 9))


def random_steps(seed: int, count: int) -> list[Step]:
    """A long history from a seed."""
    dice = random.Random(seed)
    return [
        Step(dice.choice(PAUSES), dice.choice(_DRAWN), dice.randrange(CUSTOMERS_MAX), dice.randrange(60))
        for _ in range(count)
    ]


def random_history(seed: int, count: int, *, old_percent: int = 50) -> History:
    """`random_steps`, played."""
    return play(random_steps(seed, count), old_percent=old_percent, seed=seed)


def play(steps: Sequence[Step], *, old_percent: int = 0, seed: int = 0, **options: Any) -> History:
    """Play steps on a new simulator, whose `options` may hold a webhook weather.

    `old_percent` of the events are rendered as before API version 2025-03-31; `seed` says which.
    """
    clock = SimulatorClock(still_at=BEGINNING)
    player = Player(make_core(clock, **options), clock)
    player.open_shop()
    for step in steps:
        player.play(step)
    player.core.deliver_due()
    return History(
        events=list(_rendered(player.core, old_percent, seed)),
        final=_final(player),
        core=player.core,
        clock=clock,
        played=player.played,
        refused=player.refused,
    )


def _rendered(core: SimulatedStripe, old_percent: int, seed: int) -> Iterable[Body]:
    for event in core.state.events.since(0):
        is_old = random.Random(f"{seed}/{event.position}").randrange(100) < old_percent
        version = OLD_VERSION if is_old else API_VERSION
        yield event.body(1, version, lambda price: core.state.find("price", price))


def _final(player: Player) -> dict[str, dict[str, Body]]:
    # By the journal, for a deleted customer is in no list.
    seen: dict[str, dict[str, None]] = {}
    for record in player.core.journal.read():
        if "object" in record:
            seen.setdefault(record["kind"], {})[record["object"]["id"]] = None
    paths = {
        "checkout_session": "checkout/sessions",
        "customer": "customers",
        "invoice": "invoices",
        "subscription": "subscriptions",
    }
    final = {
        kind: {id: player.must("GET", f"/v1/{path}/{id}") for id in seen.get(kind, {})} for kind, path in paths.items()
    }
    entitlements = "/v1/entitlements/active_entitlements"
    final["active_entitlements"] = {
        id: player.must("GET", entitlements, customer=id, limit=100) for id in seen.get("customer", {})
    }
    return final
