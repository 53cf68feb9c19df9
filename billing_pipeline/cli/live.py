"""The question before real money moves from a shell: whose account the live key is.

Every command that sends asks here.  The schedule does not: what it may do was decided when it was turned on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from billing_pipeline.settings import Settings

Live = Annotated[
    str | None,
    typer.Option("--live", metavar="ACCOUNT", help="With a live key: the account this is meant for, acct_..., typed."),
]


def require_live_account(settings: Settings, typed: str | None) -> None:
    """Raises `Refused` when the key is live and `typed` is not its account, `UserError` when it is not live.

    Asks Stripe whose key it is, and only then.
    """
    from billing_pipeline.errors import Refused, UserError
    from billing_pipeline.stripe_api.client import make_client, read_account

    if not settings.livemode:
        if typed is not None:
            raise UserError(f"--live {typed} is for a live key, and this is none; leave it out, or set the live key.")
        return
    account = read_account(make_client(settings), settings).account_id
    if typed is None:
        raise Refused(
            f"The key is live: this would send real usage to {account}. Nothing was done. "
            f"If that is what you mean, type it: --live {account}"
        )
    if typed != account:
        raise Refused(f"--live says {typed}, but the key belongs to {account}. Nothing was done.")
