"""Where a webhook event stands, and who handles it: the words of the inbox, as people say them."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """Where an event stands; failed is tried again by itself, parked waits for a person."""

    RECEIVED = "received"
    PROCESSED = "processed"
    IGNORED = "ignored"
    FAILED = "failed"
    PARKED = "parked"


WELL = frozenset({Outcome.PROCESSED, Outcome.IGNORED})
"""Outcomes with nothing left to do."""


class HandlerName(StrEnum):
    """Who handles an event; thin: those that only name their object, whoever's it is."""

    CUSTOMER = "customer"
    SUBSCRIPTION = "subscription"
    INVOICE = "invoice"
    CHECKOUT = "checkout"
    FEATURES = "features"
    THIN = "thin"
