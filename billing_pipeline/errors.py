"""Every error this package raises on purpose, as one tree.

    BillingError
    ├── UserError                  a person can mend it: bad input, bad settings; shown as one sentence
    │   ├── SettingsError          a setting is missing or malformed
    │   ├── CatalogueError         meters.toml is wrong
    │   └── ImportRefused          a file cannot be imported as asked
    ├── Unavailable                something we need does not answer; the same call may work later
    │   ├── DatabaseUnavailable
    │   └── StripeUnavailable
    ├── GateClosed                 a guard forbids sending; nothing was sent
    │   ├── LedgerFrozen           the ledger is frozen until a person releases it
    │   ├── IdentityMismatch       this ledger belongs to another Stripe account or mode
    │   └── ContractBlocked        the contract failed and the setting is fail-closed
    ├── DeliveryRefused            a webhook delivery that is not Stripe's, or not for us; nothing was stored
    ├── EventUnreadable            a stored webhook event has a shape that this version does not know; it is kept
    ├── Refused                    a guard forbids what a person asked for; nothing was changed
    └── StripeRefused              Stripe gave a definitive answer we cannot turn into progress

The type decides what may be retried: only `Unavailable`.
The command's exit code is the class attribute `exit_code`; `anchor` is the type's section in docs/troubleshooting.md.
"""

from __future__ import annotations

from typing import ClassVar


class BillingError(Exception):
    """Something this package refuses to do; the message says what, which, and what to do next."""

    exit_code: ClassVar[int] = 1
    anchor: ClassVar[str] = ""


def told(error: BillingError) -> str:
    """The message as a person reads it, with where to read on."""
    if not error.anchor:
        return str(error)
    # A list of faults stands on lines of its own.
    gap = "\n" if "\n" in str(error) else " "
    return f"{error}{gap}See docs/troubleshooting.md#{error.anchor}."


class UserError(BillingError):
    """A person's input is wrong; nothing was changed."""

    exit_code = 2


class SettingsError(UserError):
    """One or more settings are missing or malformed; the message names all of them."""

    anchor = "settings"


class CatalogueError(UserError):
    """The meter catalogue is wrong; the message lists every fault."""

    anchor = "catalogue"


class ImportRefused(UserError):
    """A file cannot be imported as asked; nothing was imported."""


class Unavailable(BillingError):
    """A service did not answer; nothing is half done and the same call may work later."""


class DatabaseUnavailable(Unavailable):
    """PostgreSQL does not answer."""

    anchor = "database"


class StripeUnavailable(Unavailable):
    """Stripe does not answer, or answers that it cannot serve now."""

    anchor = "stripe-does-not-answer"


class GateClosed(BillingError):
    """A guard forbids sending; nothing was sent."""

    exit_code = 3


class LedgerFrozen(GateClosed):
    """The ledger is frozen until a person looks at the reason and releases it."""

    anchor = "frozen-ledger"


class IdentityMismatch(GateClosed):
    """The ledger is bound to another Stripe account or mode than the one configured."""

    anchor = "another-account"


class ContractBlocked(GateClosed):
    """The data contract failed and the pipeline is set to fail closed."""

    anchor = "contract"


class DeliveryRefused(BillingError):
    """A webhook delivery that is not Stripe's, or not for us; nothing was stored.

    `reason` is one of missing_signature, invalid_signature, stale_signature, invalid_payload, wrong_mode and
    wrong_account.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class EventUnreadable(BillingError):
    """A stored webhook event has a shape that this version does not know; it is kept, and can be replayed."""


class Refused(BillingError):
    """A guard forbids what a person asked for; nothing was changed."""

    exit_code = 3


class StripeRefused(BillingError):
    """Stripe refused a request definitively; retrying the same request cannot help."""

    anchor = "refused-by-stripe"
