"""Tables of Stripe's objects as its events and answers last showed them, and of what organizations may use.

Each row is the greatest version of its object that was ever seen, so the order and repetition of events do not matter:
a terminal state first, then Stripe's second, then how far along the state is, then the content itself.
Lists inside an object (items, lines) stay with it and have views of their own in `schema/webhooks.sql`.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, Index, Integer, SmallInteger, Table, Text, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from billing_pipeline.database.base import Instant, metadata


def _version() -> tuple[Column[Any], ...]:
    """What says which of two rows of one object is the later, and where the row comes from."""
    return (
        Column("terminal", Boolean, nullable=False, comment="Stripe never takes this state back"),
        Column("version_at", Instant, nullable=False, comment="Stripe's second: of the event, or of the answer"),
        Column("version_rank", SmallInteger, nullable=False, comment="within a second, how far along the state is"),
        Column("version_digest", Text, nullable=False, comment="of the row's content; decides the rest"),
        Column("source", Text, nullable=False, comment="the event's id, or read: Stripe was asked"),
    )


stripe_customers = Table(
    "stripe_customers",
    metadata,
    Column("stripe_customer_id", Text, primary_key=True),
    Column("organization_hint", Text, comment="from its metadata"),
    Column("currency", Text),
    Column("delinquent", Boolean),
    Column("deleted", Boolean, nullable=False),
    Column("created_at", Instant),
    *_version(),
)

subscriptions = Table(
    "subscriptions",
    metadata,
    Column("stripe_subscription_id", Text, primary_key=True),
    Column("stripe_customer_id", Text, nullable=False),
    Column("organization_hint", Text, comment="from its metadata"),
    Column("status", Text, nullable=False, comment="Stripe's word"),
    Column("is_active", Boolean, nullable=False, comment="it gives access: trialing, active or past_due"),
    Column("plan", Text, comment="lookup key of its first licensed price, else that price's id"),
    Column("billing_period", Text, comment="monthly, quarterly, semiannual, annual, or Stripe's interval"),
    Column("currency", Text),
    Column("current_period_start", Instant, comment="the earliest of its items' periods; they may differ"),
    Column("current_period_end", Instant),
    Column("trial_ends_at", Instant),
    Column("cancel_at_period_end", Boolean, nullable=False),
    Column("cancel_at", Instant),
    Column("canceled_at", Instant),
    Column("ended_at", Instant),
    Column("collection_paused", Text, comment="what happens to invoices meanwhile; null: collected as usual"),
    Column("latest_invoice_id", Text),
    Column("created_at", Instant),
    Column("items", JSONB, nullable=False, comment="shown by the view subscription_items"),
    Column("items_complete", Boolean, nullable=False, comment="false: Stripe showed only the first of them"),
    *_version(),
    Index("subscriptions_stripe_customer_id_idx", "stripe_customer_id"),
)

invoices = Table(
    "invoices",
    metadata,
    Column("stripe_invoice_id", Text, primary_key=True),
    Column("stripe_customer_id", Text),
    Column("stripe_subscription_id", Text),
    Column("number", Text),
    Column("status", Text, nullable=False, comment="draft, open, paid, void, uncollectible; deleted: a draft that was"),
    Column("billing_reason", Text),
    Column("currency", Text),
    Column("subtotal", BigInteger, comment="this and all amounts: minor units of the currency"),
    Column("total", BigInteger),
    Column("amount_due", BigInteger),
    Column("amount_paid", BigInteger),
    Column("amount_remaining", BigInteger),
    Column("attempt_count", Integer),
    Column("next_payment_attempt_at", Instant),
    Column("finalizes_at", Instant, comment="when Stripe makes the draft final by itself"),
    Column("finalized_at", Instant),
    Column("paid_at", Instant),
    Column("voided_at", Instant),
    Column("uncollectible_at", Instant),
    Column("created_at", Instant),
    Column("lines", JSONB, nullable=False, comment="shown by the view invoice_lines"),
    Column("lines_complete", Boolean, nullable=False, comment="false: Stripe showed only the first of them"),
    *_version(),
    CheckConstraint("status IN ('draft', 'open', 'paid', 'void', 'uncollectible', 'deleted')", name="status"),
    Index("invoices_stripe_customer_id_idx", "stripe_customer_id", "created_at"),
    Index("invoices_stripe_subscription_id_idx", "stripe_subscription_id"),
    Index("invoices_drafts_idx", "created_at", postgresql_where=text("status = 'draft'")),
)

checkout_sessions = Table(
    "checkout_sessions",
    metadata,
    Column("stripe_session_id", Text, primary_key=True),
    Column("stripe_customer_id", Text),
    Column("stripe_subscription_id", Text),
    Column("organization_hint", Text, comment="its client_reference_id, else its metadata"),
    Column("mode", Text, nullable=False),
    Column("status", Text),
    Column("payment_status", Text),
    Column("created_at", Instant),
    *_version(),
    Index("checkout_sessions_stripe_customer_id_idx", "stripe_customer_id"),
    Index("checkout_sessions_stripe_subscription_id_idx", "stripe_subscription_id"),
)

feature_summaries = Table(
    "feature_summaries",
    metadata,
    Column("stripe_customer_id", Text, primary_key=True),
    Column("features", ARRAY(Text), nullable=False, comment="lookup keys of Stripe's active entitlements, sorted"),
    Column("features_complete", Boolean, nullable=False, comment="false: Stripe showed only the first of them"),
    *_version(),
)

customer_organizations = Table(
    "customer_organizations",
    metadata,
    Column("stripe_customer_id", Text, primary_key=True),
    Column("organization_id", Text, nullable=False),
    Index("customer_organizations_organization_id_idx", "organization_id"),
    comment="whose each customer is: the view known_customer_organizations, kept so that both ways are quick",
)

entitlements = Table(
    "entitlements",
    metadata,
    Column("organization_id", Text, primary_key=True),
    Column("feature", Text, primary_key=True, comment="saas: the workspace gate; others are Stripe's features"),
    Column("active", Boolean, nullable=False),
    Column(
        "reason", Text, nullable=False, comment="what it follows from: a subscription, a checkout, Stripe's features"
    ),
    Column("stripe_object_id", Text, comment="the subscription, session or customer that decides it"),
    Column("changed_at", Instant, nullable=False, comment="when `active` last changed here"),
    CheckConstraint("reason IN ('subscription', 'checkout', 'stripe_features', 'none')", name="reason"),
    Index("entitlements_active_idx", "feature", "organization_id", postgresql_where=text("active")),
)

PROJECTIONS = (stripe_customers, subscriptions, invoices, checkout_sessions, feature_summaries)
"""What can be made anew from `stripe_events` and `object_snapshots` alone."""
