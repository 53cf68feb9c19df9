"""What the web app asks before it opens the workspace: an organization's entitlements, and the decision at the door.

Only with a token: who may use what is nobody else's business.  Without `BILLING_ACCESS_TOKEN` there are no such routes.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, HTTPException, Path, Response
from fastapi.responses import JSONResponse, RedirectResponse
from psycopg import Connection
from starlette.concurrency import run_in_threadpool

from billing_pipeline.database import queries
from billing_pipeline.domain.access import GATE, Access, Decision, decide_access
from billing_pipeline.errors import BillingError, Unavailable
from billing_pipeline.settings import Settings

Ask = Callable[[Callable[[Connection[Any]], list[dict[str, Any]]]], Awaitable[list[dict[str, Any]]]]
OpenCheckout = Callable[[str, str | None], str]
"""The address of a new checkout for an organization and, where it is known, its customer."""

Organization = Annotated[str, Path(pattern=r"^[^\x00-\x1f]{1,255}$")]
NOT_KEPT = {"cache-control": "no-store"}


def add_access_routes(app: FastAPI, settings: Settings, ask: Ask, open_checkout: OpenCheckout | None) -> None:
    """Add the routes under /v1/orgs, where a token is set."""
    if settings.billing_access_token is None:
        return
    token = settings.billing_access_token.get_secret_value().encode()

    def authorized(authorization: Annotated[str, Header()] = "") -> None:
        if not hmac.compare_digest(authorization.encode(), b"Bearer " + token):
            raise HTTPException(401, "A token is needed.", {"www-authenticate": "Bearer"})

    async def rows(statement: str, organization_id: str) -> list[dict[str, Any]]:
        read = partial(_rows, statement=statement, organization_id=organization_id)
        try:
            return await ask(read)
        except BillingError:
            raise HTTPException(503, "The database does not answer.", {"retry-after": "5"}) from None

    async def access_of(organization_id: str) -> Access:
        features = await rows("entitlements_of", organization_id)
        return decide_access(
            entitled=any(row["active"] for row in features if row["feature"] == GATE),
            booking_url=settings.saas_workspace_booking_url,
            can_upgrade=open_checkout is not None,
        )

    @app.get("/v1/orgs/{organization_id}/entitlements", dependencies=[Depends(authorized)])
    async def entitlements(organization_id: Organization) -> Response:
        features = await rows("entitlements_of", organization_id)
        shown = {
            str(row["feature"]): {"active": row["active"], "changed_at": row["changed_at"].isoformat()}
            for row in features
        }
        return JSONResponse({"organization_id": organization_id, "entitlements": shown}, headers=NOT_KEPT)

    @app.get("/v1/orgs/{organization_id}/access", dependencies=[Depends(authorized)])
    async def access(organization_id: Organization, redirect: bool = False) -> Response:
        found = await access_of(organization_id)
        if redirect and found.url is not None:
            return RedirectResponse(found.url, 302, NOT_KEPT)
        return JSONResponse(
            {
                "organization_id": organization_id,
                "decision": found.decision.value,
                "url": found.url,
                "can_upgrade": found.can_upgrade,
            },
            headers=NOT_KEPT,
        )

    if open_checkout is None:
        return

    @app.post("/v1/orgs/{organization_id}/checkout", dependencies=[Depends(authorized)])
    async def checkout(organization_id: Organization) -> Response:
        if (await access_of(organization_id)).decision is Decision.WORKSPACE:
            raise HTTPException(409, "The organization has the entitlement already.")
        customers = await rows("buying_customer", organization_id)
        customer_id = str(customers[0]["stripe_customer_id"]) if customers else None
        try:
            url = await run_in_threadpool(open_checkout, organization_id, customer_id)
        except Unavailable:
            raise HTTPException(503, "Stripe does not answer.", {"retry-after": "5"}) from None
        except BillingError as exc:
            raise HTTPException(502, str(exc)) from None
        return JSONResponse({"organization_id": organization_id, "url": url}, 201, NOT_KEPT)


def _rows(connection: Connection[Any], *, statement: str, organization_id: str) -> list[dict[str, Any]]:
    return queries.fetch_dicts(connection, statement, {"organization_id": organization_id})
