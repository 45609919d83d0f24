"""The gate that every path passes: what is no path of this machine is refused, by its scheme, before anything is made."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import typer
from raw_logs import random_log, write_log, write_table
from torchx.specs.finder import ComponentValidationException
from typer.testing import CliRunner

from prectr_torchrec import Ranker
from prectr_torchrec.baselines.run import run_baseline
from prectr_torchrec.checkpoints.inspection import inspect_checkpoint
from prectr_torchrec.cli import demo
from prectr_torchrec.cli.main import app
from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.config.files import load_config
from prectr_torchrec.config.run import validate_config
from prectr_torchrec.config.text import PairsConfig, TextConfig
from prectr_torchrec.data.pairs.pairs import write_pairs
from prectr_torchrec.data.prepare.prepare import prepare
from prectr_torchrec.data.simulate.simulate import simulate
from prectr_torchrec.evaluation import evaluate
from prectr_torchrec.evaluation.explain import explain
from prectr_torchrec.evaluation.report import write_report
from prectr_torchrec.launchers import components
from prectr_torchrec.runs.layout import load_run
from prectr_torchrec.serving.export import export
from prectr_torchrec.serving.score_files import score_files
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.system.paths import PathError, check_arguments, literal, local_path
from prectr_torchrec.text import distill, teach
from prectr_torchrec.training import rank

URLS = ["s3://bucket/x", "gs://b/x", "hdfs://name:9000/x", "abfs://c@a/x", "file:///x", "dbfs:/x", "simplecache::s3://b/x"]
PLAIN = ["runs/a", "/tmp/a[1]", "12:30/x", "click=1/x", "a:b", "./s3:", "C:/x"]


@pytest.mark.parametrize("url", URLS)
def test_a_url_is_refused_as_text_as_path_and_within_arguments(url: str) -> None:
    for given in (url, Path(url)):
        if "::" not in url or isinstance(given, str):
            with pytest.raises(PathError, match=r"^out: .*only paths of this machine are; mount the bucket"):
                local_path(given, "out")
    for words in (["--out", url], [f"--out={url}"]):
        with pytest.raises(PathError, match=r"^--out: "):
            check_arguments(["train", "--flag", *words])


@pytest.mark.parametrize("path", PLAIN)
def test_names_that_look_odd_are_paths(path: str) -> None:
    assert local_path(path) == Path(path)
    check_arguments(["--out", path])


def commands(group: typer.Typer, prefix: tuple[str, ...] = ()) -> list[tuple[list[str], list[str]]]:
    """Each command of the group with its options and arguments that are paths."""
    found = []
    for command in group.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__.replace("_", "-")
        parameters = inspect.signature(command.callback, eval_str=True).parameters.values()
        found.append(([*prefix, name], [p.name for p in parameters if "Path" in str(p.annotation)]))
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        found += commands(inner.typer_instance, (*prefix, inner.name) if inner.name else prefix)
    return found


@pytest.mark.parametrize(("command", "paths"), [c for c in commands(app) if c[1]], ids=lambda value: " ".join(value))
def test_no_command_takes_a_url_for_a_path(command: list[str], paths: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for path in paths:
        option = [] if path == "runs" else [f"--{path.replace('_', '-')}"]
        done = CliRunner().invoke(app, [*command, *option, "s3://bucket/x"])
        assert isinstance(done.exception, PathError), (command, path, done.output)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["md:x", "sqlite:a[1]", "12:30"])
def test_a_folder_that_a_library_would_take_for_a_scheme_is_one(folder: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    raw = write_log(random_log(requests=12), Path(folder, "raw").absolute())
    write_table([{"request_id": 1, "item_id": 4001}], Path(folder, "wanted.parquet").absolute())
    options: dict[str, Any] = {"candidates": Path(folder, "wanted.parquet"), "progress": False}
    relative = raw.relative_to(tmp_path)
    assert prepare(DataConfig(), TextConfig(vocab_size=300), relative, Path(folder, "out"), **options)["counts"]["events"]
    assert write_pairs(DataConfig(), PairsConfig(), relative, Path(folder, "pairs.parquet"))["rows"]
    assert sorted(path.name for path in Path(folder).iterdir()) == ["out", "pairs.parquet", "raw", "wanted.parquet"]


@pytest.mark.parametrize("folder", ["a?b", "a\\b"])
def test_a_folder_in_which_there_can_be_no_database_is_refused_before_it_is_made(folder: str, tmp_path: Path) -> None:
    raw, out = write_log(random_log(requests=12), tmp_path / "raw"), tmp_path / folder
    with pytest.raises(PathError, match="in a path means something else to DuckDB"):
        prepare(DataConfig(), TextConfig(vocab_size=300), raw, out / "samples", progress=False)
    with pytest.raises(PathError, match="in a path means something else to DuckDB"):
        write_pairs(DataConfig(), PairsConfig(), raw, out / "pairs.parquet")
    assert not list(tmp_path.glob("a*/*"))


def test_a_pattern_with_a_backslash_is_refused() -> None:
    with pytest.raises(PathError, match="in a path means something else to DuckDB"):
        literal(Path("/a/\\[b]"))


S3 = Path("s3://bucket/x")


@pytest.mark.parametrize(
    "call",
    [
        lambda out: prepare(DataConfig(), TextConfig(), out, S3),
        lambda out: prepare(DataConfig(), TextConfig(), out, out, relevance=[S3]),
        lambda out: write_pairs(DataConfig(), PairsConfig(), S3, out),
        lambda out: write_pairs(DataConfig(), PairsConfig(), out, out, test_queries=S3),
        lambda out: simulate(S3),
        lambda out: demo.demo(S3),
        lambda out: load_run(S3),
        lambda out: explain(S3, out, 1),
        lambda out: export(out, S3),
        lambda out: score_files(out, out, S3),
        lambda out: inspect_checkpoint(S3),
        lambda out: write_report(out / "r.html", {"a": S3}),
        lambda out: run_baseline("trees", out, S3),
        lambda out: Ranker.load("s3://bucket/x"),
        lambda out: rank.main(["--config", "demo", "--data", str(out), "--run", "s3://bucket/x"]),
        lambda out: evaluate.main(["--run", str(out), "--data", "s3://bucket/x"]),
        lambda out: teach.main(["--teacher", str(out), "--pairs", str(out), "--out", "s3://bucket/x"]),
        lambda out: distill.main(["--config", "student", "--pairs", "s3://bucket/x", "--out", str(out)]),
    ],
)
def test_no_function_takes_a_url_for_a_path(call: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PathError, match="s3:// is not supported"):
        call(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "tree",
    [
        {"data": {"raw": {"items": {"path": "s3://b/x"}}}},
        {"text": {"path": "s3://b/x"}},
        {"distill": {"token_vectors": "s3://b/x"}},
        {"losses": {"rehearsal": {"pairs": "p", "scores": ["s3://b/x"]}}},
        {"train": {"init_from": {"run": "s3://b/x"}}},
    ],
)
def test_no_setting_takes_a_url_for_a_path(tree: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"mine.yaml: [a-z_.0-9]+: .*s3:// is not supported"):
        validate_config({"name": "n", **tree}, "mine.yaml")


def test_a_configuration_itself_is_no_url() -> None:
    with pytest.raises(PathError, match=r"config: .*s3:// is not supported"):
        load_config("s3://b/demo.yaml")


@pytest.mark.parametrize(
    ("component", "names"),
    [("train", "config data run"), ("evaluate", "run data"), ("teach", "teacher pairs out"), ("distill", "config pairs out")],
)
def test_no_component_takes_a_url_for_a_path(component: str, names: str) -> None:
    for url in names.split():
        arguments = {name: "s3://b/x" if name == url else name for name in names.split()}
        with pytest.raises(ComponentValidationException, match=f"--{url}: .*s3:// is not supported"):
            getattr(components, component)(**arguments)
    with pytest.raises(ComponentValidationException, match=r"--set: .*a URL is not supported"):
        getattr(components, component)("--set=text.path=s3://b/x", **{name: name for name in names.split()})


@pytest.mark.parametrize("name", ["../../x", "a/b", ".hidden", "a b", ""])
def test_a_table_is_called_as_a_file_can_be(name: str) -> None:
    tree = {"name": "n", "tables": {name: {"rows": 10, "dim": 8}}, "features": {"user_id": {"table": name}}}
    with pytest.raises(ConfigError, match="becomes the name of files; of letters, digits"):
        validate_config(tree, "x.yaml")
