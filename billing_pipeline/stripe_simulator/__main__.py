"""`python -m billing_pipeline.stripe_simulator --port 12111 --journal FILE`: the simulator as a process.

The only place of the simulator that reads the machine's clock.
"""

from __future__ import annotations

import argparse
import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from billing_pipeline.errors import UserError
from billing_pipeline.stripe_simulator.core import SimulatedStripe
from billing_pipeline.stripe_simulator.journal import FileJournal
from billing_pipeline.stripe_simulator.rate_limits import RateLimits
from billing_pipeline.stripe_simulator.server import application, bind, make_server
from billing_pipeline.stripe_simulator.webhook_sender import WebhookSender

SECONDS_MAX = 366 * 86_400


def main() -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    options = _parser().parse_args()
    try:
        _serve(options)
    except UserError as exc:
        sys.stderr.write(f"{exc}\n")
        return exc.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m billing_pipeline.stripe_simulator",
        description="A stateful local Stripe. It takes any sk_test_ key and never a live one.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=12111, help="0 takes any free port (default: 12111)")
    parser.add_argument("--journal", type=Path, required=True, help="file that keeps everything, made when missing")
    parser.add_argument(
        "--lag-seconds",
        type=_seconds,
        default=timedelta(0),
        help="until usage shows in summaries (default: 0)",
    )
    parser.add_argument(
        "--stream-delay-seconds",
        type=_seconds,
        default=timedelta(0),
        help="until what the meter event stream took is judged (default: 0)",
    )
    for name in ("meter-event", "stream"):
        parser.add_argument(f"--{name}-calls-per-second", type=_rate, help="beyond it 429 (default: no limit)")
    parser.add_argument(
        "--processing-seconds", type=_seconds, default=timedelta(0), help="that a request takes (default: 0)"
    )
    return parser


def _seconds(text: str) -> timedelta:
    seconds = float(text)
    if not 0 <= seconds <= SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and {SECONDS_MAX}")
    return timedelta(seconds=seconds)


def _rate(text: str) -> int:
    rate = int(text)
    if rate < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return rate


def _serve(options: argparse.Namespace) -> None:
    listener = bind(options.host, options.port)
    with listener:
        journal = FileJournal(options.journal)
        try:
            core = SimulatedStripe(
                lambda: datetime.now(UTC),
                journal,
                lag=options.lag_seconds,
                stream_delay=options.stream_delay_seconds,
                rate_limits=RateLimits(options.meter_event_calls_per_second, options.stream_calls_per_second),
            )
            sender = WebhookSender(core)
            server = make_server(application(core, options.processing_seconds, sender), sender)
            # uvicorn ends gracefully on these and then raises them again; by then there is nothing left to stop.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: None)
            host, port = listener.getsockname()[:2]
            sys.stdout.write(f"Stripe simulator on http://{host}:{port}, journal {options.journal}\n")
            sys.stdout.flush()
            server.run(sockets=[listener])
        finally:
            journal.close()


if __name__ == "__main__":
    raise SystemExit(main())
