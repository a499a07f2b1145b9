"""What stands before the app: the token, the size of a body, time limits, clients that have gone, counting."""

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from pm.counters import Counters

Message = MutableMapping
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

DISCARDED = 64 * 2**20  # bytes of a body that is too large, read so that its sender gets to read the answer
OPEN = ("/", "/health")  # paths that need no token: they tell nothing of the model
CLIENT_GONE = 499  # is only counted: nobody reads the answer


class Gate:
    """ASGI middleware. Reads a body before the app runs, at most `max_body` bytes of it, whatever its head promises,
    and within `body_seconds`; ends an app that takes longer than `seconds`, or whose client has gone. Every answer of
    its own is `{"error": reason}`. `paths` are those that are counted by name."""

    def __init__(self, app: Callable, counters: Counters, paths: frozenset[str], token: str | None, max_body: int,
                 body_seconds: float, seconds: float):
        self.app, self.counters, self.paths = app, counters, paths
        self.token = token
        self.max_body, self.body_seconds, self.seconds = max_body, body_seconds, seconds

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status = time.perf_counter(), CLIENT_GONE

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._answer(scope, receive, counted, lambda: status != CLIENT_GONE)
        finally:
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.counters.request(path, status, time.perf_counter() - started)

    async def _answer(self, scope: Message, receive: Receive, send: Send, has_begun: Callable[[], bool]) -> None:
        admitted = self._admitted(scope)
        try:
            async with asyncio.timeout(self.body_seconds):
                body, size = await _read(receive, self.max_body if admitted else 0)
        except TimeoutError:
            return await refuse(send, 408, f"the body has not come within {self.body_seconds:g} seconds")
        if body is None:
            return
        if not admitted:
            return await refuse(send, 401, "a bearer token is needed: the header 'Authorization: Bearer TOKEN'",
                                ("www-authenticate", "Bearer"))
        if size > self.max_body:
            return await refuse(send, 413, f"the body has more than {self.max_body:,} bytes (--max_body)")
        pending = [{"type": "http.request", "body": body, "more_body": False}]
        gone = asyncio.create_task(_until_gone(receive))

        async def replay() -> Message:
            if not pending:
                await asyncio.wait([gone])
            return pending.pop() if pending else {"type": "http.disconnect"}

        app = asyncio.create_task(self.app(scope, replay, send))
        try:
            done, _ = await asyncio.wait((app, gone), timeout=self.seconds, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:  # by uvicorn, which stops and waits no longer
            done = set()
        finally:
            gone.cancel()
            app.cancel()  # does nothing where it is done
        if app in done:
            return await app
        with suppress(asyncio.CancelledError):
            await app
        if not done and not has_begun():
            await refuse(send, 503, f"no answer within {self.seconds:g} seconds (--timeout), or the server is stopping")

    def _admitted(self, scope: Message) -> bool:
        if self.token is None or scope["path"] in OPEN:
            return True
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], b"Bearer " + self.token.encode())


async def _read(receive: Receive, limit: int) -> tuple[bytes | None, int]:
    """The body, None where the client has gone, and its size; of one beyond the limit nothing is kept."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None, size
        part = message.get("body", b"")
        size += len(part)
        if size <= limit:
            parts.append(part)
        else:
            parts.clear()
        if not message.get("more_body") or size > limit + DISCARDED:
            return b"".join(parts), size


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def refuse(send: Send, status: int, reason: str, *headers: tuple[str, str]) -> None:
    """Answers `{"error": reason}` and ends the connection, on which a rest of the body may still come."""
    body = json.dumps({"error": reason}).encode()
    fields = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close"),
              *headers]
    await send({"type": "http.response.start", "status": status,
                "headers": [(name.encode(), value.encode()) for name, value in fields]})
    await send({"type": "http.response.body", "body": body})


def patient(seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol, which waits for ever for a request's head, with a limit to that."""

    class Protocol(H11Protocol):
        timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self.wait()

        def connection_lost(self, error: Exception | None) -> None:
            self.stop_waiting()
            super().connection_lost(error)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:  # the head is whole
                self.stop_waiting()
            elif not self.timer:
                self.wait()

        def wait(self) -> None:
            self.timer = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

        def stop_waiting(self) -> None:
            if self.timer:
                self.timer.cancel()
                self.timer = None

    return Protocol
