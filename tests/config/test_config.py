import textwrap
from pathlib import Path

import pytest

from prectr_torchrec.config.files import describe_config, dump_config, find_config, load_config
from prectr_torchrec.system.errors import ConfigError

MINIMAL = """
name: small
tables:
  item: {rows: 100, dim: 8}
features:
  candidate_item_id: {table: item}
"""


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


@pytest.fixture
def minimal(tmp_path: Path) -> str:
    return write(tmp_path, "minimal.yaml", MINIMAL)


def error(path: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted(find_config("prectr_v1").parent.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_configuration_is_valid_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem
    assert load_config(write(tmp_path, "again.yaml", dump_config(config))) == config


def test_unknown_key_names_the_nearest_valid_one(minimal: str) -> None:
    assert "train.wight_decay: unknown key (did you mean 'weight_decay'?)" in error(minimal, "train.wight_decay=0.1")
    assert "tables.item.row: unknown key (did you mean 'rows'?)" in error(minimal, "tables.item.row=3")
    assert "train.stages.0.lrr: unknown key (did you mean 'lr'?)" in error(minimal, "train.stages=[{epochs: 1, lrr: 2}]")


def test_wrong_value_names_key_and_value(minimal: str) -> None:
    message = error(minimal, "batch.requests=many")
    assert "batch.requests" in message and "'many'" in message
    assert "tables.item.dim" in error(minimal, "tables.item.dim=6")


def test_feature_without_its_table_names_the_nearest(minimal: str) -> None:
    assert "there is no table 'itm' (did you mean 'item'?)" in error(minimal, "features.candidate_item_id.table=itm")


def test_table_without_a_feature_is_refused(minimal: str) -> None:
    assert "tables.user: no feature uses this table" in error(minimal, "tables.user={rows: 5, dim: 4}")


def test_sequence_must_agree_with_the_column(minimal: str) -> None:
    message = error(minimal, "features.candidate_item_id.sequence=history")
    assert "features.candidate_item_id.sequence: 'history' needs a column named history_*" in message


def test_a_virtual_table_needs_rows_in_whole_buckets_and_row_wise(minimal: str) -> None:
    virtual = ("tables.item.kernel=dram_virtual_table", "tables.item.sharding=[row_wise]")
    assert "rows must be a multiple of buckets 840, such as 840, for kernel 'dram_virtual_table'" in error(minimal, *virtual)
    assert "sharding must be [row_wise]" in error(minimal, "tables.item.rows=1680", virtual[0])
    assert load_config(minimal, [virtual[1], "tables.item.rows=1680", virtual[0]]).tables["item"].rows == 1680


def test_managed_ids_are_fused_and_row_wise(minimal: str) -> None:
    managed = ("tables.item.ids=managed", "tables.item.sharding=[row_wise]", "tables.item.rows=1680")
    assert load_config(minimal, managed).tables["item"].id_range == 2**62
    assert "sharding must be [row_wise]" in error(minimal, managed[0], managed[2])
    assert "ids 'managed' needs kernel 'fused'" in error(minimal, *managed, "tables.item.kernel=fused_uvm")
    probed = "tables.item.managed={algorithm: multi_probe, eviction: lfu}"
    assert "'multi_probe' has eviction 'lru' only; got 'lfu'" in error(minimal, *managed, probed)


def test_descending_level_boundaries_are_refused(minimal: str) -> None:
    assert "strictly ascending" in error(minimal, "data.levels.boundaries=[2, 1]")


def test_a_grade_range_that_is_none_is_refused(minimal: str) -> None:
    assert "grade_min 3.0 must be below grade_max 3.0" in error(minimal, "data.levels.grade_min=3")


@pytest.mark.parametrize("boundaries", ["[0.5, 2]", "[2, 3.5]", "[2, 3]"])
def test_boundaries_outside_the_grades_are_refused(minimal: str, boundaries: str) -> None:
    message = error(minimal, f"data.levels.boundaries={boundaries}")
    assert "data.levels: boundaries [" in message and "must lie from grade_min 1.0 up to below grade_max 3.0" in message


def test_unknown_configuration_names_the_nearest_shipped_one() -> None:
    assert "(did you mean 'prectr_v1'?)" in error("prectr_v11")


def test_base_is_inherited_and_overridden_key_by_key(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", MINIMAL + "train: {seed: 7, clip_norm: 2.0}\n")
    child = load_config(write(tmp_path, "child.yaml", "base: base.yaml\ntrain: {seed: 8}\n"))
    assert (child.name, child.train.seed, child.train.clip_norm) == ("child", 8, 2.0)


def test_null_removes_an_inherited_feature(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", MINIMAL + "  history_item_id: {table: item, sequence: history}\n")
    child = load_config(write(tmp_path, "child.yaml", "base: base.yaml\nfeatures: {history_item_id: null}\n"))
    assert list(child.features) == ["candidate_item_id"]
    features = ("features.candidate_item_id.sequence=candidate", "features.history_item_id=null")
    assert load_config(str(tmp_path / "base.yaml"), features).features.keys() == {"candidate_item_id"}


def test_the_example_of_the_page_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    example = page.split("## A configuration of your own\n")[1].split("\n\n")[0]
    config = load_config(write(tmp_path, "mine.yaml", textwrap.dedent(example)))
    assert config.tables["item"].rows == 20_000_000 and "user" not in config.tables
    assert (config.text.path, len(config.train.stages)) == ("STUDENT", 1)


def test_an_override_that_reads_the_history_finds_its_features() -> None:
    config = load_config("dnn", ("model.kind=din",))
    assert {name for name in config.features if name.startswith("history_")}
    assert not {name for name in load_config("dnn", ("train.seed=2",)).features if name.startswith("history_")}


def test_bases_in_a_circle_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "base: b.yaml\n")
    write(tmp_path, "b.yaml", "base: a.yaml\n")
    assert "goes round in a circle" in error(str(tmp_path / "a.yaml"))


def test_overrides_reach_into_lists_and_say_what_is_wrong(minimal: str) -> None:
    assert load_config(minimal, ["train.stages.1.epochs=9"]).train.stages[1].epochs == 9
    assert "write it as key.sub=value" in error(minimal, "train.seed")
    assert "is a list of 1; '4' is no index of it" in error(minimal, "train.stages=[{epochs: 1}]", "train.stages.4.lr=1")
    assert "name is 'small' and has no keys" in error(minimal, "name.x=1")
    assert "--set 'train.stages=[1': '[1' is not valid YAML" in error(minimal, "train.stages=[1")


def test_files_that_are_no_mapping_are_refused(tmp_path: Path) -> None:
    assert "a configuration is a mapping of keys, not list" in error(write(tmp_path, "list.yaml", "- 1\n"))
    assert "not valid YAML" in error(write(tmp_path, "broken.yaml", "a: [\n"))


def test_tables_split_into_bags_and_sequences(tmp_path: Path) -> None:
    text = MINIMAL + "  history_item_id: {table: item, sequence: history}\n  candidate_brand_id: {table: brand}\n"
    config = load_config(write(tmp_path, "both.yaml", text.replace("features:", "  brand: {rows: 9, dim: 4}\nfeatures:")))
    assert config.bag_tables() == {"brand"}


def test_tables_have_any_width() -> None:
    assert load_config("prectr_v2", ("tables.user.dim=64",)).tables["user"].dim == 64


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (
            ["features.history_titles={table: item, column: history_item_id, pooling: mean}"],
            "tables.item would be looked up as a vector an id for candidate_item_id and mean of requests for history_titles",
        ),
        (
            ["features.candidate_brands={table: title_token, column: candidate_brand_id, pooling: mean}"],
            "tables.title_token would be looked up as sum of candidates for candidate_title_tokens and mean of candidates for",
        ),
        (
            ["features.history_brands={table: title_token, column: history_brand_id, pooling: sum}"],
            "tables.title_token would be looked up as sum of candidates for candidate_title_tokens and sum of requests for",
        ),
    ],
)
def test_a_table_is_looked_up_in_one_way(features: list[str], said: str) -> None:
    assert said in error("prectr_v2", *features)


def test_features_of_a_history_that_nothing_reads_are_left_out() -> None:
    features = load_config("dnn").features
    assert "candidate_item_id" in features and not [name for name in features if name.startswith("history_")]


def test_description_documents_every_field(minimal: str) -> None:
    described = describe_config(load_config(minimal))
    assert "# Share of all requests, the latest ones." in described
    assert "rows: 100" in described


def test_the_grade_that_stands_for_a_level_is_the_middle_or_the_one_given(minimal: str) -> None:
    whole = ("data.levels.boundaries=[0, 1, 2]", "data.levels.grade_min=0")
    assert load_config(minimal, whole).data.levels.grades == [0, 0.5, 1.5, 2.5]
    assert load_config(minimal, (*whole, "data.levels.level_grades=[0, 1, 2, 3]")).data.levels.grades == [0, 1, 2, 3]
    assert "must be 4 grades, one within each of [(0.0, 0.0), " in error(minimal, *whole, "data.levels.level_grades=[1, 2, 3, 4]")
    assert "must be 4 grades" in error(minimal, *whole, "data.levels.level_grades=[0, 1, 2]")
    assert "must ascend strictly" in error(minimal, *whole, "data.levels.level_grades=[0, 1, 1, 3]")
