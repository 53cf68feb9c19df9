"""`billing-pipeline serve`: takes Stripe's webhooks and handles them until it is told to stop.

It starts only where a delivery could be stored: with a secret to verify by, and a migrated database that takes writes.
On SIGTERM and Ctrl-C it takes no new connection, answers what it has, and ends with exit code 0.
"""

from __future__ import annotations

import gc
import signal
import socket
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import uvicorn

    from billing_pipeline.feed.stream import BillingStream
    from billing_pipeline.settings import Settings
    from billing_pipeline.webhooks.access import OpenCheckout
    from billing_pipeline.webhooks.app import Background
    from billing_pipeline.webhooks.metrics import WebhookMetrics

CONNECTIONS_MAX = 1_024
KEEP_ALIVE_SECONDS = 75
"""Longer than the 60 seconds after which most proxies close an idle connection, so that they do it and not we."""

STOP_SECONDS = 25
"""Longer than a delivery waits at most for its commit."""

UNTAKEN_MILLISECONDS = 30_000
"""Who has taken nothing of what was sent for so long is let go by the kernel, whatever the server believes."""


def serve_command(
    host: Annotated[str, typer.Option(help="Address to listen on; TLS is a proxy's work.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Default: BILLING_INTAKE_PORT, 8000.", min=1, max=65535)] = None,
) -> None:
    """Take and handle Stripe's webhooks until told to stop.

    They come to /webhooks/stripe; SIGTERM or Ctrl-C ends it.
    Each is verified, stored and committed before it is answered, and handled right after it.
    /healthz, /readyz and /metrics are for operators.
    With ENABLE_BILLING_STREAM it also serves /api/v1/billing/stream.
    Example: billing-pipeline serve --port 8000
    """
    from billing_pipeline.cli.local_stack import ready_database
    from billing_pipeline.cli.log import log_to_stderr
    from billing_pipeline.feed import stream as feed_stream
    from billing_pipeline.settings import load_settings
    from billing_pipeline.webhooks.app import make_app

    settings = load_settings(**({} if port is None else {"billing_intake_port": port}))
    _require_secret(settings)
    database_url = ready_database(settings)
    _require_writable(database_url)
    log_to_stderr(milestones=True, gathering=True)
    stream = feed_stream.make_stream(settings, database_url)
    _warn_of_missing(stream, is_wanted=settings.enable_billing_stream)
    app = make_app(
        settings,
        database_url,
        clock=_clock,
        background=_background(database_url, stream),
        open_checkout=_checkout(settings),
        further={feed_stream.PATH: stream},
    )
    _serve(app, host, settings.billing_intake_port, on_stop=stream.end)


def _clock() -> datetime:
    return datetime.now(UTC)


def _checkout(settings: Settings) -> OpenCheckout | None:
    from billing_pipeline.stripe_api.checkout import open_checkout
    from billing_pipeline.stripe_api.client import make_client

    price_id, return_url = settings.saas_upgrade_price_id, settings.saas_upgrade_return_url
    if price_id is None or return_url is None:
        return None
    client = make_client(settings)

    def opened(organization_id: str, customer_id: str | None) -> str:
        return open_checkout(
            client,
            settings,
            organization_id=organization_id,
            customer_id=customer_id,
            price_id=price_id,
            return_url=return_url,
        )

    return opened


def _background(database_url: str, stream: BillingStream) -> Background:
    from contextlib import asynccontextmanager

    from billing_pipeline.cli.handler_process import handling

    @asynccontextmanager
    async def background(metrics: WebhookMetrics, is_crowded: Callable[[], bool]) -> AsyncIterator[None]:
        async with handling(database_url, metrics, is_crowded), stream:
            yield

    return background


def _warn_of_missing(stream: BillingStream, *, is_wanted: bool) -> None:
    """A view must not stop the intake, so what it lacks is only told."""
    import logging

    if is_wanted and stream.refusal is not None:
        told = "%s Until then /api/v1/billing/stream answers 503."
        logging.getLogger(__name__).warning(told, stream.refusal.message, extra={"code": stream.refusal.code})


def _require_secret(settings: Settings) -> None:
    from billing_pipeline.errors import SettingsError

    if not settings.webhook_secrets:
        raise SettingsError(
            "STRIPE_WEBHOOK_SECRET is not set, so no webhook could be told from a forged one. Set it to the endpoint's "
            "signing secret, whsec_..., from Stripe's Dashboard or from `stripe listen`."
        )


def _require_writable(database_url: str) -> None:
    from billing_pipeline.database.connection import connect
    from billing_pipeline.database.primary import require_primary

    with connect(database_url) as connection:
        require_primary(connection, database_url)


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address.  Raises `UserError` where that cannot be."""
    from billing_pipeline.errors import UserError

    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as exc:
        raise UserError(f"Cannot listen on {host}: {exc.strerror}. Choose another --host.") from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNTAKEN_MILLISECONDS)
    try:
        listener.bind(address)
    except OSError as exc:
        listener.close()
        raise UserError(
            f"Cannot listen on {host}:{port}: {exc.strerror}. Stop the program that uses the port, or set "
            "BILLING_INTAKE_PORT or --port to a free one."
        ) from None
    return listener


def make_server(app: Any, on_stop: Callable[[], None] = lambda: None) -> uvicorn.Server:
    """uvicorn around the intake, an ASGI application; run it with `server.run(sockets=[...])`.

    `on_stop` is called before it waits for the requests under way, for those that would never end by themselves.
    """
    import uvicorn

    from billing_pipeline.feed.stream import ABORT
    from billing_pipeline.webhooks.http_protocol import BoundedHttpProtocol

    class Protocol(BoundedHttpProtocol):
        """Lets an application abort its connection."""

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self.scope["extensions"] = {ABORT: {"abort": self.transport.abort}}

    class Server(uvicorn.Server):
        """Says when it stops."""

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            on_stop()
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app,
        access_log=False,
        backlog=2_048,
        http=Protocol,
        lifespan="on",
        limit_concurrency=CONNECTIONS_MAX,
        log_config=None,
        # Its warnings are one for each request that is no HTTP, which anybody can send.
        log_level="error",
        loop="uvloop",
        # Addresses are neither logged nor trusted, so nobody's word about them is needed.
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=STOP_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        ws="none",
    )
    return Server(config)


def _serve(app: Any, host: str, port: int, on_stop: Callable[[], None]) -> None:
    from billing_pipeline.webhooks.receive import PATH

    with bind(host, port) as listener:
        server = make_server(app, on_stop)
        # uvicorn ends gracefully on these and then raises them again; by then everything is answered and closed.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        where = f"[{host}]" if ":" in host else host
        sys.stdout.write(f"Webhook intake on http://{where}:{listener.getsockname()[1]}{PATH}\n")
        sys.stdout.flush()
        # The thread that commits gets its turn at once instead of after 5 ms, while requests stream in: each of a
        # batch's five statements waits for it.  Measured: 2,600 events/s with 1 ms, 3,400 with this.
        sys.setswitchinterval(0.0001)
        # What is imported by now stays, and a request leaves no cycles; the collector looked through hundreds of
        # requests under way again and again, for 40 of 280 us each.
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        server.run(sockets=[listener])
