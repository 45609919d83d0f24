from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_model import copies
from small_run import small_config, write_small_data
from torch import Tensor

from prectr_torchrec.checkpoints.names import parameter_name
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.schema import TOKENIZER
from prectr_torchrec.data.tokenizer import DOCUMENT_FREQUENCY
from prectr_torchrec.distributed.process import Process, process_group
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.training.trainer import Trainer


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data` and a trained run `source`."""
    folder = tmp_path_factory.mktemp("init_from")
    config = small_config(train={"stages": [{"split": "train", "epochs": 1}]})
    write_small_data(folder / "data", config, requests=24)
    with process_group("cpu") as process:
        Trainer(config, folder / "data", folder / "source", process).train()
    return folder


@pytest.fixture
def process() -> Iterator[Process]:
    with process_group("cpu") as process:
        yield process


def config_from(source: Path, sharding: str = "table_wise", **init_from: Any) -> RunConfig:
    return small_config(sharding, train={"init_from": {"run": str(source / "source"), **init_from}, "seed": 7})


def start(source: Path, config: RunConfig, run: Path, process: Process) -> dict[str, Tensor]:
    """The weights that a run begins with."""
    return copies(Trainer(config, source / "data", run, process).model.state_dict())


def test_chosen_tables_and_towers_start_as_the_other_run_ended(source: Path, tmp_path: Path, process: Process) -> None:
    chosen = {"include": ["tables.item", "tables.[bu][rs]*", "relevance.*"], "exclude": ["tables.brand", "relevance.tower.*"]}
    theirs = start(source, config_from(source), tmp_path / "all", process)
    own = start(source, small_config("table_wise", train={"seed": 7}), tmp_path / "none", process)
    found = start(source, config_from(source, **chosen), tmp_path / "some", process)
    taken = {n for n in found if torch.equal(found[n], theirs[n]) and not torch.equal(found[n], own[n])}
    kept = {n for n in found if torch.equal(found[n], own[n]) and not torch.equal(found[n], theirs[n])}
    tables = {parameter_name(n) for n in taken if n.startswith("embeddings.")}
    assert tables == {"tables.item", "tables.user"}
    assert {parameter_name(n).split(".")[0] for n in taken - kept} == {"tables", "relevance"}
    assert any(parameter_name(n).startswith("relevance.tower.") for n in kept) and any(".click" in n for n in kept)


def test_tables_that_are_reset_begin_again_as_the_other_run_ended(source: Path, tmp_path: Path, process: Process) -> None:
    trainer = Trainer(config_from(source, include=["tables.item"]), source / "data", tmp_path / "run", process)
    began = copies(trainer.model.state_dict())
    tables = [value for name, value in trainer.model.state_dict().items() if name.startswith("embeddings.")]
    with torch.no_grad():
        for table in tables:
            table.local_shards()[0].tensor.fill_(9.0)
    trainer._reset_tables(epoch=1)
    again = copies(trainer.model.state_dict())
    same = {parameter_name(name) for name in began if name.startswith("embeddings.") and torch.equal(began[name], again[name])}
    assert same == {"tables.item"} and not any((value == 9.0).all() for value in again.values())


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"include": ["tables.itm"]}, r"train\.init_from: the pattern 'tables\.itm' matches no parameter; did you mean"),
        ({"exclude": ["nothing*"]}, r"train\.init_from: the pattern 'nothing\*' matches no parameter"),
        ({"checkpoint": "first"}, r"no checkpoint 'first'"),
        ({"run": "nowhere"}, r"nowhere: no run directory"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    source: Path, tmp_path: Path, process: Process, settings: dict[str, Any], complaint: str
) -> None:
    with pytest.raises((ConfigError, FileNotFoundError), match=complaint):
        start(source, config_from(source, **settings), tmp_path / "run", process)


def test_other_shapes_are_refused_with_both(source: Path, tmp_path: Path, process: Process) -> None:
    config = config_from(source)
    config.tables["item"].rows = 202
    with pytest.raises(ConfigError, match=r"tables\.item: 101 x 8 there and 202 x 8 here"):
        start(source, config, tmp_path / "run", process)


def test_parameters_that_the_other_run_lacks_are_refused(source: Path, tmp_path: Path, process: Process) -> None:
    config = config_from(source)
    config.model.cross_layers = 1
    with pytest.raises(ConfigError, match=r"click.*: not in it"):
        start(source, config, tmp_path / "run", process)


def test_text_of_other_tokens_is_refused(source: Path, tmp_path: Path, process: Process) -> None:
    other = write_small_data(tmp_path / "data", small_config(), requests=8)
    (other / TOKENIZER / DOCUMENT_FREQUENCY).write_text(
        (other / TOKENIZER / DOCUMENT_FREQUENCY).read_text(encoding="utf-8").replace("1", "2"), encoding="utf-8"
    )
    Trainer(config_from(source), other, tmp_path / "later", process)  # a later log of the same tokens
    (other / TOKENIZER / "tokenizer.json").write_text(
        (other / TOKENIZER / "tokenizer.json").read_text(encoding="utf-8") + "\n", encoding="utf-8"
    )
    with pytest.raises(ConfigError, match=r"the tokens of .* are others; exclude .*tables\.title_token"):
        Trainer(config_from(source), other, tmp_path / "run", process)
    with pytest.raises(ConfigError, match=r"exclude .*taste\.title\.token\.weight, or prepare"):
        Trainer(config_from(source, include=["*.taste.*"]), other, tmp_path / "taste", process)
    Trainer(config_from(source, include=["tables.item"]), other, tmp_path / "other", process)
