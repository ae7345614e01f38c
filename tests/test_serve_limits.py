"""The page's server refuses what the page does not send, and ends as it should."""

import functools
import http.client
import importlib
import json
import logging
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serve_page import BYTES, JSON, Page, digits, serving, unlimited

from xcnn.errors import UsageError, XcnnError
from xcnn.serve import app as app_room
from xcnn.serve import limits
from xcnn.serve import server as server_room
from xcnn.serve.server import Server
from xcnn.serve.session import Session, View


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def running(checkpoint: Path) -> Iterator[Page]:
    with serving(checkpoint) as page:
        yield page


@pytest.fixture
def page(running: Page, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    yield from unlimited(running, monkeypatch)


def test_the_page_and_nothing_else_is_served(page: Page) -> None:
    folder = Path(app_room.__file__).parent / "static"
    assert {file.name for file in folder.iterdir()} == set(app_room.FILES)
    for name, kind in app_room.FILES.items():
        status, headers, body = page.request("GET", f"/{name}" if name != "index.html" else "/")
        assert (status, headers["content-type"]) == (200, kind)
        assert body == (folder / name).read_bytes()
        assert headers["x-content-type-options"] == "nosniff"
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
    index = (folder / "index.html").read_text("utf-8")
    assert not re.search(r"https?:|<script(?! type=\"module\" src=)|\son\w+=|style=", index)
    for path in (
        "/index.html/../x",
        "/../app.py",
        "/%2e%2e/app.py",
        "/static/main.js",
        "//etc/passwd",
        "/api/",
        "/main.js/",
    ):
        assert page.request("GET", path)[0] == 404, path
    assert page.request("GET", "/api/look")[0] == 405
    assert page.request("POST", "/")[0] == 405
    assert page.request("OPTIONS", "/api/step", headers={"Origin": "http://a.example"})[0] == 405


def test_requests_of_other_sites_are_refused(page: Page) -> None:
    port, ours = page.server.port, {"Content-Type": JSON}
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", "127.0.0.1:1", f"127.0.0.1.evil.example:{port}"):
        status, headers, _ = page.request("GET", "/", headers={"Host": host})
        assert status == 421
        assert "content-security-policy" in headers
    assert raw(page, b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 421")
    for host in (f"localhost:{port}", f"[::1]:{port}", f"LOCALHOST:{port}"):
        assert page.request("GET", "/", headers={"Host": host})[0] == 200
    for origin in ("http://evil.example", "null", f"https://127.0.0.1:{port}", f"http://localhost:{port}"):
        assert page.request("POST", "/api/reset", b"{}", {**ours, "Origin": origin})[0] == 403
    assert page.request("POST", "/api/reset", b"{}", {**ours, "Origin": f"http://127.0.0.1:{port}"})[0] == 200
    assert page.request("POST", "/api/reset", b"{}", {**ours, "Sec-Fetch-Site": "cross-site"})[0] == 403
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):  # those that need no preflight
        assert page.request("POST", "/api/reset", b"{}", {"Content-Type": kind})[0] == 415


def test_long_bodies_are_refused_before_they_have_come(page: Page) -> None:
    for path, limit in (("/api/look", 2**16), ("/api/photo", 2**24)):
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{page.server.port}\r\nContent-Type: {JSON}\r\n"
        assert raw(page, f"{head}Content-Length: {limit + 1}\r\n\r\n".encode()).startswith(b"HTTP/1.1 413")
    parts = b"".join(b"%x\r\n%b\r\n" % (2**15, b"x" * 2**15) for _ in range(3))
    head = f"POST /api/look HTTP/1.1\r\nHost: 127.0.0.1:{page.server.port}\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert raw(page, head.encode() + parts).startswith(b"HTTP/1.1 413")


def raw(page: Page, data: bytes, finish: bool = False, timeout: float = 20) -> bytes:
    """Return the answer to bytes on a connection of their own; `finish` says that no more will come."""
    with socket.create_connection(("127.0.0.1", page.server.port), timeout=timeout) as connection:
        answer = b""
        try:
            connection.sendall(data)
            if finish:
                connection.shutdown(socket.SHUT_WR)
            while b"\r\n\r\n" not in answer and (came := connection.recv(65536)):
                answer += came
        except (BrokenPipeError, ConnectionResetError):  # it has answered before all was sent
            pass
        return answer


def malformed(page: Page, draw: random.Random) -> bytes:
    """Return one of many kinds of request that no page sends."""
    host = f"Host: 127.0.0.1:{page.server.port}\r\n"
    junk = draw.randbytes(draw.randrange(1, 300))
    long = "a" * 10**6
    word = "".join(draw.choices("abcdefgh/.%0123&=?", k=draw.randrange(1, 40)))
    names = ["look", "example", "switch", "edit", "step", "reset", "neuron", "ink", "photo"]
    name = draw.choice(names)

    def post(body: bytes, more: str = "", kind: str = JSON, path: str = "", length: Any = None) -> bytes:
        size = len(body) if length is None else length
        head = f"POST {path or f'/api/{name}'} HTTP/1.1\r\n{host}Content-Type: {kind}\r\n"
        return f"{head}Content-Length: {size}\r\n{more}\r\n".encode() + body

    value = draw.choice([None, True, -1, 10**30, 1.5, -1e308, "x" * 5000, [], {}, [[]], "NaN", [1, None], [10**9] * 4])
    fields = {"layer": 0, "channel": 0, "off": True, "index": [0, 0], "parameter": "weight", "value": 1.0, "label": 1}
    wrong = {**fields, "lr": 0.1, draw.choice([*fields, "lr", "path", "model"]): value}
    bodies = [
        junk, b"", b"[" * 20_000, b'{"a":' * 5000, b"NaN", b'{"label": NaN, "lr": 0.1}',
        b'{"label": 1, "lr": Infinity}', b'{"label": 1, "lr": 1e999}', b'{"index": ' + b"9" * 6000 + b"}",
        b'"x"', b"null", b"\xff\xfe", b"{'a': 1}", json.dumps(wrong).encode(),
    ]  # fmt: skip
    body = draw.choice(bodies)
    name = draw.choice([one for one in names if one not in ("look", "reset")]) if body == b"" else name
    method = draw.choice(["PUT", "DELETE", "PATCH", "BREW", "TRACE", "CONNECT", "OPTIONS", "get"])
    query = draw.choice(["layers=-1", "layers=1;2", "layers=1:2:3", "target=99", "why=x", "a=1", "target=1&target=2"])
    traversals = ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/..%2fapp.py", "//etc/passwd", "/static/../app.py"]
    chunked = f"POST /api/look HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n".encode()
    kinds: list[Callable[[], bytes]] = [
        lambda: junk,
        lambda: junk + b"\r\n\r\n",
        lambda: f"GET /x{word}".encode(),
        lambda: f"GET /x{word} HTTP/1.1\r\n{host}\r\n".encode(),
        lambda: f"GET / HTTP/{draw.choice(['2', 'x', '1.1.1', ''])}\r\n{host}\r\n".encode(),
        lambda: f"GET {draw.choice(traversals)} HTTP/1.1\r\n{host}\r\n".encode(),
        lambda: f"{method} /api/{name} HTTP/1.1\r\n{host}\r\n".encode(),
        lambda: f"GET / HTTP/1.1\r\nHost: {word}\r\n\r\n".encode(),
        lambda: b"GET / HTTP/1.1\r\n\r\n",
        lambda: f"GET / HTTP/1.1\r\n{host}{host}\r\n".encode(),
        lambda: f"GET / HTTP/1.1\r\n{host}{long}: 1\r\n\r\n".encode(),
        lambda: f"GET / HTTP/1.1\r\n{host}Bad Header\r\n\r\n".encode(),
        lambda: post(b"{}", more=f"Origin: http://{word}\r\n", path="/api/reset"),
        lambda: post(b"{}", kind=word, path="/api/reset"),
        lambda: post(body),
        lambda: post(body),
        lambda: post(body),
        lambda: post(junk, kind=BYTES, path=draw.choice(["/api/ink", "/api/photo"])),
        lambda: post(b"{}", path=f"/api/look?{query}"),
        lambda: post(b'{"label": 1, "lr": 0.1}', path="/api/step", length=draw.choice(["-1", "x", 10**12, 5, 99])),
        lambda: chunked + draw.choice([b"xyz\r\n", b"-5\r\n", b"5\r\nab\r\n0\r\n\r\n", b"ffffffffffffffffffff\r\n"]),
    ]
    return draw.choice(kinds)()


def test_a_thousand_malformed_requests_change_nothing(
    page: Page, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    draw = random.Random(0)
    before = page.session.model.state_dict()
    statuses: dict[bytes, int] = {}
    with caplog.at_level(logging.DEBUG):
        for _ in range(1000):
            request = malformed(page, draw)
            answer = raw(page, request, finish=True)
            status = answer[9:12]
            statuses[status] = statuses.get(status, 0) + 1
            assert answer.startswith(b"HTTP/1.1 4"), (request[:300], answer)
    assert set(statuses) >= {b"400", b"403", b"404", b"405", b"413", b"415", b"421"}, statuses
    assert page.told == []
    assert [record for record in caplog.records if record.name != "asyncio"] == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert capfd.readouterr() == ("", "")
    after = page.session.model.state_dict()
    assert all(np.array_equal(after[name], before[name]) for name in before)
    assert page.ask("look")[0]["off"] == {}
    assert page.request("GET", "/")[0] == 200


def test_slow_clients_are_sent_away(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_room, "_HEAD_SECONDS", 0.2)
    monkeypatch.setattr(limits, "_BODY_SECONDS", 0.2)
    host = f"Host: 127.0.0.1:{page.server.port}\r\n"
    assert raw(page, b"") == b""  # connected, and silent
    answer = raw(page, f"GET / HTTP/1.1\r\n{host}".encode())
    assert answer.startswith(b"HTTP/1.1 408")
    answer = raw(page, f"POST /api/look HTTP/1.1\r\n{host}Content-Length: 5\r\n\r\n{{".encode())
    assert answer.startswith(b"HTTP/1.1 408")


def all_closed(page: Page, answered: int = 0) -> bool:
    """Return whether no connection is open any more, after a number of answers."""
    state, deadline = page.server._server.server_state, time.monotonic() + 20
    while (state.connections or state.total_requests < answered) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not state.connections


def test_clients_that_do_not_read_are_sent_away(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_room, "_READ_SECONDS", 0.2)
    request = f"GET /main.js HTTP/1.1\r\nHost: 127.0.0.1:{page.server.port}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", page.server.port), timeout=20) as client:
        answered = page.server._server.server_state.total_requests
        client.sendall(request * 800)  # more than the system keeps for a client that reads nothing
        assert all_closed(page, answered + 1)
        assert page.server._server.server_state.total_requests < answered + 800
    whole = page.request("GET", "/main.js")[2]
    with socket.create_connection(("127.0.0.1", page.server.port), timeout=20) as client:
        client.sendall(request * 20)
        answers = b""
        while answers.count(whole) < 20:  # one that reads is answered
            answers += client.recv(2**20)


def test_too_many_connections_are_closed(
    page: Page, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server_room, "_CONNECTIONS", 5)
    monkeypatch.setattr(server_room, "_HEAD_SECONDS", 60.0)  # none is closed for being silent
    assert all_closed(page)
    clients = [socket.create_connection(("127.0.0.1", page.server.port), timeout=20) for _ in range(50)]
    closed = 0
    for client in reversed(clients):  # the first five stay open
        try:
            closed += client.recv(1) == b"" if closed < 45 else 0
        except ConnectionResetError:
            closed += 1
    assert closed == 45
    for client in clients:
        client.close()
    assert all_closed(page)
    assert page.request("GET", "/")[0] == 200
    assert capfd.readouterr() == ("", "")


def test_too_many_requests_are_refused(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_AT_ONCE", 1)
    statuses: list[int] = []

    def look() -> None:
        statuses.append(page.request("POST", "/api/look", b"{}", {"Content-Type": JSON})[0])

    with page.session._lock:  # the first waits for it
        first = threading.Thread(target=look)
        first.start()
        status, deadline = 200, time.monotonic() + 20
        while status != 503 and time.monotonic() < deadline:
            status, headers, _ = page.request("GET", "/")
    assert (status, headers["retry-after"]) == (503, "1")
    first.join()
    assert statuses == [200]
    monkeypatch.setattr(limits, "_BURST", 2.0)
    monkeypatch.setattr(limits, "_PER_SECOND", 0.0)
    for _ in range(4):
        look()
    assert statuses == [200, 200, 200, 429, 429]


def test_the_process_can_end_while_the_network_runs(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    ends, run = [], page.session._run

    def watched() -> Any:
        ends.append(threading.current_thread().daemon)  # which the interpreter does not wait for
        return run()

    monkeypatch.setattr(page.session, "_run", watched)
    page.ask("look")
    assert set(ends) == {True}


def test_an_unexpected_error_is_told_once(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page.session, "_run", lambda: 1 / 0)
    for _ in range(3):
        status, _, body = page.request("POST", "/api/look", b"{}", {"Content-Type": JSON})
        assert (status, json.loads(body)) == (500, {"error": "unexpected ZeroDivisionError: division by zero"})
    assert page.told == ["unexpected ZeroDivisionError: division by zero (in /api/look)"]
    page.told.clear()


def test_it_listens_on_the_loopback_address_only(page: Page) -> None:
    if not Path("/proc/net/tcp").exists():
        pytest.skip("no /proc/net/tcp on this system")
    wanted = f"{page.server.port:04X}"
    addresses = []
    for table in ("tcp", "tcp6"):
        rows = [line.split() for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
        addresses += [row[1].split(":")[0] for row in rows if row[1].endswith(f":{wanted}") and row[3] == "0A"]
    assert addresses == ["0100007F"]


def test_a_port_that_is_in_use_is_named(page: Page) -> None:
    with pytest.raises(UsageError, match=rf"port {page.server.port} is in use; choose another one, or 0"):
        Server(page.session, page.server.port)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(XcnnError, match=r"which is not installed: pip install 'xcnn\[serve\]'"):
        server_room.check()


# The command.


def start(*arguments: object, folder: Path) -> tuple[subprocess.Popen[str], str]:
    """Start the command, and return it with the address that it prints."""
    command = [sys.executable, "-m", "xcnn", "serve", *map(str, arguments), "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for other processes")
def test_the_command_serves_until_ctrl_c(
    checkpoint: Path, tmp_path: Path, xcnn: Callable[..., tuple[int, str, str]]
) -> None:
    process, url = start(checkpoint, folder=tmp_path)
    try:
        port = int(url.rpartition(":")[2].strip("/"))
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/api/about")
        assert json.loads(connection.getresponse().read())["test"] == 360
        said = f"error: --port {port} is in use; choose another one, or 0 for any that is free\n"
        assert xcnn("serve", "--port", port) == (2, "", said)  # before a network is trained, as there is no run
        process.send_signal(signal.SIGINT)  # while a connection is open
        out, err = process.communicate(timeout=20)
        connection.close()
    finally:
        process.kill()
    said = err.removeprefix("compiling kernels, each once on this machine\n")  # where nothing has run before
    assert (process.returncode, out, said) == (0, "", "ends with Ctrl-C\nended\n")
    assert list(tmp_path.iterdir()) == []


def test_without_a_run_a_small_network_is_trained_first(
    xcnn: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = importlib.import_module("xcnn.cli.serve")
    served: list[Session] = []
    monkeypatch.setattr(Server, "run", lambda self: self._socket.close())
    monkeypatch.setattr(command, "Session", functools.partial(_kept, served))
    monkeypatch.setattr(command, "_FIRST", command._FIRST.__class__(dataset="digits", model="report", epochs=1))
    code, out, err = xcnn("serve", "--port", 0)
    assert code == 0
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\n", out)
    assert "training a small network on the digits for a few seconds" in err
    (run,) = (tmp_path / "runs").iterdir()
    code, out, err = xcnn("serve", "--port", 0)
    assert code == 0
    assert err.startswith(f"the newest run: runs/{run.name}\n")
    first, second = served
    assert np.array_equal(*(session.look(View())[1][1][1] for session in (first, second)))


def _kept(served: list[Session], *arguments: Any) -> Session:
    served.append(Session(*arguments))
    return served[-1]
