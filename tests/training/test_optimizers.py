from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_model import Small, small_model
from small_run import small_config

from prectr_torchrec.config.train import StageConfig
from prectr_torchrec.data.reader.reader import SearchReader
from prectr_torchrec.data.schema import TOKENIZER
from prectr_torchrec.training.optimizers import reset_tables

STAGE = StageConfig(epochs=1, lr=0.01, encoder_lr=0.001, table_lr=0.1, warmup_steps=4)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Small]:
    with small_model(tmp_path) as small:
        yield small


def rates(small: Small, step: int, total: int = 10) -> tuple[float, float, float]:
    """Of towers, encoder and tables."""
    small.optimizers.set_rates(STAGE, step, total)
    rates = {group["part"]: group["lr"] for group in small.optimizers.dense.param_groups}
    assert rates["relevance"] == rates["towers"]
    return rates["towers"], rates["encoder"], small.optimizers.fused.param_groups[0]["lr"]


def test_rates_warm_up_and_only_the_dense_ones_decay(small: Small) -> None:
    assert rates(small, 0) == pytest.approx((0.01 / 4, 0.001 / 4, 0.1 / 4))
    assert rates(small, 5) == pytest.approx((0.01 * 0.5, 0.001 * 0.5, 0.1))
    assert rates(small, 9) == pytest.approx((0.01 * 0.1, 0.001 * 0.1, 0.1))


def test_a_warm_up_takes_half_of_a_short_stage(small: Small) -> None:
    assert rates(small, 0, total=4) == pytest.approx((0.01 / 2, 0.001 / 2, 0.1 / 2))
    assert rates(small, 1, total=4) == pytest.approx((0.01 * 0.75, 0.001 * 0.75, 0.1))


def test_the_relevance_side_may_have_a_rate_of_its_own(small: Small) -> None:
    small.optimizers.set_rates(STAGE.model_copy(update={"relevance_lr": 0.002}), 5, 10)
    found = {group["part"]: group["lr"] for group in small.optimizers.dense.param_groups}
    assert (found["relevance"], found["encoder"], found["towers"]) == pytest.approx((0.001, 0.0005, 0.005))


def test_graded_pairs_move_the_relevance_side_alone(small: Small) -> None:
    before = small.weights()
    small.optimizers.set_rates(STAGE.model_copy(update={"split": "judgments"}), 3, 100)
    reader = SearchReader(small_config(), small.data, "judgments", small.data / TOKENIZER)
    small.optimizers.combined.zero_grad()
    small.model(next(reader.epoch(0)))[0].backward()
    small.optimizers.combined.step()
    moved = {name for name, weight in small.weights().items() if not torch.equal(before[name], weight)}
    assert moved and all(name.startswith("model.relevance.") for name in moved)
    groups = {group["part"]: len(group["params"]) for group in small.optimizers.dense.param_groups}
    of_text = sum(name.startswith("model.relevance.") for name, _ in small.model.named_parameters())
    assert groups["relevance"] + groups["encoder"] == of_text and groups["towers"] > 0


def test_a_new_stage_starts_without_the_old_ones_moments(small: Small) -> None:
    small.train()
    assert any(moment.abs().sum() > 0 for state in small.optimizers.dense.state.values() for moment in state.values())
    small.optimizers.restart()
    assert all(moment.eq(0).all() for state in small.optimizers.dense.state.values() for moment in state.values())


def test_every_table_and_every_tower_moves(small: Small) -> None:
    before = small.weights()
    small.optimizers.set_rates(STAGE, 3, 100)
    small.train()
    after = small.weights()
    parameters = {name.removeprefix("module.") for name, _ in small.model.named_parameters()}
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert parameters <= before.keys() and not still & parameters


def test_the_table_rate_reaches_the_kernels(small: Small) -> None:
    before = small.weights()
    small.optimizers.set_rates(STAGE.model_copy(update={"table_lr": 1e-12}), 3, 100)
    small.train(steps=1)
    after = small.weights()
    tables = [name for name in before if name.startswith("embeddings.")]
    assert tables and all(torch.allclose(before[name], after[name], atol=1e-9) for name in tables)


def test_reset_tables_forgets_weights_and_states_and_keeps_the_towers(small: Small) -> None:
    small.optimizers.set_rates(STAGE, 3, 100)
    small.train()
    trained = small.weights()
    assert any(state.abs().sum() > 0 for state in small.states().values())
    reset_tables(small.model, small.optimizers, 1, small_config().tables)
    fresh = small.weights()
    assert all(torch.equal(trained[n], fresh[n]) for n in trained if not n.startswith("embeddings."))
    assert all(not torch.equal(trained[n], fresh[n]) for n in trained if n.startswith("embeddings."))
    assert all(fresh[n].abs().max() <= 101**-0.5 for n in fresh if n.startswith("embeddings."))
    assert all(state.eq(0).all() for state in small.states().values())
    reset_tables(small.model, small.optimizers, 1, small_config().tables)
    assert all(torch.equal(fresh[n], w) for n, w in small.weights().items())


def test_taste_decays_at_its_own_rate(tmp_path: Path) -> None:
    with small_model(tmp_path, small_config(train={"weight_decay": 0.02, "taste_weight_decay": 4.0})) as small:
        found = {group["part"]: group["weight_decay"] for group in small.optimizers.dense.param_groups}
    assert found == {"encoder": 0.02, "relevance": 0.02, "towers": 0.02, "taste": 4.0, "offsets": 0.0}


def test_what_must_travel_has_ten_times_the_rate_of_the_towers_or_its_own(small: Small) -> None:
    names = {id(p): n for n, p in small.model.named_parameters()}
    (group,) = (group for group in small.optimizers.dense.param_groups if group["part"] == "offsets")
    found = {names[id(p)].split("model.")[1] for p in group["params"]}
    assert {"position.logit", "parts.taste.taste.level_logit", "parts.statistics.of.item.base_logit"} <= found
    small.optimizers.set_rates(STAGE, 5, 10)
    assert group["lr"] == pytest.approx(0.05)
    small.optimizers.set_rates(STAGE.model_copy(update={"offset_lr": 0.02}), 5, 10)
    assert group["lr"] == pytest.approx(0.01)
