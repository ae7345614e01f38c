"""Listen on the loopback address, and serve the page until it is told to stop."""

import asyncio
import contextlib
import errno
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from xcnn._check import integer
from xcnn.errors import UsageError, XcnnError
from xcnn.serve.app import Worker, make_app
from xcnn.serve.limits import HEADERS, refusal
from xcnn.serve.session import Session

__all__ = ["Server", "check", "serve"]

_HEAD_SECONDS = 10.0
"""The longest that a connection may be open without a complete request head."""

_CONNECTIONS = 64
"""How many may be open; more are closed at once. A browser opens six."""

_READ_SECONDS = 30.0
"""The longest that an answer may wait for its client to read it."""

_LAST_SECONDS = 1
"""How long the server waits for the end of what is being answered or refused, before it closes."""


def check(port: int = 0) -> None:
    """Raise what `Server` would: an XcnnError if a package is missing, a UsageError if the port cannot be used."""
    try:
        import starlette
        import uvicorn
    except ImportError as error:
        raise XcnnError(f"the page needs {error.name}, which is not installed: pip install 'xcnn[serve]'") from None
    del starlette, uvicorn
    _bound(port).close()


class Server:
    """A server on 127.0.0.1 only; inside a `with` it runs in a thread.

    There is no other address to choose: the page changes weights and has no password. To see it on another machine,
    forward the port (`ssh -L 8000:127.0.0.1:8000 HOST`), which asks for one.

    Parameters
    ----------
    session : what it serves.
    port : the port; 0 takes any that is free.
    tell : called with sentences on unexpected errors.

    Attributes
    ----------
    port : the port.
    url : the address of the page.

    Raises
    ------
    UsageError
        If the port cannot be used.
    XcnnError
        If Starlette or Uvicorn is not installed.
    """

    def __init__(self, session: Session, port: int = 8000, tell: Callable[[str], object] = lambda said: None) -> None:
        check()
        self._socket = _bound(port)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self._worker = Worker()
        self._server = _uvicorn(make_app(session, self._worker, self.port, tell))
        self._thread: threading.Thread | None = None

    def run(self) -> None:
        """Serve until Ctrl-C, which raises KeyboardInterrupt, or `stop`."""
        try:
            with self._socket:
                self._server.run(sockets=[self._socket])
        finally:
            self._worker.stop()

    def stop(self) -> None:
        """Let `run` return; from any thread."""
        self._server.should_exit = True

    @property
    def started(self) -> bool:
        """Whether requests are answered; those that come before wait."""
        return bool(self._server.started)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.run, name="xcnn serve")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.stop()
        if self._thread is not None:
            self._thread.join()


def serve(session: Session, port: int = 8000, tell: Callable[[str], object] = print) -> None:
    """Serve the page of a session until Ctrl-C; `tell` is called with its address. For errors see `Server`."""
    server = Server(session, port, tell)
    tell(server.url)
    server.run()


def _bound(port: int) -> socket.socket:
    """Return a socket that is bound to a port of 127.0.0.1, before anything is announced."""
    try:
        integer("serve", "port", port, 0, 65535)
    except UsageError as error:
        error.setting = "port"
        raise
    # With the protocol named, asyncio sends every part of an answer at once. Otherwise a part waits up to 40 ms.
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    with contextlib.suppress(OSError):
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # on Windows, where the other option shares ports
            made.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind(("127.0.0.1", port))
        made.listen()
    except OSError as error:
        made.close()
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror or error})"
        raise UsageError(
            f"port {port} {reason}; choose another one, or 0 for any that is free", setting="port"
        ) from None
    return made


def _uvicorn(app: Any) -> Any:
    """Return the server of an ASGI application, with connections that cannot be kept open for nothing."""
    import h11
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Connection(H11Protocol):  # type: ignore[misc]
        """A connection that is closed if no complete request comes in time, and answers what is not HTTP in JSON."""

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._patience: asyncio.TimerHandle | None = self.loop.call_later(_HEAD_SECONDS, self._too_slow)
            self._unread: asyncio.TimerHandle | None = None
            self._refused = False
            transport.set_write_buffer_limits(0)  # `pause_writing` is called as soon as anything waits
            if len(self.connections) > _CONNECTIONS:
                transport.abort()

        def data_received(self, data: bytes) -> None:
            if self._refused:
                return
            super().data_received(data)
            if self._busy() and self._patience is not None:
                self._patience.cancel()
                self._patience = None

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if not self.transport.is_closing() and not self._busy() and self._patience is None:
                self._patience = self.loop.call_later(_HEAD_SECONDS, self._too_slow)

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in filter(None, (self._patience, self._unread)):
                timer.cancel()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread = self.loop.call_later(_READ_SECONDS, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._unread is not None:
                self._unread.cancel()

        def eof_received(self) -> bool | None:
            if self._refused:
                return None
            if self._busy():
                if not self.cycle.more_body:
                    self.cycle.keep_alive = False
                    return True  # all has come; the answer is sent before the connection is closed
                self.refuse(400, "the body is shorter than its Content-Length")
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            elif self.conn.trailing_data[0]:
                self.refuse(400, "the request is incomplete")
            return None

        def send_400_response(self, msg: str) -> None:
            self.refuse(400, "this is not an HTTP request")

        def refuse(self, status: int, sentence: str) -> None:
            """Answer with a sentence, unless an answer has begun, and close the connection.

            What still comes is read and dropped for a moment: if it were not, the client might never see the answer.
            """
            if self.transport.is_closing() or self._refused:
                return
            self._refused = True
            body = refusal(sentence)
            own = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
            with contextlib.suppress(h11.LocalProtocolError):
                start = h11.Response(status_code=status, headers=list({**own, **HEADERS}.items()))
                for event in (start, h11.Data(data=body), h11.EndOfMessage()):
                    self.transport.write(self.conn.send(event))
                self.transport.write_eof()
            self.loop.call_later(_LAST_SECONDS, self.transport.close)

        def _busy(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _too_slow(self) -> None:
            self._patience = None
            if self.conn.trailing_data[0]:
                self.refuse(408, f"no complete request came within {_HEAD_SECONDS:g} seconds")
            else:
                self.transport.close()

    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        loop="asyncio",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="critical",  # errors are told by `Guard`
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=_LAST_SECONDS,
        backlog=_CONNECTIONS,
    )
    return uvicorn.Server(config)
