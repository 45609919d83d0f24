"""A real server in a process of its own, and real clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from forked import Forked
from request_fuzz import bodies, complaint
from serving.test_export import differences
from serving_requests import plain_requests
from small_run import small_config

from prectr_torchrec import Ranker
from prectr_torchrec.serving import server as server_module
from prectr_torchrec.serving.export import export
from prectr_torchrec.serving.request import RequestSchema
from prectr_torchrec.serving.score_files import score_files

TOKEN = "a secret of the tests"


class Server:
    def __init__(self, process: Any, url: str) -> None:
        self.process, self.url = process, url

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def call(self, path: str, body: bytes | None = None, token: str | None = TOKEN) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, body, headers), timeout=60) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        return status, json.loads(text) if text.startswith(b"{") else text.decode()

    def rank(self, request: Any, query: str = "") -> tuple[int, Any]:
        return self.call(f"/v1/rank{query}", json.dumps(request).encode())


def head(length: int) -> bytes:
    lines = f"POST /v1/rank HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\nAuthorization: Bearer {TOKEN}"
    return f"{lines}\r\n\r\n".encode()


@contextlib.contextmanager
def serving(model: Path, token: Path, *options: str, log: Path | None = None) -> Iterator[Server]:
    words = ("serve", "--model", str(model), "--port", "0", "--threads", "1", "--token-file", str(token), *options)
    with tempfile.TemporaryDirectory() as folder:
        job = Forked("forked:prectr", [words], [{}], Path(folder) / "printed", log)
        (process,) = job.processes
        try:
            while (found := re.search(r"^serving .* on (\S+)\n", job.printed, re.MULTILINE)) is None:
                assert job.poll() is None, job.printed
                time.sleep(0.02)
            yield Server(process, found[1])
        finally:
            process.terminate()
            process.join(60)
            job.kill()


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("token") / "token"
    path.write_text(TOKEN + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def server(exported: Any, token: Path) -> Iterator[Server]:
    limits = ("--max-bytes", "100000", "--max-candidates", "50", "--deadline", "30")
    with serving(exported.folder, token, *limits) as started:
        yield started


@pytest.fixture(scope="module")
def requests(exported: Any) -> list[dict[str, Any]]:
    return plain_requests(exported.samples)


def test_many_clients_get_what_the_ranker_scores(server: Server, ranker: Ranker, requests: list[dict[str, Any]]) -> None:
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(server.rank, requests))
    for request, (status, answer) in zip(requests, answers, strict=True):
        assert status == 200 and answer["request_id"] == request["request_id"]
        scores = ranker.score(request)
        order = [row["click_probability"] for row in answer["candidates"]]
        assert order == sorted(order, reverse=True)
        by_index = {row["index"]: row for row in answer["candidates"]}
        found = np.array([by_index[i]["click_probability"] for i in range(len(scores.item_id))])
        np.testing.assert_allclose(found, scores.click_probability, atol=1e-5)
        assert [by_index[i]["item_id"] for i in range(len(found))] == scores.item_id.tolist()


def test_trainer_ranker_batch_and_server_agree_on_the_whole_split(
    server: Server, exported: Any, ranker: Ranker, requests: list[dict[str, Any]], tmp_path: Path
) -> None:
    score_files(exported.folder, exported.data / "test", tmp_path / "scores.parquet")
    rows = [{"request_id": r["request_id"], **row} for r in requests for row in server.rank(r)[1]["candidates"]]
    for scored in (ranker.score(exported.samples), pq.read_table(tmp_path / "scores.parquet"), pa.Table.from_pylist(rows)):
        assert max(differences(scored, exported.predictions)) < 1e-5


def test_whatever_is_sent_is_ranked_or_refused_by_name(server: Server, ranker: Ranker) -> None:
    @hypothesis.settings(max_examples=150, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(bodies(ranker.schema.describe()))
    def send(body: bytes) -> None:
        assert complaint(*server.call("/v1/rank", body)) is None

    send()
    assert server.call("/readyz")[0] == 200


def test_ids_come_back_as_they_were_sent_and_an_explanation_on_demand(server: Server) -> None:
    request = {"query": "red", "candidates": {"item_id": ["7", 5]}}
    status, answer = server.rank(request, "?explain=true")
    assert status == 200 and {row["item_id"] for row in answer["candidates"]} == {"7", 5}
    assert len(answer["explanation"]["candidates"]) == 2 and "explanation" not in server.rank(request)[1]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "the body is not JSON"),
        (b"[" * 100_000, 400, "the body is not JSON"),
        (b"\xff", 400, "the body is not JSON"),
        (b"[]", 422, "request: got [] (list); expected an object"),
        (b'{"query": "q", "candidates": [{"item_id": 1, "click": 3}]}', 422, "candidates[0].click: got 3 (int); expected 0 or 1"),
        (b'{"query": "q", "candidates": {"item_id": [' + b"1," * 50 + b"1]}}", 422, "candidates: got 51; expected at most 50"),
        (b" " * 100_001, 413, "the body is larger than 100,000 bytes"),
    ],
)
def test_a_bad_request_is_answered_with_what_is_wrong(server: Server, body: bytes, status: int, message: str) -> None:
    found, answer = server.call("/v1/rank", body)
    assert found == status and answer["error"]["message"].startswith(message)


def test_a_wrong_parameter_is_named(server: Server) -> None:
    status, answer = server.rank({"query": "q", "candidates": []}, "?explain=perhaps")
    assert status == 422 and answer["error"]["field"] == "query.explain" and answer["error"]["got"] == "'perhaps'"


def test_without_the_token_nothing_is_ranked(server: Server) -> None:
    for token in (None, "another"):
        assert server.call("/v1/rank", b"{}", token)[0] == 401


def test_health_figures_and_openapi_are_there(server: Server) -> None:
    assert server.call("/healthz", token=None) == (200, {"status": "ok"})
    assert server.call("/readyz", token=None) == (200, {"status": "ready"})
    status, text = server.call("/metrics", token=None)
    assert status == 200 and 'prectr_requests_total{status="200"}' in text and "prectr_batch_requests_bucket" in text
    described = server.call("/openapi.json", token=None)[1]["paths"]["/v1/rank"]["post"]
    assert "candidates" in described["requestBody"]["content"]["application/json"]["schema"]["properties"]


def test_a_body_that_never_ends_is_refused_and_takes_no_place_of_others(exported: Any, token: Path) -> None:
    with serving(exported.folder, token, "--capacity", "1", "--deadline", "3") as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as slow:
            slow.sendall(head(9) + b"{")
            while "prectr_admitted_requests 1.0" not in server.call("/metrics")[1]:
                pass
            assert server.rank({"query": "q", "candidates": []})[0] == 200
            assert slow.recv(1000).startswith(b"HTTP/1.1 408")
        many = {"query": "q", "candidates": [{"item_id": i, "title": f"oak {i}"} for i in range(2000)]}
        statuses = {200}
        with ThreadPoolExecutor(4) as clients:
            while statuses == {200}:  # until two of them meet
                statuses |= {status for status, _ in clients.map(server.rank, [many] * 4)}
        assert statuses == {200, 503}


def test_a_reload_loses_no_request(exported: Any, token: Path, requests: list[dict[str, Any]], tmp_path: Path) -> None:
    export(exported.run, tmp_path / "int8", quantize="int8")
    model = tmp_path / "current"
    model.symlink_to(exported.folder)
    request = max(requests, key=lambda r: len(r["candidates"]))
    rankers = [Ranker.load(folder) for folder in (exported.folder, tmp_path / "int8")]
    wanted = [np.sort(ranker.score(request).click_probability)[::-1] for ranker in rankers]
    statuses: list[int] = []
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            status, answer = server.rank(request)
            statuses.append(status)
            found = [row["click_probability"] for row in answer["candidates"]]
            assert any(np.allclose(found, scores, atol=1e-5) for scores in wanted)

    with serving(model, token, "--deadline", "30") as server:
        with ThreadPoolExecutor(4) as clients:
            running = [clients.submit(client) for _ in range(4)]
            (tmp_path / "next").symlink_to(tmp_path / "int8")
            (tmp_path / "next").rename(model)
            server.signal(signal.SIGHUP)
            while 'prectr_reloads_total{outcome="done"} 1.0' not in server.call("/metrics")[1]:
                pass
            stop.set()
            for done in running:
                done.result()
        _, answer = server.rank(request)
        np.testing.assert_allclose([row["click_probability"] for row in answer["candidates"]], wanted[1], atol=1e-7)
    assert set(statuses) == {200} and len(statuses) >= 4


def test_a_stop_lets_requests_in_the_works_end(exported: Any, token: Path, requests: list[dict[str, Any]]) -> None:
    with serving(exported.folder, token, "--deadline", "30") as server:
        host, port = server.url.removeprefix("http://").split(":")
        body = json.dumps(requests[0]).encode()
        with socket.create_connection((host, int(port)), timeout=60) as slow:
            slow.sendall(head(len(body)) + body[:10])
            while "prectr_admitted_requests 1.0" not in server.call("/metrics")[1]:
                pass
            server.process.terminate()
            server.process.join(0.5)
            assert server.process.exitcode is None
            slow.sendall(body[10:])
            assert slow.recv(100).startswith(b"HTTP/1.1 200")
        server.process.join(60)
        assert server.process.exitcode in (0, -signal.SIGTERM)


def test_of_two_reloads_the_later_one_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = iter([(0.0, "first"), (0.5, "old"), (0.0, "new")])

    def load(model: Path) -> Any:
        seconds, name = next(loads)
        time.sleep(seconds)
        return SimpleNamespace(name=name, schema=RequestSchema(small_config().data))

    monkeypatch.setattr(server_module, "_load", load)
    server = server_module.RankingServer(Path("anywhere"), server_module.ServerSettings())

    async def reload_twice() -> None:
        await asyncio.gather(*(server.reload() for _ in range(100)))  # those beyond the second would load the same

    asyncio.run(reload_twice())
    assert server.ranker.name == "new"


def test_a_user_that_is_no_number_is_refused() -> None:
    with pytest.raises(server_module.Refused, match=r"expected .*an id"):
        server_module._choice(b'{"query": "a", "user": Infinity}', 100)
