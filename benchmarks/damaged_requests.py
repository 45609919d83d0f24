"""Requests of which bytes are changed at random, those of the headers too, over real connections."""

from __future__ import annotations

import contextlib
import json
import random
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from request_fuzz import HOSTILE, spliced

REQUEST = {
    "user_id": 1,
    "query": "red lamp",
    "request_id": 5,
    "history": [{"item_id": 3, "title": "Oak lamp", "click": 1, "age": 60}],
    "candidates": [{"item_id": 7, "title": "Red oak lamp"}, {"item_id": 8, "title": "Red sink"}],
}
PIECES = (*HOSTILE, b"\r\n", b"\r\n\r\n", b":", b" ", b"chunked", b"GET", b"HTTP/1.0", b"Content-Length: 3\r\n", b"Host: x\r\n")
REFUSALS = {"400", "401", "403", "404", "405", "408", "413", "421", "422", "429", "431", "503"}


def send_damaged(host: str, port: int, *, seed: int, tries: int) -> Counter[str]:
    """Answers by their status, `closed` for none.

    Raises:
        AssertionError: another status, an answer that is no JSON, or a ranking that is none.
    """
    with ThreadPoolExecutor(16) as clients:
        return Counter(clients.map(lambda number: _send(host, port, f"{seed} {number}"), range(tries)))


def _send(host: str, port: int, seed: str) -> str:
    rng, body = random.Random(seed), json.dumps(REQUEST).encode()
    head = f"POST /v1/rank HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: "
    kinds = [
        f"{head}{len(body)}\r\n\r\n".encode() + body,
        f"{head[:-16]}Transfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n",
    ]
    request = rng.choice(kinds)
    for _ in range(rng.choice((1, 1, 2, 4))):
        piece, at = rng.choice((*PIECES, rng.randbytes(2))), rng.randrange(len(request))
        request = spliced(request, [(at, rng.choice((0, 1, 40, len(piece), len(piece))), piece)])
    answer = b""
    with socket.create_connection((host, port), timeout=60) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(request)
        while chunk := connection.recv(2**16):
            answer += chunk
    if not answer:
        return "closed"
    status, content = answer[9:12].decode(), answer.partition(b"\r\n\r\n")[2]
    assert answer.startswith(b"HTTP/1.1 ") and (status == "200" or status in REFUSALS), (request, answer)
    if answer.count(b"HTTP/1.1 ") == 1 and content.startswith(b"{"):
        found = json.loads(content)
        ranked = found.get("candidates", []) if isinstance(found, dict) else []
        assert all(0 <= row["click_probability"] <= 1 for row in ranked), (request, answer)
    return status
