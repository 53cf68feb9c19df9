"""As much of Redis as pub/sub needs, in RESP3: PUBLISH, PSUBSCRIBE with one star at the end, and +OK to the rest."""

from __future__ import annotations

import asyncio


class TinyRedis:
    """What was published is in `published`; `url` is set by who runs it.  `is_deaf`: it hands none on."""

    def __init__(self) -> None:
        self.published: list[tuple[str, str]] = []
        self.subscribers: dict[asyncio.StreamWriter, str] = {}
        self.is_deaf = False

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readline():
                command = [await self._argument(reader) for _ in range(int(head[1:]))]
                writer.write(self._answer(command, writer))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.subscribers.pop(writer, None)
            writer.close()

    async def _argument(self, reader: asyncio.StreamReader) -> str:
        length = int((await reader.readline())[1:])
        return (await reader.readexactly(length + 2))[:-2].decode()

    def _answer(self, command: list[str], writer: asyncio.StreamWriter) -> bytes:
        match command:
            case ["HELLO", *_]:
                return b"%1\r\n$5\r\nproto\r\n:3\r\n"
            case ["PSUBSCRIBE", pattern]:
                self.subscribers[writer] = pattern
                return b">3\r\n" + _bulk("psubscribe") + _bulk(pattern) + b":1\r\n"
            case ["PUBLISH", channel, message]:
                self.published.append((channel, message))
                heard = [] if self.is_deaf else self._listeners(channel)
                for listener in heard:
                    told = ("pmessage", self.subscribers[listener], channel, message)
                    listener.write(b">4\r\n" + b"".join(map(_bulk, told)))
                return b":%d\r\n" % len(heard)
            case ["PING", *_]:
                return b"+PONG\r\n"
        return b"+OK\r\n"

    def _listeners(self, channel: str) -> list[asyncio.StreamWriter]:
        return [writer for writer, pattern in self.subscribers.items() if channel.startswith(pattern.removesuffix("*"))]


def _bulk(text: str) -> bytes:
    encoded = text.encode()
    return b"$%d\r\n%b\r\n" % (len(encoded), encoded)
