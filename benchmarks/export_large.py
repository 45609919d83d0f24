"""Export and serving of a table larger than what they may take of memory.

    python benchmarks/export_large.py --folder DIR [--rows 200_000_000] [--dim 8] [--quantize int8]

A demo ranker is trained for an epoch on a small table; then a checkpoint of the same towers is written whose item table has
`--rows` rows of fp32 numbers, from a mapped file. `prectr export` and `prectr serve` run on it, as processes of their own, and
every 20 ms it is noted what they hold: `anonymous` memory, which the system cannot take back, and all that is resident, which
counts the pages of mapped tables that happen to be in memory. The server gets requests of 100 candidates and a full history,
all ids random; rows of the exported file are compared with the checkpoint's. Takes about three tables of disk.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from common import describe, simulated_samples

from prectr_torchrec.checkpoints.manifest import PROGRESS, RUN, describe_files, describe_run, write_manifest
from prectr_torchrec.checkpoints.saved import SavedTensors
from prectr_torchrec.config.files import dump_config, load_config
from prectr_torchrec.runs.layout import CHECKPOINTS, CONFIG, checkpoint_path, load_run, write_checkpoint_index
from prectr_torchrec.serving.exported_tables import Table

WEIGHT = "model.embeddings.sequences.{dim}.embeddings.item.weight"
CANDIDATES, EVENTS = 100, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=200_000_000)
    parser.add_argument("--dim", type=int, default=8)
    parser.add_argument("--quantize", choices=["fp16", "int8"])
    parser.add_argument("--requests", type=int, default=300)
    arguments = parser.parse_args()
    print(describe("torch", "torchrec", "fbgemm-gpu-cpu"))
    large, model = arguments.folder / "large", arguments.folder / f"exported-{arguments.quantize or 'fp32'}"
    if not (large / CHECKPOINTS / "index.json").exists():
        enlarge(train(arguments), large, arguments.rows)
    nbytes = arguments.rows * arguments.dim * 4
    shape = f"{arguments.rows:,} rows x {arguments.dim} fp32"
    print(f"table as trained: {shape}, {nbytes / 1e6:,.0f} MB; a quarter: {nbytes / 4e6:,.0f} MB")
    shutil.rmtree(model, ignore_errors=True)
    options = ["--run", str(large), "--out", str(model), *(["--quantize", arguments.quantize] if arguments.quantize else [])]
    start = time.perf_counter()
    job = subprocess.Popen([sys.executable, "-m", "prectr_torchrec.cli", "export", *options], stdout=subprocess.DEVNULL)
    memory = Memory(job.pid)
    assert job.wait() == 0
    size = (model / "tables" / "item.safetensors").stat().st_size
    print(f"export to {size / 1e6:,.0f} MB: {time.perf_counter() - start:.0f} s, {memory}")
    compare(large, model)
    serve(model, arguments.requests)


def train(arguments: argparse.Namespace) -> Path:
    """A small run."""
    run = arguments.folder / "small"
    if not (run / CHECKPOINTS / "index.json").exists():
        config = load_config("demo")
        samples = simulated_samples(config, arguments.folder, 1500)
        sets = ["train.validation=false", "train.stages=[{split: train, epochs: 1, lr: 0.003}]"]
        sets += [f"tables.{name}.dim={arguments.dim}" for name in config.tables]
        command = ["train", "--config", "demo", "--data", str(samples), "--run", str(run)]
        command += [word for override in sets for word in ("--set", override)]
        subprocess.run([sys.executable, "-m", "prectr_torchrec.cli", *command], check=True, stdout=subprocess.DEVNULL)
    return run


def enlarge(run: Path, large: Path, rows: int) -> None:
    """The run with another item table, whose numbers pass through a mapped file."""
    config = load_run(run)
    shutil.rmtree(large, ignore_errors=True)
    shutil.copytree(run, large, ignore=shutil.ignore_patterns(CHECKPOINTS))
    config.tables["item"].rows = rows
    (large / CONFIG).write_text(dump_config(config), encoding="utf-8")
    weight = WEIGHT.format(dim=config.tables["item"].dim)
    state: dict[str, Any] = dict(SavedTensors(checkpoint_path(run, "last")).load(""))
    state = {name: tensor for name, tensor in state.items() if name.startswith("model.") and name != weight}
    dim, numbers = config.tables["item"].dim, large / "numbers"
    table = torch.from_file(str(numbers), shared=True, size=rows * dim, dtype=torch.float32).view(rows, dim)
    for start in range(0, rows, 2**20):
        piece = table[start : start + 2**20]
        piece.copy_(torch.randn(len(piece), dim, generator=torch.Generator().manual_seed(start)) * 0.05)
    (large / CHECKPOINTS).mkdir()
    checkpoint = large / CHECKPOINTS / "step-1"
    dcp.save({**state, weight: table}, checkpoint_id=checkpoint, no_dist=True)
    shutil.copy(checkpoint_path(run, "last") / PROGRESS, checkpoint)
    (checkpoint / RUN).write_text(json.dumps(describe_run(large)), encoding="utf-8")
    write_manifest(checkpoint, describe_files(checkpoint.iterdir()))
    del table
    numbers.unlink()
    write_checkpoint_index(large, {"last": "step-1"})


def compare(large: Path, model: Path) -> None:
    """A thousand rows here and there of the exported table against the checkpoint's."""
    config = load_run(large)
    table = Table(model / "tables" / "item.safetensors", None, 0, (config.tables["item"].rows, config.tables["item"].dim))
    worst, start = 0.0, 0
    for number, piece in enumerate(
        SavedTensors(checkpoint_path(large, "best")).pieces(WEIGHT.format(dim=config.tables["item"].dim))
    ):
        if number % 50 == 0:
            rows = torch.randint(len(piece), (1000,))
            worst = max(worst, float((table(start + rows) - piece[rows]).abs().max()))
        start += len(piece)
    print(f"largest difference of a number to the checkpoint's: {worst:.1e}")


def serve(model: Path, requests: int) -> None:
    start = time.perf_counter()
    command = [sys.executable, "-m", "prectr_torchrec.cli", "serve", "--model", str(model), "--port", "0", "--threads", "1"]
    server = subprocess.Popen([*command, "--deadline", "30"], stdout=subprocess.PIPE, text=True)
    try:
        memory = Memory(server.pid)
        assert server.stdout is not None
        port = int(server.stdout.readline().rsplit(":", 1)[1])
        loaded = time.perf_counter() - start
        connection, random, seconds = http.client.HTTPConnection("127.0.0.1", port), np.random.default_rng(0), []
        for _ in range(requests):
            body = json.dumps(request(random))
            start = time.perf_counter()
            connection.request("POST", "/v1/rank", body)
            answer = connection.getresponse()
            assert answer.status == 200 and len(json.loads(answer.read())["candidates"]) == CANDIDATES
            seconds.append(time.perf_counter() - start)
        print(
            f"server: ready after {loaded:.0f} s; {requests} requests of {CANDIDATES} candidates: p50 "
            f"{statistics.median(seconds) * 1e3:.0f} ms, p99 {float(np.quantile(seconds, 0.99)) * 1e3:.0f} ms; {memory}"
        )
    finally:
        server.terminate()
        server.wait(60)


def request(random: np.random.Generator) -> dict[str, Any]:
    ids = random.integers(0, 2**62, CANDIDATES + EVENTS).tolist()
    return {
        "user_id": int(random.integers(2**40)),
        "query": "red lamp",
        "history": [{"item_id": item, "title": "lamp", "click": 1, "age": 60} for item in ids[CANDIDATES:]],
        "candidates": [{"item_id": item, "title": "red lamp"} for item in ids[:CANDIDATES]],
    }


class Memory(threading.Thread):
    """The most that a process holds, in MB, as long as it lives."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._status, self._most = Path(f"/proc/{pid}/status"), {"RssAnon": 0.0, "VmRSS": 0.0}
        self.start()

    def run(self) -> None:
        while True:
            try:
                found = dict(re.findall(r"(\w+):\s+(\d+) kB", self._status.read_text(encoding="utf-8")))
            except OSError:
                return
            for name in self._most:
                self._most[name] = max(self._most[name], int(found.get(name, 0)) / 1e3)
            time.sleep(0.02)

    def __str__(self) -> str:
        return f"at most {self._most['RssAnon']:,.0f} MB anonymous, {self._most['VmRSS']:,.0f} MB resident"


if __name__ == "__main__":
    main()
