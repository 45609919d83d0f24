"""An exported ranker beside the training model and a cross-encoder, and a server under twice the load that it can bear.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/serving.py --run RUN --model EXPORTED --data SPLIT [--rounds 100] [--load 60]

Latency: one request of 1,000 candidates (`--candidates`) with a full history and full peers, one thread, scored by

- the exported ranker, its titles encoded before (`cold`: not);
- the training model, from the same sample columns, whose encoder reads every title;
- a MiniLM (6 layers of 384; random weights and tokens, which do not change its speed) that reads each pair of query and title,
  as many tokens as the ranker keeps of both.

Load: 64 connections send requests of 100 candidates at twice the rate that 16 of them reach. Every answer is compared with
the ranker's; halfway the server loads its model anew.
"""

from __future__ import annotations

import argparse
import http.client
import json
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import describe
from transformers import BertConfig, BertModel

from prectr_torchrec import Ranker
from prectr_torchrec.data.reader.assemble import BatchBuilder
from prectr_torchrec.data.reader.flat import to_columns
from prectr_torchrec.data.schema import TOKENIZER
from prectr_torchrec.runs.layout import load_run
from prectr_torchrec.serving.request import GROUPS
from prectr_torchrec.training.task import build_task

CONNECTIONS, CAPACITY = 64, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="what `prectr export` made of the run")
    parser.add_argument("--data", type=Path, required=True, help="a folder of samples")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--candidates", type=int, default=1000, help="of the request whose latency is measured")
    parser.add_argument("--load", type=float, default=60, help="seconds")
    parser.add_argument("--deadline", type=float, default=1.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(describe("torch", "fbgemm-gpu-cpu", "torchrec", "transformers", "fastapi", "uvicorn"))
    ranker = Ranker.load(arguments.model)
    samples = pa.concat_tables([pq.read_table(path) for path in sorted(arguments.data.glob("*.parquet"))])
    compare(arguments, ranker, build_request(ranker, samples, arguments.candidates))
    if arguments.load:
        bear(arguments, ranker, build_request(ranker, samples, 100))


def build_request(ranker: Ranker, samples: pa.Table, candidates: int) -> dict[str, Any]:
    """The query and user of a sample, with as many events as the model reads and candidates of all samples."""
    data = ranker.config.data
    lengths = {"history": data.history_length, "peer": data.peer_length, "candidate": candidates}
    row = samples.slice(0, 1).to_pylist()[0]
    request = {name: value for name, value in row.items() if name.partition("_")[0] not in GROUPS and name != "num_candidates"}
    for family, length in lengths.items():
        columns = [name for name in samples.column_names if name.startswith(f"{family}_") and not name.endswith("_predicted")]
        flat = {name.removeprefix(f"{family}_"): samples[name].combine_chunks().flatten().to_pylist() for name in columns}
        request[GROUPS[family]] = {name: (values * (length // len(values) + 1))[:length] for name, values in flat.items()}
    items = request[GROUPS["candidate"]]
    items["title"] = [f"{title} {number}" for number, title in enumerate(items["title"])]  # no two of one title
    return request


def compare(arguments: argparse.Namespace, ranker: Ranker, request: dict[str, Any]) -> None:
    start = time.perf_counter()
    ranker.score(request)
    cold = time.perf_counter() - start
    contenders = {
        "exported ranker": (lambda: ranker.score(request), arguments.rounds),
        "training model": (training_model(arguments.run, ranker, request), max(arguments.rounds // 5, 3)),
        "MiniLM on all pairs": (mini_lm(ranker, request), 3),
    }
    count = len(request["candidates"]["item_id"])
    print(f"\none request of {count:,} candidates; the exported ranker cold: {cold * 1e3:.0f} ms")
    print(f"{'milliseconds':<20} {'p50':>8} {'p99':>8} {'p50 cpu':>8} {'times':>6}")
    first = None
    for name, (work, rounds) in contenders.items():
        wall, cpu = clock(work, rounds)
        p50, p99, own = statistics.median(wall), float(np.quantile(wall, 0.99)), statistics.median(cpu)
        first = first or own
        print(f"{name:<20} {p50 * 1e3:8.1f} {p99 * 1e3:8.1f} {own * 1e3:8.1f} {own / first:6.1f}")


def clock(work: Callable[[], Any], rounds: int) -> tuple[list[float], list[float]]:
    """Seconds by the wall's and the processor's clock."""
    work()
    wall, cpu = [], []
    for _ in range(rounds):
        started = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - started[0])
        cpu.append(time.process_time() - started[1])
    return wall, cpu


def training_model(run: Path, ranker: Ranker, request: dict[str, Any]) -> Callable[[], Any]:
    config = load_run(run)
    task = build_task(config, run / TOKENIZER).eval()
    samples = ranker.schema.from_plain([request], name=None)
    builder = BatchBuilder(
        config.data,
        config.text,
        config.tables,
        config.features,
        run / TOKENIZER,
        1,
        samples["num_candidates"][0].as_py(),
        reads=config.reads(),
    )

    def work() -> None:
        columns = to_columns([samples], ["request"], builder.columns, limits=builder.limits)
        with torch.no_grad():
            task(builder.build([(builder.prepare(columns), 0, 1)]))

    return work


def mini_lm(ranker: Ranker, request: dict[str, Any], batch: int = 100) -> Callable[[], Any]:
    text = ranker.config.text
    settings = BertConfig(num_hidden_layers=6, hidden_size=384, num_attention_heads=12, intermediate_size=1536)
    model = BertModel(settings, add_pooling_layer=False).eval()
    pairs = len(request["candidates"]["item_id"])
    tokens = torch.randint(5, settings.vocab_size, (pairs, text.query_tokens + text.title_tokens))

    def work() -> None:
        with torch.no_grad():
            for start in range(0, pairs, batch):
                model(tokens[start : start + batch])

    return work


class Client(threading.Thread):
    """One connection that sends the request at its times and notes status and latency of each answer."""

    def __init__(self, port: int, body: bytes, wanted: Any, times: list[float]) -> None:
        super().__init__()
        self._port, self._body, self._wanted, self._times = port, body, wanted, times
        self.seen: list[tuple[int, float]] = []
        self.wrong = 0

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        for at in self._times:
            time.sleep(max(at - time.perf_counter(), 0))
            start = time.perf_counter()
            connection.request("POST", "/v1/rank", self._body)
            answer = connection.getresponse()
            text = answer.read()
            self.seen.append((answer.status, time.perf_counter() - start))
            if answer.status == 200:
                found = [row["click_probability"] for row in json.loads(text)["candidates"]]
                self.wrong += not np.allclose(found, self._wanted, atol=1e-5)
        connection.close()


def bear(arguments: argparse.Namespace, ranker: Ranker, request: dict[str, Any]) -> None:
    body, scores = json.dumps(request).encode(), ranker.score(request)
    wanted = scores.click_probability[scores.ranking()]
    command = ["serve", "--model", str(arguments.model), "--port", "0", "--threads", "1", "--capacity", str(CAPACITY)]
    server = subprocess.Popen(
        [sys.executable, "-m", "prectr_torchrec.cli", *command, "--deadline", str(arguments.deadline)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline().rsplit(":", 1)[1])
        alone, seconds = attack(port, body, wanted, CAPACITY, None, 0)
        assert all(status == 200 for status, _ in alone)
        rate = len(alone) / seconds
        print(f"\na server of {len(wanted)} candidates a request: {rate:.0f} requests/s from {CAPACITY} connections, all served")
        attack(port, body, wanted, CONNECTIONS, 2 * rate, 5.0)
        before = resident(server.pid)
        reload = threading.Timer(arguments.load / 2, server.send_signal, [signal.SIGHUP])
        reload.start()
        seen, seconds = attack(port, body, wanted, CONNECTIONS, 2 * rate, arguments.load)
        statuses = Counter(status for status, _ in seen)
        served = [latency for status, latency in seen if status == 200]
        print(
            f"{CONNECTIONS} connections, {len(seen) / seconds:.0f} requests/s for {seconds:.0f} s, a reload halfway: "
            + ", ".join(f"{status}: {count:,}" for status, count in sorted(statuses.items()))
            + f"\n{len(served) / seconds:.0f} served a second, p50 {statistics.median(served) * 1e3:.0f} ms, "
            f"p99 {float(np.quantile(served, 0.99)) * 1e3:.0f} ms (deadline {arguments.deadline * 1e3:.0f} ms); "
            f"memory {before:.0f} MB before, {resident(server.pid):.0f} MB after"
        )
    finally:
        server.terminate()
        server.wait(60)


def attack(
    port: int, body: bytes, wanted: Any, connections: int, rate: float | None, seconds: float
) -> tuple[list[tuple[int, float]], float]:
    """Status and latency of each answer, and the seconds that it took.

    Args:
        rate: requests a second in all; None: each connection sends 50, one after another.
        seconds: of the attack at a rate.
    """
    start = time.perf_counter()
    gap, each = (connections / rate, int(seconds * rate / connections)) if rate else (0.0, 50)
    times = [[start + (i + c / connections) * gap for i in range(each)] for c in range(connections)]
    clients = [Client(port, body, wanted, at) for at in times]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert not sum(client.wrong for client in clients), "an answer differs from the ranker's"
    return [answer for client in clients for answer in client.seen], time.perf_counter() - start


def resident(pid: int) -> float:
    """MB of memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1]) * 4096 / 1e6


if __name__ == "__main__":
    main()
