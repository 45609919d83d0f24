from pathlib import Path

import pytest
from small_model import small_model
from small_run import small_config

from prectr_torchrec.training.schedule import MOST_PASSES, passes, rate_factor


def test_a_short_log_is_passed_over_more_often_and_for_fewer_steps_in_all() -> None:
    sizes = [10**exponent for exponent in range(1, 10)]
    found = [passes(size) for size in sizes]
    assert found == sorted(found, reverse=True) and found[0] == MOST_PASSES and found[-1] == 1
    work = [size * count for size, count in zip(sizes, found, strict=True)]
    assert work == sorted(work)


def test_a_log_without_requests_has_passes_still() -> None:
    assert passes(0) == MOST_PASSES


@pytest.mark.parametrize(
    ("requests", "reference", "factor"), [(128, 32, 2.0), (8, 32, 0.5), (32, 32, 1.0), (32768, 32, 4.0), (4096, None, 1.0)]
)
def test_rates_follow_the_root_of_the_requests_of_a_step(requests: int, reference: int | None, factor: float) -> None:
    assert rate_factor(requests, reference) == factor


def test_rates_and_decay_follow_the_batch_and_those_of_tables_do_not(tmp_path: Path) -> None:
    config = small_config(train={"reference_requests": 2})  # its batches have 8
    with small_model(tmp_path, config) as small:
        stage = config.train.stages[1]
        small.optimizers.set_rates(stage, 5, 10)
        groups = {group["part"]: group for group in small.optimizers.dense.param_groups}
        assert groups["towers"]["lr"] == pytest.approx(2 * stage.lr * 0.5)
        assert groups["towers"]["weight_decay"] == 2 * config.train.weight_decay
        assert groups["taste"]["weight_decay"] == 2 * config.train.taste_weight_decay
        assert groups["offsets"]["weight_decay"] == 0
        assert small.optimizers.fused.param_groups[0]["lr"] == stage.table_lr
