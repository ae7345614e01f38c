"""The routes of the page: its files, and what it may ask of a session. Nothing else of the machine can be reached."""

import asyncio
import contextlib
import importlib.resources
import json
import queue
import re
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from xcnn._check import shown
from xcnn.errors import UsageError, XcnnError
from xcnn.serve.drawing import SIDE
from xcnn.serve.limits import Guard, refusal
from xcnn.serve.session import WHY, Answer, Session, View
from xcnn.serve.wire import finite, pack

__all__ = ["FILES", "Worker", "make_app"]

FILES = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "main.js": "text/javascript; charset=utf-8",
    "server.js": "text/javascript; charset=utf-8",
    "pad.js": "text/javascript; charset=utf-8",
    "maps.js": "text/javascript; charset=utf-8",
    "neuron.js": "text/javascript; charset=utf-8",
}
"""The files of the page and their types."""

_JSON, _BYTES = "application/json", "application/octet-stream"
_LAYERS = re.compile(r"[0-9]{1,5}(:[0-9]{1,6})?(,[0-9]{1,5}(:[0-9]{1,6})?)*", re.ASCII)
_USUAL = 16
"""Maps of a layer in an answer if the page does not say how many."""

_PLACE = list[int]


class Worker:
    """A thread that does one task after the other until it is stopped, or the process ends, in the middle of a task."""

    def __init__(self) -> None:
        self._tasks = queue.SimpleQueue[Callable[[], object] | None]()
        self._thread = threading.Thread(target=self._work, name="xcnn serve: network", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()
            del task

    async def run(self, function: Callable[[], bytes]) -> bytes:
        """Return what a function returns, or raise what it raises, in the thread."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[bytes] = loop.create_future()

        def settle(result: bytes, error: Exception | None) -> None:
            if not done.done():  # cancelled, as the server ends
                done.set_result(result) if error is None else done.set_exception(error)

        def task() -> None:
            result, failure = b"", None
            try:
                result = function()
            except Exception as error:
                failure = error
            with contextlib.suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(settle, result, failure)

        self._tasks.put(task)
        return await done

    def stop(self) -> None:
        """End the thread after the tasks that wait."""
        self._tasks.put(None)


def make_app(session: Session, worker: Worker, port: int, tell: Callable[[str], object]) -> Guard:
    """Return the ASGI application of the page on a session, which listens on a port; for `tell` see `Guard`."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    folder = importlib.resources.files("xcnn.serve") / "static"
    files = {name: (folder / name).read_bytes() for name in FILES}
    about = json.dumps(finite(session.about())).encode()

    async def page(request: Request) -> Response:
        name = request.url.path.removeprefix("/") or "index.html"
        return Response(files[name], media_type=FILES[name])

    async def describe(request: Request) -> Response:
        return Response(about, media_type=_JSON)

    def change(make: Callable[[bytes, View], Answer], kind: str) -> Any:
        """Return the endpoint of a change, whose body is of one content type."""

        async def endpoint(request: Request) -> Response:
            came = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if came != kind:
                raise HTTPException(415, f"the content type must be {kind}, got {shown(came)}")
            view, body = _view(request.query_params.multi_items(), len(session.classes)), await request.body()
            return Response(await worker.run(lambda: pack(*make(body, view))), media_type=_BYTES)

        return endpoint

    async def wrong(request: Request, error: Exception) -> Response:
        return Response(refusal(str(error)), 400, media_type=_JSON)

    async def refused(request: Request, error: HTTPException) -> Response:
        said = {404: "there is no such page", 405: f"{shown(request.method)} is not allowed here"}
        sentence = said.get(error.status_code, error.detail)
        return Response(refusal(sentence), error.status_code, error.headers, _JSON)

    async def failed(request: Request, error: Exception) -> Response:
        return Response(refusal(f"unexpected {type(error).__name__}: {error}"), 500, media_type=_JSON)

    def of_json(function: Callable[..., Answer], **types: Any) -> Any:
        return change(lambda body, view: function(**_values(body, types), view=view), _JSON)

    changes = {
        "look": of_json(session.look),
        "ink": change(lambda body, view: session.ink(_ink(body), view), _BYTES),
        "photo": change(session.photo, _BYTES),
        "example": of_json(session.example, index=int | None),
        "switch": of_json(session.switch, layer=int, channel=int, off=bool),
        "edit": of_json(session.edit, layer=int, parameter=str, index=_PLACE, value=float),
        "step": of_json(session.step, label=int, lr=float),
        "reset": of_json(session.reset),
        "neuron": change(lambda body, view: session.neuron(**_values(body, {"layer": int, "index": _PLACE})), _JSON),
    }
    routes = [Route(f"/{name}" if name != "index.html" else "/", page) for name in FILES]
    routes += [Route("/api/about", describe)]
    routes += [Route(f"/api/{name}", endpoint, methods=["POST"]) for name, endpoint in changes.items()]
    handlers: dict[Any, Any] = {XcnnError: wrong, HTTPException: refused, Exception: failed}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return Guard(app, port, tell)


def _view(pairs: list[tuple[str, str]], classes: int) -> View:
    """Return the view that a query names: `layers=0,1,5:64&target=3&why=grad_cam`."""
    given = dict(pairs)
    if len(given) < len(pairs) or not given.keys() <= {"layers", "target", "why"}:
        came = shown(sorted(name for name, _ in pairs))
        raise UsageError(f"the query may name layers, target and why, each once, got {came}")
    layers, target, why = given.get("layers", ""), given.get("target", ""), given.get("why", WHY[0])
    if layers and not _LAYERS.fullmatch(layers):
        raise UsageError(f"layers must be numbers such as 0,1,5:64, got {shown(layers)}")
    if target and not (re.fullmatch("[0-9]{1,6}", target, re.ASCII) and int(target) < classes):
        raise UsageError(f"target must be the number of a class, below {classes}, got {shown(target)}")
    if why not in WHY:
        raise UsageError(f"why must be {', '.join(WHY)}, got {shown(why)}")
    counts = {}
    for entry in filter(None, layers.split(",")):
        place, _, count = entry.partition(":")
        counts[int(place)] = int(count or _USUAL)
    return View(counts, int(target) if target else None, why)


def _ink(body: bytes) -> Any:
    if len(body) != SIDE * SIDE:
        raise UsageError(f"a drawing has {SIDE} x {SIDE} bytes, got {len(body)}")
    return np.frombuffer(body, np.uint8).reshape(SIDE, SIDE)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _values(body: bytes, types: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a JSON object that has exactly some names, after checking their types."""
    try:
        found = json.loads(body or b"{}", parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the body is not JSON ({str(error).splitlines()[0]})") from None
    if not isinstance(found, dict) or found.keys() != types.keys():
        came = shown(sorted(found)) if isinstance(found, dict) else type(found).__name__
        raise UsageError(f"the body must be an object with {', '.join(types) or 'nothing'}, got {came}")
    return {name: _value(name, found[name], kind) for name, kind in types.items()}


def _value(name: str, value: Any, kind: Any) -> Any:
    small = type(value) is int and abs(value) < 2**31
    if kind is _PLACE:
        if isinstance(value, list) and len(value) <= 8 and all(type(i) is int and abs(i) < 2**31 for i in value):
            return tuple(value)
        raise UsageError(f"{name} must be a list of integers, got {shown(value)}")
    if kind is float:
        if small or (type(value) is float and np.isfinite(value)):
            return float(value)
        raise UsageError(f"{name} must be a number, got {shown(value)}")
    if small and kind in (int, int | None):
        return value
    if (value is None and kind == int | None) or (type(value) is kind and kind is not int):
        return value
    words = {int: "an integer", bool: "true or false", str: "a string"}.get(kind, "an integer or null")
    raise UsageError(f"{name} must be {words}, got {shown(value)}")
