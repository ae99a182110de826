"""The way of a request: ASGI middleware that answers `/predict`, `/info` and `/docs.json`; the rest is BentoML's.

A request that is answered here is spared BentoML's typed parsing and its spans, which cost ten times the model.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import bentoml
import orjson

from ml.serving.body import RequestError

LARGE = 16_384  # bytes; a larger body is checked and scored in a thread
LANES = 2  # of these threads
HELD = 32  # times limits.bytes that large bodies may take together
LINGER = 16  # times limits.bytes that are still read, and thrown away, after a refusal
SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
JSON = (b"content-type", b"application/json")
CLOSE = (b"connection", b"close")
WARM = 50  # first predictions; ONNX Runtime and Python's own caches need a few
SWITCH = 0.0005
SCOPE: dict[str, Any] = {"type": "http", "http_version": "1.1", "scheme": "http", "method": "GET", "headers": []}
SCOPE |= {"asgi": {"version": "3.0"}, "query_string": b"", "root_path": "", "client": None, "server": None}
Header = tuple[bytes, bytes]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Head:
    """What the headers of a request say, as far as it is of interest here."""

    def __init__(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        found = dict(headers)
        self.kind = found.get(b"content-type", b"").split(b";")[0].strip().lower()
        self.length = int(found.get(b"content-length", 0))
        self.encoding = found.get(b"content-encoding", b"").strip().lower()
        identity = found.get(b"x-request-id", b"")
        self.identity = identity if SANE_ID.fullmatch(identity) else os.urandom(8).hex().encode()

    def refuse(self, most_bytes: int) -> None:
        """Raise RequestError for a body that need not be read."""
        if self.kind not in (b"", b"application/json"):
            raise RequestError(f"content-type {_text(self.kind)}, must be application/json", status=415)
        if self.encoding not in (b"", b"identity"):
            raise RequestError(f"content-encoding {_text(self.encoding)} is not taken, send it plain", status=415)
        if self.length > most_bytes:
            raise too_large(most_bytes)


def too_large(most_bytes: int) -> RequestError:
    """Return the refusal of a body that is too large."""
    return RequestError(f"the body is larger than {most_bytes} bytes", status=413)


def _text(value: bytes) -> str:
    return value[:60].decode("latin-1")


class Routes:
    """ASGI middleware around BentoML's application."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.draining = False
        self.held = 0
        # More than one, so that one body is read while the model scores another; never two of them in Python, where
        # they would take turns from each other and from the small requests.
        self.pool, self.turn = ThreadPoolExecutor(LANES, "large-bodies"), threading.Lock()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, self._warm_before(scope, send))
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        head = Head(scope["headers"])
        match scope["path"], scope["method"]:
            case "/predict", "POST":
                await self._predict(scope, head, receive, send)
            case "/info", "GET":
                await self._answer(send, head, 200, self.service.info)
            case "/docs.json", "GET":
                await self._answer(send, head, 200, self.service.document)
            case "/predict" | "/info" | "/docs.json" as path, method:
                allowed = b"POST" if path == "/predict" else b"GET"
                error = RequestError(f"{method} is not allowed, {allowed.decode()} is", status=405)
                await self._refuse(send, head, error, (b"allow", allowed))
            case "/readyz", _ if self.draining:
                await self._refuse(send, head, RequestError("the service is going down", status=503))
            case _:
                await self.app(scope, receive, self._named(send, head))

    async def _predict(self, scope: Message, head: Head, receive: Receive, send: Send) -> None:
        try:
            head.refuse(self.service.most_bytes)
            message = await receive()
            body = message.get("body", b"")
            if message.get("more_body") or len(body) > LARGE or self.service.batching:
                answer = await self._slowly(scope, head, message, receive)
            else:
                answer = self.service.respond(body, head.identity)
            await self._answer(send, head, 200, answer)
        except RequestError as error:
            await self._refuse(send, head, error, receive=receive)

    async def _slowly(self, scope: Message, head: Head, message: Message, receive: Receive) -> bytes:
        """Return the answer to a body that is not here yet, or takes long, or is scored with others."""
        body = b""
        try:
            async with asyncio.timeout(self.service.timeout):
                body = await self._whole(message, receive)
                if self.service.batching:
                    return await self._batched(scope, head, body)
                if len(body) <= LARGE:
                    return self.service.respond(body, head.identity)
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self.pool, self.service.respond, body, head.identity, self.turn)
        except TimeoutError:
            error = f"not answered in {self.service.timeout:g} s" if body else "the body did not arrive in time"
            raise RequestError(error, status=504 if body else 408) from None
        finally:
            self.held -= len(body)

    async def _whole(self, message: Message, receive: Receive) -> bytes:
        """Return the body, which `held` then counts; raise RequestError as soon as it is too large."""
        parts, size, most = [], 0, self.service.most_bytes
        try:
            while True:
                if message["type"] == "http.disconnect":
                    raise RequestError("the client has left", status=408)
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                self.held += len(parts[-1])
                if size > most:
                    raise too_large(most)
                if self.held > HELD * most:
                    raise RequestError("too many large bodies at once, ask again", status=503)
                if not message.get("more_body"):
                    return b"".join(parts)
                message = await receive()
        except BaseException:
            self.held -= size
            raise

    async def _batched(self, scope: Message, head: Head, body: bytes) -> bytes:
        """Return the answer that BentoML's adaptive batching gives to checked rows."""
        rows = self.service.checked(body)[0]
        inner = orjson.dumps({"rows": rows})
        headers = [JSON, (b"content-length", str(len(inner)).encode())]
        status, content = await asked(self.app, {**scope, "headers": headers}, inner)
        if status != 200:
            raise RequestError("too many requests at once, ask again", status=503)
        return self.service.answered(rows, orjson.loads(content), head.identity)

    async def _answer(self, send: Send, head: Head, status: int, body: bytes, *more: Header, ends: bool = True) -> None:
        headers = [JSON, (b"content-length", b"%d" % len(body)), (b"x-request-id", head.identity), *more]
        if self.draining:
            headers.append(CLOSE)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": not ends})

    async def _refuse(
        self, send: Send, head: Head, error: RequestError, *more: Header, receive: Receive | None = None
    ) -> None:
        body = orjson.dumps(error.answer())
        if receive is None or error.status == 400:
            return await self._answer(send, head, error.status, body, *more)
        await self._answer(send, head, error.status, body, *more, CLOSE, ends=False)
        # Closed while the client still sends, the connection is reset, and the answer may be lost with it.
        left = LINGER * self.service.most_bytes
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                message: Message = {"more_body": True}
                while left > 0 and message.get("more_body"):
                    message = await receive()
                    left -= len(message.get("body", b""))
        await send({"type": "http.response.body", "body": b""})

    def _named(self, send: Send, head: Head) -> Send:
        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = [(b"x-request-id", head.identity), *([CLOSE] if self.draining else [])]
                message = {**message, "headers": [*message.get("headers", []), *more]}
            await send(message)

        return named

    def _warm_before(self, scope: Message, send: Send) -> Send:
        async def started(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                await self._start(scope["app"])
            await send(message)

        return started

    async def _start(self, whole: App) -> None:
        """Answer for the first time before anybody asks: the server takes connections only after this."""
        self.service = bentoml.get_current_service()
        loop = asyncio.get_running_loop()
        for _ in range(WARM):
            self.service.warm_up()
        await asyncio.gather(*(loop.run_in_executor(self.pool, self.service.warm_up) for _ in range(LANES)))
        await asked(whole, {**SCOPE, "path": "/livez", "raw_path": b"/livez"})
        # What is here stays; the collector must not walk it again, nor stop requests as often as by default.
        gc.collect()
        gc.freeze()
        gc.set_threshold(100_000, 50, 1000)
        # A thread that scores gives way after this many seconds.
        sys.setswitchinterval(SWITCH)
        if threading.current_thread() is threading.main_thread():
            self._drain_on(signal.SIGTERM, loop)

    def _drain_on(self, number: signal.Signals, loop: asyncio.AbstractEventLoop) -> None:
        """Go on answering for `serve.drain` seconds while `/readyz` says no, and end then."""
        end = signal.getsignal(number)

        def drain(number: int, frame: Any) -> None:
            wait = 0 if self.draining else self.service.drain
            self.draining = True
            loop.call_soon_threadsafe(loop.call_later, wait, end, number, None)

        if callable(end):
            signal.signal(number, drain)


async def asked(app: App, scope: Message, body: bytes = b"") -> tuple[int, bytes]:
    """Return status and body of what an application answers to a request that is all here."""
    status, parts = 0, []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        status = message.get("status", status)
        parts.append(message.get("body", b""))

    await app(scope, receive, send)
    return status, b"".join(parts)
