"""A server under attack: are honest requests of another client answered all the while, and is its memory back afterwards?

    python benchmarks/attack.py --model EXPORTED [--seconds 60] [--clients 8]

Clients in processes of their own take turns in: chunks of one byte, with and without a token; lists of a million entries; headers
and bodies that never end, a hundred at a time; floods of wrong tokens with bodies; titles and unknown keys of 4 MB; as many long
titles as are allowed. One more client sends honest requests meanwhile. A run of 30 s or more fails where one of these is not
answered, where their 95 % quantile is a second or more, or where the server has more than 1.2 times the memory of before.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import multiprocessing
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import describe

TOKEN = "known to honest clients"
HEAD = b"POST /v1/rank HTTP/1.1\r\nHost: localhost\r\n"
KNOWN = HEAD + f"Authorization: Bearer {TOKEN}\r\n".encode()
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
MEMORY, P95 = 1.2, 1.0
"""Of the bars: times the memory before, and seconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=8)
    arguments = parser.parse_args()
    print(describe("torch", "fastapi", "uvicorn", "httptools"))
    with tempfile.TemporaryDirectory() as folder, serving(arguments.model, Path(folder)) as (process, port):
        quiet, _ = honest(port, min(arguments.seconds, 5))
        before = resident(process.pid)
        stop = multiprocessing.get_context("fork").Event()
        counts = multiprocessing.get_context("fork").Queue()
        attackers = [
            multiprocessing.get_context("fork").Process(target=attack, args=(port, turn, stop, counts))
            for turn in range(arguments.clients)
        ]
        for attacker in attackers:
            attacker.start()
        seconds, statuses = honest(port, arguments.seconds)
        stop.set()
        attacks = sum((counts.get(timeout=120) for _ in attackers), Counter())
        for attacker in attackers:
            attacker.join()
        time.sleep(min(arguments.seconds, 5))
        after, log = resident(process.pid), (Path(folder) / "log").stat().st_size
    print("attacks and their answers: " + ", ".join(f"{name}: {count:,}" for name, count in sorted(attacks.items())))
    for name, times in (("before", quiet), ("under attack", seconds)):
        p50, p95, longest = np.quantile(times, [0.5, 0.95, 1])
        line = f"honest requests {name}: {len(times):,}, p50 {p50 * 1e3:,.0f} ms, p95 {p95 * 1e3:,.0f} ms"
        print(f"{line}, longest {longest * 1e3:,.0f} ms")
    print(
        f"answers: {dict(statuses)}; memory {before / 1e6:,.0f} MB before, {after / 1e6:,.0f} MB after; log {log / 1e3:,.1f} kB"
    )
    if arguments.seconds < 30:
        return
    assert set(statuses) == {200}, "some honest requests were not answered"
    assert np.quantile(seconds, 0.95) < P95 and after < MEMORY * before


@contextlib.contextmanager
def serving(model: Path, folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    (folder / "token").write_text(TOKEN, encoding="utf-8")
    command = [sys.executable, "-m", "prectr_torchrec.cli", "serve", "--model", str(model), "--port", "0", "--threads", "1"]
    with (folder / "log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*command, "--token-file", str(folder / "token")], stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline().rpartition(":")[2])
        finally:
            process.terminate()
            process.wait(60)


def honest(port: int, seconds: float) -> tuple[list[float], Counter[int]]:
    """Seconds of each answer to requests of 20 candidates, ten a second, and their statuses."""
    body = json.dumps({"query": "red lamp", "candidates": [{"item_id": i, "title": f"oak lamp {i}"} for i in range(20)]})
    times, statuses, end = [], Counter[int](), time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/v1/rank", body, {"Authorization": f"Bearer {TOKEN}"})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        statuses[answer.status] += 1
        times.append(time.perf_counter() - start)
        time.sleep(max(0.1 - times[-1], 0))
    return times, statuses


def resident(pid: int) -> float:
    """Bytes of a process in memory."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines() if line.startswith("VmRSS"))
    return float(line.split()[1]) * 1024


def attack(port: int, turn: int, stop: Any, counts: Any) -> None:
    """Goes from one attack to the next, from the `turn`-th on, and counts the answers."""
    found: Counter[str] = Counter()
    attacks = [
        ("one byte, no token", lambda: sent(port, HEAD + CHUNKED, [b"1\r\n \r\n" * 3000] * 70)),
        ("a million entries", lambda: sent(port, *whole('{"query": "q", "candidates": {"item_id": [%s1]}}' % ("1," * 10**6)))),
        ("half open", lambda: half_open(port)),
        ("wrong token", lambda: sent(port, *whole(" " * 2**20, HEAD))),
        ("one title of 4 MB", lambda: sent(port, *whole('{"query": "%s", "candidates": []}' % ("ab " * 1_300_000)))),
        ("one byte", lambda: sent(port, KNOWN + CHUNKED, [b"1\r\n \r\n" * 3000] * 70)),
        ("unknown key of 4 MB", lambda: sent(port, *whole('{"%s": 1}' % ("ab" * 2_000_000)))),
        ("a million objects", lambda: sent(port, *whole('{"query": "q", "candidates": [%s{}]}' % ("{}," * 10**6)))),
        ("long titles", lambda: sent(port, *whole(long_titles(time.time_ns())))),
    ]
    while not stop.is_set():
        name, work = attacks[turn % len(attacks)]
        found[f"{name} {work()}"] += 1
        turn += 1
    counts.put(found)


def whole(body: str, head: bytes = KNOWN) -> tuple[bytes, list[bytes]]:
    return head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body), [body.encode()]


def long_titles(seed: int) -> str:
    words = np.random.default_rng(seed % 2**32).integers(0, 10**9, (900, 100))
    rows = [{"item_id": i, "title": " ".join(map(str, row))[:1000]} for i, row in enumerate(words.tolist())]
    return json.dumps({"query": "q", "candidates": rows})


def sent(port: int, head: bytes, pieces: list[bytes]) -> str:
    """The status of the answer to a request."""
    with connected(port) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(head)
            for piece in pieces:
                connection.sendall(piece)
        with contextlib.suppress(ConnectionError):
            return connection.recv(2**16)[9:12].decode() or "closed"
    return "reset"


def half_open(port: int) -> str:
    """A hundred connections that say half of what they want, until the first one is answered."""
    with contextlib.ExitStack() as held, contextlib.suppress(ConnectionError):
        first = held.enter_context(connected(port))
        for head in (b"POST /v1/rank HT", KNOWN + b"Content-Length: 10\r\n\r\n{") * 50:
            held.enter_context(connected(port)).sendall(head)
        first.sendall(HEAD)
        return first.recv(2**16)[9:12].decode() or "closed"
    return "reset"


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60)


if __name__ == "__main__":
    main()
