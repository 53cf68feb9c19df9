"""The HTTP around the intake: Stripe's endpoint, and what an operator and Prometheus ask.

Stripe's endpoint is a bare ASGI application before it: the framework's way to it costs 37 of 110 µs a request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from datetime import datetime, timedelta
from typing import Any

from fastapi import FastAPI, Response
from psycopg import Connection
from starlette.routing import Route

from billing_pipeline.database.schema_version import require_current_schema
from billing_pipeline.errors import BillingError
from billing_pipeline.settings import Settings
from billing_pipeline.webhooks.access import OpenCheckout, add_access_routes
from billing_pipeline.webhooks.body import Receive
from billing_pipeline.webhooks.committer import Committer
from billing_pipeline.webhooks.metrics import CONTENT_TYPE, WebhookMetrics
from billing_pipeline.webhooks.questions import Questions
from billing_pipeline.webhooks.receive import PATH, Scope, Send, StripeEndpoint

logger = logging.getLogger(__name__)

READY_FOR_SECONDS = 1
"""How long an answer about readiness is given again, so that asking often costs the database nothing."""

JSON = "application/json"
Application = Callable[..., Awaitable[None]]
"""An ASGI application: scope, receive and send."""

Background = Callable[[WebhookMetrics, Callable[[], bool]], AbstractAsyncContextManager[Any]]
"""Given where to count, and whether deliveries crowd at the moment."""


def make_app(
    settings: Settings,
    database_url: str,
    *,
    clock: Callable[[], datetime],
    background: Background | None = None,
    open_checkout: OpenCheckout | None = None,
    further: Mapping[str, Application] | None = None,
) -> Application:
    """The intake as an ASGI application, to be served with its lifespan.

    `clock` tells the time in UTC, against which signatures are judged.  `background` runs for as long as the intake
    serves, in the same event loop; it begins after the inbox is ready and ends before the last requests are committed.
    `open_checkout` is what an organization without the workspace may use; None where it may not.  `further` are ASGI
    applications of others that answer GET, by path.
    """
    metrics = WebhookMetrics()
    stuck_after = timedelta(seconds=settings.billing_dispatch_sla_seconds)
    committer = Committer(database_url, stuck_after=stuck_after)
    questions = Questions(database_url)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        working = background(metrics, committer.is_crowded) if background else nullcontext()
        async with questions, committer, working:
            yield

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=lifespan)
    endpoint = StripeEndpoint(
        committer, secrets=settings.webhook_secrets, livemode=settings.livemode, clock=clock, metrics=metrics
    )
    # Answers other methods with 405; what Stripe posts does not come this far.
    app.router.routes.append(Route(PATH, endpoint, methods=["POST"]))
    _add_operators_routes(app, committer, metrics)
    add_access_routes(app, settings, questions.ask, open_checkout)
    app.router.routes.extend(Route(path, answers, methods=["GET"]) for path, answers in (further or {}).items())

    async def intake(scope: Scope, receive: Receive, send: Send) -> None:
        is_delivery = scope["type"] == "http" and scope["path"] == PATH and scope["method"] == "POST"
        await (endpoint if is_delivery else app)(scope, receive, send)

    return intake


def _add_operators_routes(app: FastAPI, committer: Committer, metrics: WebhookMetrics) -> None:
    readiness = _Readiness(committer)

    @app.get("/healthz")
    async def healthz() -> Response:
        return Response(b'{"status":"up"}', media_type=JSON)

    @app.get("/readyz")
    async def readyz() -> Response:
        if await readiness.holds():
            return Response(b'{"status":"ready"}', media_type=JSON)
        return Response(b'{"status":"not_ready","reason":"database"}', 503, media_type=JSON)

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE})


class _Readiness:
    """Whether a delivery could be stored now: the database answers, takes writes and has this version's schema."""

    def __init__(self, committer: Committer) -> None:
        self._committer = committer
        self._asking = asyncio.Lock()
        self._known_until = 0.0
        self._holds = False

    async def holds(self) -> bool:
        async with self._asking:
            now = asyncio.get_running_loop().time()
            if now >= self._known_until:
                self._holds = await self._ask()
                self._known_until = now + READY_FOR_SECONDS
        return self._holds

    async def _ask(self) -> bool:
        def question(connection: Connection[Any]) -> None:
            require_current_schema(connection)

        try:
            await self._committer.ask(question)
        except BillingError as exc:
            logger.warning("The intake is not ready: %s", exc)
            return False
        return True
