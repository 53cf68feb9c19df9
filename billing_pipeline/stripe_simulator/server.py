"""The HTTP face: a bare ASGI application around the core, served by uvicorn on this machine only.

There is no framework between the two because benchmarks need thousands of meter events a second from one core.
The core decides and records a request before the first `await` after its body has arrived, so requests never
interleave inside it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from datetime import timedelta

import uvicorn

from billing_pipeline.errors import UserError
from billing_pipeline.stripe_simulator.core import SimulatedStripe
from billing_pipeline.stripe_simulator.delivery import ClosableProtocol, Receive, Scope, Send, deliver, send_answer
from billing_pipeline.stripe_simulator.parameters import parse_form, parse_json
from billing_pipeline.stripe_simulator.webhook_sender import WebhookSender
from billing_pipeline.stripe_simulator.wire import Refusal, Request

BODY_BYTES_MAX = 1 << 20
KEEP_ALIVE_SECONDS = 600
SHUTDOWN_SECONDS_MAX = 2

Application = Callable[[Scope, Receive, Send], Awaitable[None]]


def application(
    core: SimulatedStripe, processing: timedelta = timedelta(0), sender: WebhookSender | None = None
) -> Application:
    """The ASGI application; every request stays in flight for `processing` before it is answered.

    Without a `sender` webhook deliveries stay where they are.
    """
    seconds = processing.total_seconds()

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            request = _request(scope, await _read_body(receive))
        except Refusal as refusal:
            await send_answer(send, core.refuse(refusal))
            return
        except ConnectionResetError:
            return
        exchange = core.begin(request)
        try:
            if seconds:
                await asyncio.sleep(seconds)
        finally:
            # Also when the client has gone: what it asked for is done, and its place is free again.
            core.finish(exchange)
            if sender is not None:
                sender.poke()
        await deliver(exchange, scope, receive, send)

    return serve


async def _read_body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            # Half a body could read as another value; it must not be executed.
            raise ConnectionResetError
        body += message["body"]
        if len(body) > BODY_BYTES_MAX:
            raise Refusal(413, f"The request body is larger than {BODY_BYTES_MAX} bytes.")
        if not message["more_body"]:
            return bytes(body)


def _request(scope: Scope, body: bytes) -> Request:
    # Stripe takes parameters from the query on GET and DELETE and from the form body on POST.
    method, path = scope["method"], scope["path"]
    if method == "POST" and path.startswith("/v2/"):
        params = parse_json(body)
    else:
        form = body if method == "POST" else scope["query_string"]
        params = parse_form(form.decode("utf-8", "replace"))
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    return Request(method, path, params, headers)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket on the loopback interface; port 0 takes any free one.

    Raises `UserError` for another interface and for a port that is taken.
    """
    if not _is_loopback(host):
        raise UserError(f"The simulator serves this machine only and does not listen on {host}. Use 127.0.0.1.")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except (OSError, OverflowError) as exc:
        listener.close()
        reason = exc.strerror if isinstance(exc, OSError) else "not a port number"
        raise UserError(f"The simulator cannot listen on {host}:{port}: {reason}. Choose another --port.") from None
    return listener


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Server(uvicorn.Server):
    """uvicorn's server, with the sender of webhooks beside it in its event loop."""

    def __init__(self, config: uvicorn.Config, sender: WebhookSender | None) -> None:
        super().__init__(config)
        self._sender = sender

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._sender is not None:
            self._sender.poke()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._sender is not None:
            await self._sender.close()
        await super().shutdown(sockets)


def make_server(app: Application, sender: WebhookSender | None = None) -> uvicorn.Server:
    """A quiet uvicorn server for the application; run it with `server.run(sockets=[...])`."""
    return _Server(
        uvicorn.Config(
            app,
            access_log=False,
            # Ours comes from the simulator's clock.
            date_header=False,
            http=ClosableProtocol,
            interface="asgi3",
            lifespan="off",
            log_config=None,
            # Nobody stands between, and the wrapper for it would cost every request.
            proxy_headers=False,
            server_header=False,
            # Longer than a client keeps an idle connection: closing it under a request looks like a lost answer.
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS_MAX,
            ws="none",
        ),
        sender,
    )
