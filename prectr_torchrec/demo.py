"""The main job on a simulated log, start to finish: `prectr demo`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from prectr_torchrec.config_files import load_config
from prectr_torchrec.data.prepare import prepare
from prectr_torchrec.data.simulate import simulate
from prectr_torchrec.training.report import write_report

RUNS = {"prectr_v2": "demo", "prectr_v1": "demo_v1", "din": "demo_din", "dnn": "demo_dnn"}
"""Name in the report -> shipped configuration."""
RANKS = 2


def demo(out: Path) -> None:
    """Simulates a log, prepares it, trains PRECTR-V2, V1 and two baselines on two ranks through TorchX, evaluates, reports.

    Finished steps are skipped, so that repeating it is quick.

    Args:
        out: folder of everything it writes.

    Raises:
        RuntimeError: a TorchX job failed.
    """
    log, samples, candidates, report = out / "log", out / "samples", out / "candidates", out / "report.html"
    _say(f"1/5  simulated search log -> {log}")
    if not (log / "meta.json").exists():
        simulate(log)
    _say(f"2/5  samples -> {samples}, whole candidate sets of the test requests -> {candidates}")
    config, oracle = load_config(RUNS["prectr_v2"]), log / "eval" / "oracle.parquet"
    config.data.split.test_from = json.loads((log / "meta.json").read_text())["test_from_timestamp"]
    prepare(config.data, config.text, log / "raw", samples)
    prepare(config.data, config.text, log / "raw", candidates, candidates=oracle)
    runs = {name: out / "runs" / name for name in RUNS}
    for name, run in runs.items():
        _say(f"3/5  train {name} on {RANKS} ranks through TorchX -> {run}")
        if not (run / "metrics-candidates.json").exists():
            _torchx(out, "prectr.train", "--config", RUNS[name], "--data", str(samples), "--run", str(run))
        _say(f"4/5  evaluate {name} on logged clicks and, against the oracle, on all candidates")
        if not (run / "metrics-candidates.json").exists():
            for data in (samples, candidates):
                arguments = ("--", "--oracle", str(oracle), "--train-data", str(samples))
                _torchx(out, "prectr.evaluate", "--run", str(run), "--data", str(data), *arguments)
    _say(f"5/5  report -> {report}")
    write_report(report, runs, title="PRECTR on a simulated search log")
    _say(f"done: open {report}; curves: tensorboard --logdir {out / 'runs'}")


def _torchx(out: Path, component: str, *arguments: str) -> None:
    """Runs a TorchX job on this machine; its logs stay in `out/logs`."""
    programs = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"}
    scheduler = ["-s", "local_cwd", "-cfg", f"log_dir={(out / 'logs').absolute()}"]
    command = [str(programs / "torchx"), "run", *scheduler, component, "-j", f"1x{RANKS}", *arguments]
    if subprocess.run(command, env=environment).returncode:
        raise RuntimeError(f"{component} failed; its logs are in {out / 'logs'}. Command: {' '.join(command)}")


def _say(text: str) -> None:
    print(f"\n== {text}", flush=True)
