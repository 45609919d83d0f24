"""Training with one table of up to a billion rows: how throughput and resident memory grow with its rows.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/billion.py --out DIR [--rows 1000000 10000000 100000000 1000000000]

Each is a real `prectr train` of the demo's ranker with its item table at so many rows of `--dim` fp16 numbers and row-wise
Adagrad, on samples of a simulated log whose item ids are replaced by random ones: every lookup meets another row, as it does
where items are many, and the sizes do the same work. A run is killed after its first checkpoint and resumed from it, so that
it is restored as well as saved. Resident memory is the sum over the job's processes; checkpoints of earlier sizes are deleted.
Writes `results.json`, `results.md` and `results.png` to `--out`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from common import describe, simulated_samples
from matplotlib import pyplot

from prectr_torchrec.config.files import load_config
from prectr_torchrec.runs.layout import CHECKPOINTS

GIB = 1 << 30
SHARED, SPARE = 1.10, 2 * GIB
"""What a job may take beside the rows and their optimizer state: a share of them, and a constant."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[10**6, 10**7, 10**8, 10**9])
    parser.add_argument("--dim", type=int, default=4, help="numbers of a row")
    parser.add_argument("--requests", type=int, default=6_000, help="of the simulated log")
    parser.add_argument("--nproc", type=int, default=1)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    machine = describe("torch", "torchrec", "fbgemm-gpu-cpu")
    print(machine, flush=True)
    data = samples(arguments)
    results: list[dict[str, Any]] = []
    for rows in arguments.rows:
        results.append(measure(arguments, data, rows))
        write(arguments, machine, results)


def samples(arguments: argparse.Namespace) -> Path:
    """Prepared samples whose item ids are random 64-bit numbers."""
    folder = arguments.out / "samples"
    if not folder.exists():
        shutil.rmtree(arguments.out / "made", ignore_errors=True)
        made = simulated_samples(load_config("demo"), arguments.out / "made", arguments.requests)
        random = np.random.default_rng(1)
        for path in sorted(made.glob("*/*.parquet")):
            table = pq.read_table(path)
            for place, name in enumerate(table.schema.names):
                if name.endswith("_item_id"):
                    table = table.set_column(place, table.schema.field(place), renamed(table[name].combine_chunks(), random))
            pq.write_table(table, path)
        made.rename(folder)
    return folder


def renamed(ids: pa.Array, random: np.random.Generator) -> pa.Array:
    """Lists of the same lengths with other ids."""
    values = pa.array(random.integers(-(2**63), 2**63 - 1, len(ids.flatten())), pa.int64())
    return (
        pa.ListArray.from_arrays(ids.offsets, values, type=ids.type)
        if not ids.offset
        else renamed(pa.concat_arrays([ids]), random)
    )


def measure(arguments: argparse.Namespace, data: Path, rows: int) -> dict[str, Any]:
    """One size: begun, killed when it has saved, resumed to its end."""
    run = arguments.out / f"run-{rows}"
    shutil.rmtree(run, ignore_errors=True)
    table = f"tables.item={{rows: {rows}, dim: {arguments.dim}, dtype: fp16, sharding: [row_wise]}}"
    command = [sys.executable, "-m", "prectr_torchrec.cli", "train", "--config", "demo", "--data", str(data), "--run", str(run)]
    others = [f"tables.{name}.dim={arguments.dim}" for name in load_config("demo").tables if name != "item"]
    for setting in (table, *others, "train.log_every=20", "train.checkpoint_every=100", "train.keep_checkpoints=1"):
        command += ["--set", setting]
    command += ["--nproc", str(arguments.nproc)]
    first = watch(command, stop=lambda: (run / CHECKPOINTS / "index.json").exists())
    saved = json.loads((run / CHECKPOINTS / "index.json").read_text(encoding="utf-8"))
    second = watch(command)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = max(line["step"] for line in lines)
    rates = [line["samples_per_second"] for line in lines if line.get("stage") == "train"]
    found = {
        "rows": rows,
        "table_bytes": rows * (arguments.dim * 2 + 4),
        "samples_per_second": statistics.median(rates[1:]),
        "bytes_begun": first["bytes"],
        "bytes_resumed": second["bytes"],
        "seconds_begun": first["seconds"],
        "seconds_resumed": second["seconds"],
        "killed_with": saved,
        "steps": steps,
        "checkpoint_bytes": sum(path.stat().st_size for path in (run / CHECKPOINTS).rglob("*") if path.is_file()),
    }
    shutil.rmtree(run / CHECKPOINTS)
    print(json.dumps(found), flush=True)
    return found


def watch(command: list[str], stop: Callable[[], bool] | None = None) -> dict[str, float]:
    """Runs a job; its largest resident memory over all processes, in bytes, and its seconds.

    Args:
        stop: the job is killed, all of it, as soon as this holds; without it, it must end well.
    """
    began, most = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as output, subprocess.Popen(command, stderr=output, start_new_session=True) as job:
        while job.poll() is None:
            family = _family(job.pid)
            most = max(most, sum(map(_resident, family)))
            if stop is not None and stop():
                for process in family:
                    _kill(process)
            time.sleep(0.2)
        if job.returncode > 0:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {job.returncode}:\n{output.read()[-4000:]}")
    return {"bytes": most, "seconds": round(time.perf_counter() - began, 1)}


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def _kill(process: psutil.Process) -> None:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return


def write(arguments: argparse.Namespace, machine: str, results: list[dict[str, Any]]) -> None:
    lines = [f"{machine}, {arguments.nproc} ranks, rows of {arguments.dim} fp16 numbers", ""]
    columns = ["rows", "rows and state, GiB", "resident", "allowed", "resident when resumed", "samples/s", "of the first"]
    lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for found in results:
        allowed = SHARED * found["table_bytes"] + SPARE
        sizes = (found["table_bytes"], found["bytes_begun"], allowed, found["bytes_resumed"])
        cells = [f"{found['rows']:,}", *(f"{size / GIB:.2f}" for size in sizes)]
        cells += [f"{found['samples_per_second']:,.0f}", f"{found['samples_per_second'] / results[0]['samples_per_second']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    (arguments.out / "results.json").write_text(json.dumps({"machine": machine, "runs": results}, indent=1), encoding="utf-8")
    (arguments.out / "results.md").write_text("\n".join([*lines, ""]), encoding="utf-8")
    print("\n".join(lines), flush=True)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.5))
    rows = [found["rows"] for found in results]
    for key, label in (
        ("table_bytes", "rows and state"),
        ("bytes_begun", "resident, begun"),
        ("bytes_resumed", "resident, resumed"),
    ):
        left.loglog(rows, [found[key] / GIB for found in results], marker="o", label=label)
    left.set(xlabel="rows", ylabel="GiB")
    left.legend()
    right.semilogx(rows, [found["samples_per_second"] for found in results], marker="o")
    right.set(xlabel="rows", ylabel="samples/s", ylim=(0, None))
    figure.tight_layout()
    figure.savefig(arguments.out / "results.png", dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
