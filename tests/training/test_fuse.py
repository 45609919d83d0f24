"""Two runs, trained apart, become one that is evaluated, explained, exported and served as any other."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from small_run import MIXED, small_config, write_small_data

from prectr_torchrec import Ranker
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.schema import TOKENIZER
from prectr_torchrec.data.tokenizer import load_tokenizer
from prectr_torchrec.distributed.launch import launch
from prectr_torchrec.distributed.process import process_group
from prectr_torchrec.evaluation.effect_sums import LABELLED, write_effects
from prectr_torchrec.evaluation.evaluate import main as evaluate
from prectr_torchrec.evaluation.explain import explain, format_explanation
from prectr_torchrec.modules import Examination
from prectr_torchrec.runs.layout import load_run
from prectr_torchrec.serving.effect_statistics import EffectStatistics, shown_effects
from prectr_torchrec.serving.export import export
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.training.fuse import fit_weights, fused_config, main, members_of
from prectr_torchrec.training.trainer import Trainer

KEYS = [("request_id", "ascending"), ("item_id", "ascending")]
STAGES = {"stages": [{"split": "train", "epochs": 1, "lr": 0.003}]}


def mixed_config() -> RunConfig:
    """Of unlike names of features and tables, as the shipped one."""
    base = small_config(**MIXED)
    vectors = {"candidate_title_vector": "candidate_title_tokens", "candidate_brand_id_taste": "candidate_brand_id"}
    tree = base.model_dump(mode="json")
    tables = {name: table for name, table in tree["tables"].items() if name.endswith("_effect")}
    brand = tree["tables"]["brand"]
    tables |= {"title_vector": brand, "brand_id_taste": brand | {"dim": 2 * brand["dim"]}}
    features = {name: feature for name, feature in tree["features"].items() if name.endswith("_effect")}
    features |= {name: {"table": name.removeprefix("candidate_"), "column": column} for name, column in vectors.items()}
    return RunConfig.model_validate({**tree, "name": "effects", "tables": tables, "features": features, "train": STAGES})


class Job(NamedTuple):
    runs: dict[str, Path]
    data: Path
    fused: Path


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("fuse")
    config = small_config(train=STAGES)
    samples = write_small_data(folder / "samples", config, requests=60)
    runs = {"small": folder / "small", "effects": folder / "effects"}
    with process_group("cpu") as process:
        Trainer(config, samples, runs["small"], process).train()
        Trainer(mixed_config(), samples, runs["effects"], process).train()
    data = folder / "data"
    write_effects(runs["effects"], samples, data)
    main(["--member", str(runs["small"]), "--member", str(runs["effects"]), "--data", str(data), "--run", str(folder / "fused")])
    for run, scored in ((folder / "fused", data), (runs["small"], samples), (runs["effects"], samples)):
        evaluate(["--run", str(run), "--data", str(scored)])
    return Job(runs, data, folder / "fused")


def predictions(run: Path) -> pa.Table:
    return pq.read_table(run / "predictions-test.parquet").sort_by(KEYS)


def logit(table: pa.Table) -> np.ndarray[Any, Any]:
    p = table["click_probability"].to_numpy().astype(np.float64)
    return np.log(p) - np.log1p(-p)


def test_members_say_within_it_what_they_say_alone(job: Job) -> None:
    fused, alone = predictions(job.fused), predictions(job.runs["small"])
    np.testing.assert_allclose(fused["small_logit"].to_numpy(), logit(alone), atol=1e-4)
    np.testing.assert_array_equal(fused["effect_own"].to_numpy(), alone["effect_own"].to_numpy())
    mixed = predictions(job.runs["effects"])
    np.testing.assert_allclose(fused["query_effect"].to_numpy(), mixed["query_effect"].to_numpy(), atol=1e-5)


def test_the_score_is_the_weighted_sum_with_the_user_inferred(job: Job) -> None:
    fused = predictions(job.fused)
    config = load_run(job.fused)
    assert config.model.kind == "fused" and config.model.members["effects"].model.posterior == {"user": 15}
    assert "user_effect" not in config.tables and "user_effect" not in config.features
    columns = np.stack([fused["small_logit"].to_numpy(), fused["effects_logit"].to_numpy(), np.ones(len(fused))], axis=1)
    weights, *_ = np.linalg.lstsq(columns, logit(fused), rcond=None)
    np.testing.assert_allclose(columns @ weights, logit(fused), atol=1e-4)
    rows = pa.concat_tables([pq.read_table(p) for p in sorted((job.data / "test").glob("*.parquet"))]).to_pylist()
    strangers = {row["request_id"] for row in rows if not any(row["user_sums"])}
    of_strangers = np.isin(fused["request_id"].to_numpy(), list(strangers))
    assert of_strangers.any() and not fused["user_effect"].to_numpy()[of_strangers].any()
    assert not fused["user_slope"].to_numpy()[of_strangers].any()
    assert fused["user_effect"].to_numpy()[~of_strangers].any()


def test_the_export_scores_what_the_run_scores_and_explains_it(job: Job, tmp_path: Path) -> None:
    export(job.fused, tmp_path / "exported")
    ranker = Ranker.load(tmp_path / "exported")
    samples = pa.concat_tables([pq.read_table(path) for path in sorted((job.data / "test").glob("*.parquet"))])
    scored = ranker.score(samples).sort_by(KEYS)
    found = np.abs(scored["click_probability"].to_numpy() - predictions(job.fused)["click_probability"].to_numpy())
    assert found.max() < 1e-5
    row = samples.to_pylist()[0]
    request = {
        "query": row["query"],
        "user_sums": row["user_sums"],
        "candidates": [{"item_id": 7, "title": "red lamp"}, {"item_id": 8}],
    }
    explained = ranker.score(request, explain=True).explanation
    assert explained is not None and {"user_slope", "user_slope_sd", "small_logit", "effects_logit"} <= explained["parts"].keys()
    own = explain(job.fused, job.data, row["request_id"])
    assert {"user_slope", "effect_own"} <= own["parts"].keys()
    known = next(place for place, row in enumerate(samples.to_pylist()) if any(row["user_sums"]))
    own = explain(job.fused, job.data, samples["request_id"][known].as_py())
    likes, dislikes = own["taste"]["likes"], own["taste"]["dislikes"]
    assert 0 < len(likes) <= 6 and min(likes.values()) > 0 > max(dislikes.values())
    assert list(likes.values()) == sorted(likes.values(), reverse=True)
    assert {*likes, *dislikes} <= load_tokenizer(job.data / TOKENIZER).get_vocab().keys()
    (served,) = ranker.score_samples(ranker.schema.from_arrow(samples.slice(known, 1)), [True])
    assert served.explanation is not None and served.explanation["taste"]["likes"] == pytest.approx(likes, abs=1e-5)
    assert f"the user likes in titles: {next(iter(likes))} +" in format_explanation(own)
    nobody = ranker.score({**request, "user_sums": None}, explain=True).explanation
    assert nobody is not None and nobody["taste"] == {"likes": {}, "dislikes": {}}


def test_served_sums_are_those_of_the_samples_event_by_event(job: Job, tmp_path: Path) -> None:
    export(job.fused, tmp_path / "exported")
    ranker = Ranker.load(tmp_path / "exported")
    statistics = EffectStatistics(ranker.config.data.effects)
    samples = pa.concat_tables([pq.read_table(p) for split in LABELLED for p in sorted((job.data / split).glob("*.parquet"))])
    waiting: list[dict[str, Any]] = []
    for place in np.argsort(samples["timestamp"].to_numpy(), kind="stable").tolist():
        sample = samples.slice(place, 1)
        row = sample.to_pylist()[0]
        if waiting and waiting[0]["time"] < row["timestamp"]:  # what happens at one moment knows nothing of each other
            for event in waiting:
                statistics.add(**{name: value for name, value in event.items() if name != "time"})
            waiting = []
        found = statistics.look_up(row["user_id"], row["query_id"])["user_sums"]
        np.testing.assert_allclose(found, row["user_sums"], atol=1e-4)
        shown = shown_effects(ranker, sample)
        for i, click in enumerate(row["candidate_click"]):
            if click is not None:
                event = {"user_id": row["user_id"], "query_id": row["query_id"], "shown": shown, "place": i, "click": click}
                waiting.append({**event, "time": row["timestamp"]})
    again = EffectStatistics(ranker.config.data.effects)
    again.load_state_dict(statistics.state_dict())
    np.testing.assert_array_equal(
        again.look_up(row["user_id"], 0)["user_sums"], statistics.look_up(row["user_id"], 0)["user_sums"]
    )


def test_two_ranks_make_the_same_run(job: Job, tmp_path: Path) -> None:
    members = [word for run in job.runs.values() for word in ("--member", str(run))]
    launch("fuse", [*members, "--data", str(job.data), "--run", str(tmp_path / "two")], 2)
    evaluate(["--run", str(tmp_path / "two"), "--data", str(job.data)])
    one, two = (predictions(run)["click_probability"].to_numpy() for run in (job.fused, tmp_path / "two"))
    np.testing.assert_allclose(one, two, atol=1e-5)


def test_weights_are_those_of_the_least_loss() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4_000, 2))
    click = rng.random(4_000) < 1 / (1 + np.exp(-(logits @ [0.8, 0.3] - 1)))
    expected = LogisticRegression(C=np.inf, tol=1e-10).fit(logits, click)
    position = torch.ones(4_000, dtype=torch.long)
    found = fit_weights(torch.from_numpy(logits), position, torch.from_numpy(click * 1.0), Examination(3))
    np.testing.assert_allclose(found.numpy(), [*expected.coef_[0], expected.intercept_[0]], atol=1e-4)


def test_sums_of_another_ranker_are_refused(job: Job, tmp_path: Path) -> None:
    manifest = json.loads((job.data / "prepared.json").read_text(encoding="utf-8"))
    shutil.copytree(job.data / "test", tmp_path / "test")
    (tmp_path / "prepared.json").write_text(json.dumps({**manifest, "effects": "another"}), encoding="utf-8")
    with pytest.raises(ValueError, match="its sums of effects were made by another ranker than those of"):
        evaluate(["--run", str(job.fused), "--data", str(tmp_path)])


def test_what_does_not_fit_together_is_said(job: Job) -> None:
    both = {"small": job.runs["small"], "again": job.runs["small"]}
    with pytest.raises(ConfigError, match=r"tables\.\w+ is in another member too, with other weights"):
        fused_config(both, job.data)
    with pytest.raises(ConfigError, match="a fused ranker is no member of another one"):
        fused_config({"fused": job.fused}, job.data)
    with pytest.raises(ConfigError, match=re.escape(f"has the name 'small', as that of {job.runs['small']}")):
        members_of([job.runs["small"], job.runs["small"]])
