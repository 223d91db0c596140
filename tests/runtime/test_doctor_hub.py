"""The hub is asked with the standard library alone; whatever it answers is one clear line."""

import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from diffusion_rt.__main__ import main
from diffusion_rt.runtime import doctor
from diffusion_rt.runtime.doctor import examine, report
from diffusion_rt.runtime.doctor_hub import DEFAULT, hub_online, hub_settings
from diffusion_rt.runtime.finding import Finding

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: Patch) -> None:
    """And no proxy, which would be asked for our own server."""
    names = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT", "HF_TOKEN"]
    for name in (*names, "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("NO_PROXY", "*")


def only(findings: Sequence[Finding]) -> Finding:
    (finding,) = findings
    assert len(report([finding]).splitlines()) == (2 if finding.fix else 1)
    assert bool(finding.fix) is (finding.state != "ok")
    return finding


@contextmanager
def hub(answer: Callable[[Any], None]) -> Iterator[tuple[str, list[Any]]]:
    """The address of a server that answers so, and the requests it got."""
    asked: list[Any] = []

    class Answering(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append((self.command, self.path, dict(self.headers)))
            answer(self)

        do_GET = do_HEAD  # Python 3.11 follows a redirection so

        def log_message(self, *arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def status(code: int, **headers: str) -> Callable[[Any], None]:
    def answer(request: Any) -> None:
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()

    return answer


def raw(content: bytes) -> Callable[[Any], None]:
    def answer(request: Any) -> None:
        request.wfile.write(content)
        request.close_connection = True

    return answer


def test_the_hub_is_asked_for_its_head_without_its_package(monkeypatch: Patch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with hub(status(200)) as (address, asked):
        monkeypatch.setenv("HF_ENDPOINT", address)
        finding = only(hub_online())
    assert finding == Finding("ok", "hub online", f"{address} answers 200")
    ((method, path, headers),) = asked
    assert (method, path) in (("HEAD", "/"), ("HEAD", ""))
    assert headers["User-Agent"].startswith("diffusion-rt/")
    assert "secret" not in str(headers)


@pytest.mark.parametrize(
    ("answer", "state", "words"),
    [
        (status(404), "ok", "answers 404"),
        (status(503), "absent", "answers 503"),
        (status(407), "absent", "the proxy answers 407"),
        (status(302, Location="file:///etc/passwd"), "absent", "answers 302"),
        (status(302, Location="/"), "absent", "answers 302"),
        (raw(b""), "absent", "Remote end closed connection"),
        (raw(b"\x1b[2J\r\n\r\n"), "absent", ""),
        (raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n"), "absent", "headers"),
        (raw(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000), "absent", "header line"),
    ],
    ids=["404", "503", "407", "to a file", "in a circle", "nothing", "garbage", "many", "long"],
)
def test_whatever_it_answers(
    answer: Callable[[Any], None], state: str, words: str, monkeypatch: Patch
) -> None:
    with hub(answer) as (address, _):
        monkeypatch.setenv("HF_ENDPOINT", address)
        finding = only(hub_online())
    assert finding.state == state
    assert words in finding.found
    assert address in finding.found
    assert "\x1b" not in report([finding])


def test_a_hub_that_sends_a_byte_now_and_then_is_not_waited_for(monkeypatch: Patch) -> None:
    over = threading.Event()

    def drip(request: Any) -> None:
        for _ in range(100):
            if over.wait(0.02):
                return
            request.wfile.write(b"H")

    with hub(drip) as (address, _):
        monkeypatch.setenv("HF_ENDPOINT", address)
        finding = only(hub_online(seconds=0.5, patience=0.3))
        over.set()
    assert finding.found == f"{address}: no answer within 0.3 seconds"


def test_a_hub_that_says_nothing(monkeypatch: Patch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        finding = only(hub_online(seconds=0.1))
    assert "timed out" in finding.found
    finding = only(hub_online())  # nobody listens there any more
    assert "Connection refused" in finding.found
    assert "HTTPS_PROXY" in finding.fix


def test_no_network(monkeypatch: Patch) -> None:
    def nowhere(*arguments: object, **options: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    finding = only(hub_online())
    assert finding.state == "absent"
    assert finding.found.startswith(f"{DEFAULT}: ")
    assert "name resolution" in finding.found


def test_the_address_is_that_of_the_hubs_own_package() -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    assert constants._HF_DEFAULT_ENDPOINT == DEFAULT


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_asks_nobody(name: str, monkeypatch: Patch) -> None:
    with hub(status(200)) as (address, asked):
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv(name, "1")
        assert only(hub_online()).fix == f"unset {name}"
        assert not asked
        assert f"{name} is set" in only(hub_settings()).found
        monkeypatch.setenv(name, "0")
        assert only(hub_online()).state == "ok"


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/passwd",
        "huggingface.co",
        "https://",
        "https://a b",
        "https://a\x1b[2J",
        "https://a\r\nX: y",
        "https://a:port",
        "https://a:0",
        "https://[::1",
        "ftp://a",
        "https://müller.example",
        "x" * 5000,
    ],
)
def test_what_is_no_address(address: str, monkeypatch: Patch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    for finding in (only(hub_online()), only(hub_settings())):
        assert finding.state == "absent"
        assert "HF_ENDPOINT" in finding.found
        assert DEFAULT in finding.fix
        assert len(finding.found) < 300


def test_secrets_are_never_shown(monkeypatch: Patch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:secret@hub.example")
    found = only(hub_settings()).found
    assert "HF_TOKEN is set" in found
    assert "https://hub.example" in found
    assert "secret" not in found
    for address in (
        "http://me:secret@127.0.0.1:1",
        "https://me:secret@localhost",
        "ftp://me:secret@hub.example",
    ):
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert "secret" not in str((hub_online(), hub_settings()))


def test_a_hub_that_wants_a_password_is_reached(monkeypatch: Patch) -> None:
    with hub(status(200)) as (address, asked):
        monkeypatch.setenv("HF_ENDPOINT", address.replace("://", "://me:secret@"))
        assert only(hub_online()).found == f"{address} answers 200"
        assert len(asked) == 1


def test_the_network_is_left_alone_unless_asked(
    monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    check: Callable[[], Sequence[Finding]] = lambda: [Finding("ok", "x", "y")]  # noqa: E731
    monkeypatch.setattr(doctor, "CHECKS", (check, hub_settings))
    with hub(status(200)) as (address, asked):
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert [finding.subject for finding in examine()] == ["x", "hub"]
        assert main(["doctor"]) == 0
        assert not asked
        capsys.readouterr()
        assert main(["doctor", "--online", "--format", "json"]) == 0
        assert len(asked) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert findings[-1]["found"] == f"{address} answers 200"
