"""One test split, scored in four ways: by the trainer, by a ranker, by `prectr score` and over HTTP; and with tables quantised.

python benchmarks/parity.py --run RUN --data PREPARED
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import describe
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from serving_requests import plain_requests

from prectr_torchrec import Ranker
from prectr_torchrec.distributed.launch import launch
from prectr_torchrec.serving.export import export
from prectr_torchrec.serving.score_files import score_files

KEYS = [("request_id", "ascending"), ("item_id", "ascending")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="prepared folder; its test split is scored")
    arguments = parser.parse_args()
    print(describe("torch", "torchrec", "fbgemm-gpu-cpu"))
    test = arguments.data / "test"
    samples = pa.concat_tables([pq.read_table(path) for path in sorted(test.glob("*.parquet"))])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trained = ["--run", str(arguments.run), "--data", str(arguments.data), "--split", "test"]
        launch("evaluate", [*trained, "--predictions", str(folder / "trainer.parquet"), "--metrics", str(folder / "m.json")], 1)
        trainer = pq.read_table(folder / "trainer.parquet").sort_by(KEYS)
        click = trainer["click"].to_numpy()
        print(f"{samples.num_rows:,} requests, {len(click):,} candidates; AUC of the trainer's scores {auc(trainer, click):.4f}")
        export(arguments.run, folder / "fp32")
        score_files(folder / "fp32", test, folder / "scores.parquet")
        tell("Ranker.score", trainer, Ranker.load(folder / "fp32").score(samples))
        tell("prectr score", trainer, pq.read_table(folder / "scores.parquet"))
        tell("prectr serve", trainer, over_http(folder / "fp32", samples))
        for precision in ("fp16", "int8"):
            export(arguments.run, folder / precision, quantize=precision)  # type: ignore[arg-type]
            scored = Ranker.load(folder / precision).score(samples)
            tell(f"Ranker.score, {precision}", trainer, scored)
            print(f"    AUC {auc(scored.sort_by(KEYS), click) - auc(trainer, click):+.6f}")


def over_http(model: Path, samples: pa.Table) -> pa.Table:
    command = [sys.executable, "-m", "prectr_torchrec.cli", "serve", "--model", str(model), "--port", "0", "--threads", "1"]
    server = subprocess.Popen([*command, "--deadline", "30"], stdout=subprocess.PIPE, text=True)
    rows: list[dict[str, Any]] = []
    try:
        assert server.stdout is not None
        connection = http.client.HTTPConnection("127.0.0.1", int(server.stdout.readline().rsplit(":", 1)[1]))
        for request in plain_requests(samples):
            connection.request("POST", "/v1/rank", json.dumps(request))
            answer = json.loads(connection.getresponse().read())
            names = ("item_id", "click_probability", "relevance_probabilities")
            rows += [{"request_id": request["request_id"], **{n: row[n] for n in names}} for row in answer["candidates"]]
    finally:
        server.terminate()
        server.wait(60)
    return pa.Table.from_pylist(rows)


def tell(name: str, trainer: pa.Table, scored: pa.Table) -> None:
    scored = scored.sort_by(KEYS)
    assert scored.select(["request_id", "item_id"]).equals(trainer.select(["request_id", "item_id"]))
    click = scored["click_probability"].to_numpy() - trainer["click_probability"].to_numpy()
    flat = [t["relevance_probabilities"].combine_chunks().flatten().to_numpy() for t in (scored, trainer)]
    worst = float(np.abs(flat[0] - flat[1]).max())
    print(
        f"{name:<20} largest difference of a click probability {np.abs(click).max():.1e}, of a relevance probability {worst:.1e}"
    )


def auc(scored: pa.Table, click: Any) -> float:
    return float(roc_auc_score(click, scored["click_probability"].to_numpy()))


if __name__ == "__main__":
    main()
