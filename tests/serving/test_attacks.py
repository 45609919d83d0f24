"""Clients that mean no good: each attack ends in one answer or a closed connection, and others are served all the while."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serving.test_server import TOKEN, Server, serving

RANK = b"POST /v1/rank HTTP/1.1\r\nHost: localhost\r\n"
KNOWN = RANK + f"Authorization: bearer {TOKEN}\r\n".encode()
"""Whatever the case of the scheme."""
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
CONNECTIONS = 30


@pytest.fixture(scope="module")
def server(exported: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("attacked")
    (folder / "token").write_text(TOKEN, encoding="utf-8")
    limits = ("--deadline", "2", "--max-bytes", "300000", "--max-connections", str(CONNECTIONS), "--allow-host", "ranker.example")
    with serving(exported.folder, folder / "token", *limits, log=folder / "log") as started:
        yield started
    lines = (folder / "log").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 10 and all(line.startswith("20") for line in lines), lines  # few, each with its time


def connected(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def answer(server: Server, *pieces: bytes) -> bytes:
    """All that comes until the server closes."""
    found = b""
    with connected(server) as connection, contextlib.suppress(ConnectionError):
        for piece in pieces:
            connection.sendall(piece)
        while chunk := connection.recv(2**16):
            found += chunk
    return found


def sent(body: bytes, head: bytes = KNOWN) -> bytes:
    return head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"POST /v1/rank HT", b"408"),
        (b"\r\n\r\n", b"408"),
        (KNOWN + b"Content-Length: 10\r\n\r\n{", b"408"),
        (KNOWN + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", b"408"),
        (b"\x16\x03\x01 no HTTP at all\r\n\r\n", b"400"),
        (KNOWN + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
        (KNOWN + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\n{}", b"400"),
        (b"GET /healthz HTTP/1.1\r\n\r\n", b"400"),
        (KNOWN + b"X: " + b"a" * 400_000, b"431"),
        (KNOWN + b"X: a\r\n" * 20_000, b"431"),
        (b"GET /" + b"a" * 400_000, b"431"),
        (KNOWN + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n" + b"X: a\r\n" * 70_000, b"431"),
        (KNOWN + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"a" * 400_000, b"431"),
        (KNOWN + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 20_000, b"413"),
        (HEALTH * 5000, b"429"),
        (KNOWN + b"Content-Length: 300001\r\n\r\n", b"413"),
        (KNOWN + b"Transfer-Encoding: chunked\r\n\r\n" + (b"10000\r\n" + b" " * 65536 + b"\r\n") * 30, b"413"),
        (RANK + b"Content-Length: 200000\r\n\r\n" + b" " * 199_000, b"401"),
        (b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000\r\n\r\n" + b" " * 199_000, b"405"),
    ],
)
def test_who_says_too_little_too_much_or_nonsense_is_answered_and_let_go(server: Server, said: bytes, status: bytes) -> None:
    found = answer(server, said)
    if status == b"429":  # those before it are answered
        assert found.count(b"HTTP/1.1 ") < 20
    elif found or status not in (b"431", b"413"):  # who sends on without reading may lose the answer
        assert found[9:12] == status
    assert server.call("/healthz") == (200, {"status": "ok"})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"query": "%s", "candidates": []}' % (b"a" * 250_000), "query: got a text of 250,000 characters; expected at"),
        (b'{"query": "q", "candidates": [{"item_id": 1, "title": "%s"}]}' % (b"a" * 1001), "candidates[0].title: got a text"),
        (b'{"query": "q", "candidates": [{"item_id": "%s"}]}' % (b"a" * 1001), "candidates[0].item_id: got a text of 1,001"),
        (b'{"query": "q", "candidates": {"item_id": [%s1]}}' % (b"1," * 20_000), "candidates: got 20,001; expected at"),
        (b'{"query": "q", "history": [%s{}], "candidates": []}' % (b"{}," * 20_000), "history: got 20,001; expected at"),
        (b'{"query": "q", "peers": {"item_id": [%s1]}, "candidates": []}' % (b"1," * 20_000), "peers: got 20,001; expected"),
        (b"[%s1]" % (b"1," * 145_000), "request: got [1, 1, 1, 1, 1, 1, ...] (list of 145,001); expected an object"),
        (b'{"%s": 1}' % (b"a" * 250_000), "'aaaaaaaaaaaa...aaaaaaaaaaaaa': got an unknown field"),
        (b'{"query": {%s}}' % b",".join(b'"%d":1' % i for i in range(20_000)), "query: got {'0': 1, '1': 1, ...} (dict)"),
        (b'{"query": [%s]}' % (b"[" * 900 + b"]" * 900), "query: got [["),
        (b'{"query": "q", "query": "r", "candidates": []}', "the body is not JSON: the key 'query' stands twice"),
        (b'{"query": "q", "candidates": [{"item_id": NaN}]}', "the body is not JSON: NaN is no number of JSON"),
        (b'{"query": "q", "user_id": %s, "candidates": []}' % (b"9" * 5000), "the body is not JSON: "),
        (b'{"query": "q", "user_events": 1e400, "candidates": []}', "user_events: got inf (float)"),
        (b'{"query": "q\\ud800", "candidates": []}', "query: got 'q\\ud800' (str)"),
        (b"[" * 200_000, "the body is not JSON: "),
    ],
)
def test_a_request_beyond_its_bounds_is_refused_in_few_words(server: Server, body: bytes, message: str) -> None:
    found = answer(server, sent(body))
    error = json.loads(found.partition(b"\r\n\r\n")[2])["error"]
    assert error["message"].startswith(message) and len(found) < 2500


def test_who_closes_for_writing_alone_gets_the_answer(server: Server) -> None:
    body = b'{"query": "q", "candidates": [{"item_id": 1}]}'
    with connected(server) as connection:
        connection.sendall(KNOWN + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        connection.shutdown(socket.SHUT_WR)
        assert b"".join(iter(lambda: connection.recv(2**16), b"")).startswith(b"HTTP/1.1 200")


def test_hostile_titles_are_ranked(server: Server) -> None:
    titles = [
        "",
        "\0",
        "\u202e\u200b",
        "e\u0301" * 400,
        "\U0010ffff",
        "[MASK] [SEP] [PAD]",
        "'; DROP TABLE items; --",
        "\ufeff\ufffe",
    ]
    status, found = server.rank({"query": "\0", "candidates": [{"item_id": i, "title": t} for i, t in enumerate(titles)]})
    assert status == 200 and len(found["candidates"]) == len(titles)


def test_chunks_of_one_byte_and_half_open_connections_keep_nobody_else_waiting(server: Server) -> None:
    def drip(head: bytes) -> None:
        answer(server, head + b"Transfer-Encoding: chunked\r\n\r\n", *[b"1\r\n \r\n" * 1000] * 20)

    with ThreadPoolExecutor(8) as clients, contextlib.ExitStack() as half:
        dripping = [clients.submit(drip, head) for head in (RANK, KNOWN) * 4]
        for said in (b"POST /v1/rank HTTP/1.1\r\n", KNOWN + b"Content-Length: 10\r\n\r\n{") * (2 * CONNECTIONS):
            half.enter_context(connected(server)).sendall(said)
        for _ in range(5):
            assert server.rank({"query": "red", "candidates": [{"item_id": 1}]})[0] == 200
        opened = float(server.call("/metrics")[1].split("\nprectr_connections ")[1].split()[0])
        assert opened <= CONNECTIONS
        for done in dripping:
            done.result()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"Host: localhost:1", 200),
        (b"Host: 127.0.0.1", 200),
        (b"Host: [::1]:80", 200),
        (b"Host: ranker.example:80", 200),
        (b"Host: LOCALHOST.", 200),
        (b"Host: localhost\r\nOrigin: http://localhost", 200),
        (b"Host: attacker.example", 421),
        (b"Host: localhost.attacker.example", 421),
        (b"Host: 192.0.2.1", 421),
        (b"Host: 0.0.0.0", 421),
        (b"Host: localhost@attacker.example", 421),
        (b"Host: localhost\r\nOrigin: http://attacker.example", 403),
        (b"Host: localhost\r\nOrigin: null", 403),
        (b"Host: localhost\r\nHost: attacker.example", 400),
    ],
)
def test_only_its_own_hosts_and_pages_reach_the_server(server: Server, headers: bytes, status: int) -> None:
    found = answer(server, b"GET /healthz HTTP/1.1\r\n" + headers + b"\r\nConnection: close\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 %d" % status) and b"access-control" not in found.lower()


def test_connections_wait_for_a_server_that_is_busy(server: Server) -> None:
    if int(Path("/proc/sys/net/core/somaxconn").read_text(encoding="utf-8")) < 600:
        pytest.skip("this system lets fewer connections wait")
    with contextlib.ExitStack() as waiting:
        server.signal(signal.SIGSTOP)
        try:
            for _ in range(500):  # one more than there is room for would wait until the server goes on
                waiting.enter_context(connected(server))
        finally:
            server.signal(signal.SIGCONT)
    assert server.call("/healthz") == (200, {"status": "ok"})


def test_health_answers_head_and_there_are_no_pages_of_others(server: Server) -> None:
    for path in (b"/healthz", b"/readyz", b"/metrics", b"/openapi.json"):
        head = answer(server, b"HEAD " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200") and head.endswith(b"\r\n\r\n")
    assert server.call("/docs")[0] == server.call("/redoc")[0] == 404


def test_a_signal_to_reload_while_loading_ends_nothing_and_ipv6_is_served(exported: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "prectr_torchrec.cli", "serve", "--model", str(exported.folder), "--port", "0"]
    with subprocess.Popen([*command, "--host", "[::1]"], stdout=subprocess.PIPE, text=True) as process:
        taken = 0
        while process.poll() is None and not taken & 1 << (signal.SIGHUP - 1):  # until the process takes the signal
            lines = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
            taken = int(next(line for line in lines if line.startswith("SigCgt")).split()[1], 16)
        process.send_signal(signal.SIGHUP)
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            assert url.startswith("http://[::1]:")
            server = Server(process, url)
            while 'prectr_reloads_total{outcome="done"} 1.0' not in server.call("/metrics")[1]:
                pass
        finally:
            process.terminate()
