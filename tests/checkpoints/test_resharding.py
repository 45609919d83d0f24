import json
from itertools import product

import pytest
from checkpoints.resharding_worker import KINDS, OPTIMIZERS, RANKS, layout_config
from ranks import run_ranks
from small_run import small_config, write_small_data

from prectr_torchrec.checkpoints.resharding import movable

COLUMN_STATE = "row-wise Adagrad's state has a number for each row of"
OTHER_IDS = "the ids are"
SPLIT_IDS = "have lists that can be joined, not split"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of each pair `optimizer saved-kind@ranks loaded-kind@ranks`: `loaded`, or the reason why not."""
    folder = tmp_path_factory.mktemp("resharding")
    data = write_small_data(folder / "data", layout_config("row_wise", "adagrad"))
    run_ranks(3, "checkpoints.resharding_worker:move_all", data=data, out=folder)
    of_ranks = [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(3)]
    for pair, outcome in of_ranks[0].items():
        assert all(other.get(pair, outcome) == outcome for other in of_ranks), f"ranks disagree about {pair}"
    return of_ranks[0]


def refusal(optimizer: str, saved: str, saved_ranks: int, kind: str, ranks: int) -> str | None:
    """The reason for which a pair must be refused."""
    if "managed" in (saved, kind):
        return OTHER_IDS if saved != kind else SPLIT_IDS if saved_ranks % ranks else None
    columns_change = (saved == "column_wise") != (kind == "column_wise")
    return COLUMN_STATE if optimizer == "rowwise_adagrad" and columns_change else None


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_each_pair_of_layouts_loads_exactly_or_is_refused_with_its_reason(outcomes: dict[str, str], optimizer: str) -> None:
    wrong = {}
    for saved, m, kind, n in product(KINDS, RANKS, KINDS, RANKS):
        outcome, reason = outcomes[f"{optimizer} {saved}@{m} {kind}@{n}"], refusal(optimizer, saved, m, kind, n)
        if outcome != "loaded" if reason is None else reason not in outcome:
            wrong[f"{saved}@{m} {kind}@{n}"] = outcome
    assert wrong == {}


def test_weights_alone_move_between_rows_and_columns(outcomes: dict[str, str]) -> None:
    alone = {pair: outcome for pair, outcome in outcomes.items() if pair.startswith("weights ") and "managed" not in pair}
    assert len(alone) == 2 * 2 * 9 and set(alone.values()) == {"loaded"}


def test_a_plan_for_other_ranks_keeps_to_sharding_that_the_state_can_be_moved_to() -> None:
    config = small_config()
    for table in config.tables.values():
        table.sharding = ["row_wise", "table_wise", "column_wise"]
    config.tables["user"].optimizer = "adagrad"
    kinds = {"item": "row_wise", "query": "column_wise", "user": "column_wise"}
    left = movable(
        config.tables, {"embeddings": {name: {"sharding_type": kind, "shards": [[101, 8]]} for name, kind in kinds.items()}}
    )
    assert left["item"].sharding == ["row_wise", "table_wise"]
    assert (left["query"].sharding, left["query"].shard_columns) == (["column_wise"], 8)
    assert left["user"].sharding == config.tables["item"].sharding == ["row_wise", "table_wise", "column_wise"]
