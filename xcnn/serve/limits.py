"""Refuse requests that the page does not send: from other sites, too large, too slow, too many at a time.

The server listens on the loopback address only. Other web sites can still make the user's browser send requests to it,
which the checks of `Host` (DNS rebinding) and `Origin` (cross-site requests) refuse.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from xcnn.errors import printable
from xcnn.serve.session import MOST_BYTES

__all__ = ["HEADERS", "Guard", "refusal"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_MOST_BYTES = {"/api/photo": MOST_BYTES}
_MOST_OTHER_BYTES = 2**16
_BODY_SECONDS = 10.0
_AT_ONCE = 16
_PER_SECOND, _BURST = 200.0, 400.0

HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Headers of every answer: the page runs its own scripts only, and reaches nothing but its own server."""


def refusal(sentence: str) -> bytes:
    """Return the JSON of an answer that says in a sentence why a request is refused."""
    return json.dumps({"error": printable(sentence)}).encode()


class Guard:
    """The ASGI application around that of the page: checks each request, and passes it on with its whole body.

    Parameters
    ----------
    app : the application.
    port : the port that `Host` must name.
    tell : called with a sentence for each kind of error that is not the client's fault, once.
    """

    def __init__(self, app: Any, port: int, tell: Callable[[str], object]) -> None:
        self._app, self._tell = app, tell
        self._hosts = {f"{name}:{port}".encode() for name in ("127.0.0.1", "localhost", "[::1]")}
        if port == 80:
            self._hosts |= {b"127.0.0.1", b"localhost", b"[::1]"}
        self._running, self._told = 0, set[str]()
        self._allowance, self._since = _BURST, time.monotonic()

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer a request."""
        begun = False

        async def answer(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                own = {name.lower() for name, _ in message.get("headers", ())}
                more = [(n.encode(), v.encode()) for n, v in HEADERS.items() if n.encode() not in own]
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        async def refuse(status: int, sentence: str) -> None:
            body = refusal(sentence)
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            headers += [(b"connection", b"close")] if status == 408 else []
            headers += [(b"retry-after", b"1")] if status in (429, 503) else []
            await answer({"type": "http.response.start", "status": status, "headers": headers})
            await answer({"type": "http.response.body", "body": body if scope["method"] != "HEAD" else b""})

        if scope["type"] != "http":
            return
        wrong = self._wrong(scope)
        if wrong is not None:
            await refuse(*wrong)
            return
        self._running += 1
        try:
            body = await self._body(scope["path"], receive)
            if not isinstance(body, bytes):
                await refuse(*body)
                return
            rest = iter([{"type": "http.request", "body": body, "more_body": False}])

            async def given() -> Message:
                return next(rest, None) or await receive()

            await self._app(scope, given, answer)
        except ConnectionError:  # the client has gone
            return
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            if what not in self._told and len(self._told) < 100:
                self._told.add(what)
                self._tell(f"unexpected {what} (in {scope['path']})")
            if not begun:
                await refuse(500, f"unexpected {what}")
        finally:
            self._running -= 1

    def _wrong(self, scope: Any) -> tuple[int, str] | None:
        """Return the status and a sentence for a request that is refused whatever its body is."""
        hosts, origins, sites, lengths = (
            [value for key, value in scope["headers"] if key == name]
            for name in (b"host", b"origin", b"sec-fetch-site", b"content-length")
        )
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return 421, "the page is only served under 127.0.0.1 and localhost, with its own port"
        ours = [b"http://" + hosts[0]]
        if scope["method"] == "POST" and (origins not in ([], ours) or sites not in ([], [b"same-origin"], [b"none"])):
            return 403, "requests of other web sites are refused"
        if lengths and (len(lengths[0]) > 12 or int(lengths[0]) > _limit(scope["path"])):
            return 413, f"the body is longer than {_limit(scope['path'])} bytes"
        if scope["method"] == "POST":
            now = time.monotonic()
            self._allowance = min(_BURST, self._allowance + (now - self._since) * _PER_SECOND)
            self._since = now
            if self._allowance < 1:
                return 429, f"more than {_PER_SECOND:g} requests per second; try again in a second"
            self._allowance -= 1
        if self._running >= _AT_ONCE:
            return 503, f"{_AT_ONCE} requests are being answered; try again in a second"
        return None

    async def _body(self, path: str, receive: Receive) -> bytes | tuple[int, str]:
        """Return the body, or the status and a sentence if it does not come in time or is too long."""
        body, limit = bytearray(), _limit(path)
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionError
                    body += message.get("body", b"")
                    if len(body) > limit:  # a body in chunks has no Content-Length
                        return 413, f"the body is longer than {limit} bytes"
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            return 408, f"the body did not come within {_BODY_SECONDS:g} seconds"


def _limit(path: str) -> int:
    return _MOST_BYTES.get(path, _MOST_OTHER_BYTES)
