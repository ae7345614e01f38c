"""What the page of `xcnn serve` does, over HTTP, for the tests of its server."""

import contextlib
import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xcnn import nn
from xcnn.runs import Checkpoint, restore, save_checkpoint
from xcnn.serve import limits
from xcnn.serve.server import Server
from xcnn.serve.session import Session, View
from xcnn.serve.wire import unpack

__all__ = ["BYTES", "JSON", "Arrays", "Page", "digits", "serving", "unlimited"]

for package in ("starlette", "uvicorn"):  # otherwise files that import this are skipped
    pytest.importorskip(package, reason=f"{package} is not installed (extra serve)")

Arrays = dict[Any, np.ndarray]
JSON, BYTES = "application/json", "application/octet-stream"


class Page:
    """What the page does, over HTTP."""

    def __init__(self, session: Session) -> None:
        self.session, self.told = session, list[str]()
        self.server = Server(session, 0, self.told.append)

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=20)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        finally:
            connection.close()

    def ask(self, name: str, body: Any = None, kind: str = JSON, query: str = "") -> tuple[dict[str, Any], Arrays]:
        """Return the header and the arrays by kind, those of layers by (kind, layer)."""
        sent = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
        status, _, answer = self.request("POST", f"/api/{name}{query}", sent, {"Content-Type": kind})
        assert status == 200, answer
        header, arrays = unpack(answer)
        keys = [row["kind"] if "layer" not in row else (row["kind"], row["layer"]) for row in header["arrays"]]
        return header, dict(zip(keys, arrays, strict=True))

    def refused(self, name: str, body: Any, kind: str = JSON, query: str = "") -> str:
        """Return the sentence with which a change is refused."""
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, _, answer = self.request("POST", f"/api/{name}{query}", sent, {"Content-Type": kind})
        assert 400 <= status < 500, answer
        return str(json.loads(answer)["error"])


def digits(folder: Path) -> Path:
    """Save a network for the digits with random weights."""
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(192, 10)),
    )
    model.reset_parameters(0)
    about = Checkpoint("", (1, 8, 8), tuple("0123456789"), "digits", statistics={"border": 0.17})
    return save_checkpoint(folder / "digits.safetensors", model, about)


@contextlib.contextmanager
def serving(checkpoint: Path) -> Iterator[Page]:
    """Serve a network, and yield its page."""
    page = Page(Session(restore(checkpoint)))
    with page.server:
        while not page.server.started:
            time.sleep(0.01)
        yield page


def unlimited(page: Page, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    """Yield the page on the trained network, which takes any number of requests; nothing unexpected may be told."""
    monkeypatch.setattr(limits, "_BURST", 1e9)
    monkeypatch.setattr(limits, "_PER_SECOND", 1e9)
    page.session.reset(View())
    page.told.clear()
    yield page
    assert page.told == []
