"""A column is declared by one kind and one name; what is wrong with either is said with the key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from prectr_torchrec.config.columns import NumberColumn, VectorColumn
from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.config.files import dump_config, load_config
from prectr_torchrec.config.run import validate_config
from prectr_torchrec.config.unused import unused_settings
from prectr_torchrec.data.column_kinds import Label
from prectr_torchrec.data.columns import Column, sample_columns
from prectr_torchrec.system.errors import ConfigError

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown kind": (
        {"items": {"price": "nmber"}},
        "data.columns.items.price: 'nmber' is no kind of column (did you mean 'number'?)",
    ),
    "no kind": ({"items": {"price": {}}}, "data.columns.items.price: give one kind, such as number"),
    "two kinds": ({"items": {"price": {"number": {}, "id": {}}}}, "data.columns.items.price: give one kind"),
    "an unknown setting": (
        {"items": {"price": {"number": {"transfrom": "log1p"}}}},
        "data.columns.items.price.number.transfrom: unknown key (did you mean 'transform'?)",
    ),
    "a vector of no width": ({"users": {"profile": "vector"}}, "data.columns.users.profile.vector.width: Field required"),
    "a vector of width 0": (
        {"users": {"profile": {"vector": 0}}},
        "data.columns.users.profile.vector.width: Input should be greater than or equal to 1; got 0",
    ),
    "a vector of text": ({"users": {"profile": {"vector": "wide"}}}, "data.columns.users.profile.vector: "),
    "the weights of two": (
        {"items": {"tags": {"ids": {"weights": "score"}}, "score": "number"}},
        "columns.items.score: declared twice, also in columns.items",
    ),
    "ids that weigh themselves": (
        {"items": {"tags": {"ids": {"weights": "tags"}}}},
        "columns.items.tags: declared twice, also in columns.items",
    ),
    "an empty separator": (
        {"items": {"tags": {"ids": {"separator": ""}}}},
        "data.columns.items.tags.ids.separator: String should",
    ),
    "an unknown place": ({"item": {}}, "data.columns.item: unknown key (did you mean 'items'?)"),
    "a name of ours": (
        {"items": {"Position": "number"}},
        "columns.items.Position: this is the name of a column that the samples have anyway, or begins or ends as these do; give "
        "it another name, and say what the file calls it: data.raw.items.columns: {other_Position: Position}",
    ),
    "a name of ours, of users": ({"users": {"user_id": "number"}}, "columns.users.user_id: this is the name"),
    "an end of ours": ({"items": {"brand_trained": "id"}}, "columns.items.brand_trained: this is the name of a column"),
    "what ours are called by": ({"items": {"item": "id"}}, "columns.items.item: this is the name of a column"),
    "a beginning of ours": ({"requests": {"user_age": "number"}}, "columns.requests.user_age: this is the name of a column"),
    "no name": ({"requests": {"a b": "number"}}, "columns.requests.a b: a name is made of letters, digits and _"),
    "a column twice": (
        {"items": {"price": "number"}, "impressions": {"price": "number"}},
        "columns.impressions.price: declared twice, also in columns.items",
    ),
    "a column of impressions twice": (
        {"requests": {"page": "number"}, "impressions": {"Page": "number"}},
        "columns.impressions.Page: declared twice, also in columns.requests",
    ),
    "an attribute, too": ({"items": {"brand_id": "number"}}, "columns.items.brand_id: declared twice, also in item_attributes"),
    "an attribute of users, too": (
        {"users": {"user_city": "number"}},
        "columns.users.user_city: declared twice, also in user_attributes",
    ),
    "the group, too": (
        {"queries": {"category_id": "number"}},
        "columns.queries.category_id: declared twice, also in query_group",
    ),
}


@pytest.mark.parametrize(("columns", "message"), BAD.values(), ids=BAD)
def test_a_wrong_declaration_is_named(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        validate_config({"name": "x", "data": {"columns": columns, "user_attributes": ["city"]}}, "test")


def test_a_column_is_declared_by_its_kind_or_with_settings(tmp_path: Path) -> None:
    columns = {
        "items": {"price": {"number": {"transform": "log1p"}}, "rating": "number"},
        "requests": {"hour": {"number": None}, "context": {"vector": 8}},
    }
    config = validate_config({"name": "x", "data": {"columns": columns}}, "test")
    assert config.data.columns.items["price"].number == NumberColumn(transform="log1p")
    assert config.data.columns.requests["hour"].number == NumberColumn()
    assert config.data.columns.requests["context"].vector == VectorColumn(width=8)
    (tmp_path / "x.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(tmp_path / "x.yaml") == config
    assert load_config(tmp_path / "x.yaml", ["data.columns.items.rating=number"]) == config


def test_samples_have_each_column_where_its_value_belongs() -> None:
    columns = {
        "users": {"age": "number", "user_tenure": "number"},
        "queries": {"words": "number"},
        "requests": {"hour": "number"},
        "items": {"price": "number"},
        "impressions": {"bm25": "number"},
    }
    more = {column.name for column in sample_columns(DataConfig.model_validate({"columns": columns}))}
    expected = {"user_age", "user_tenure", "query_words", "hour", "candidate_price", "candidate_bm25"}
    assert more - {column.name for column in sample_columns(DataConfig())} == expected


def test_a_declared_column_that_no_part_reads_is_told() -> None:
    written: dict[str, Any] = {"data.columns.items.price": "number", "data.columns.users.profile.vector": 4}
    columns = {"items": {"price": "number"}, "users": {"profile": {"vector": 4}}}

    def unused(parts: dict[str, Any]) -> list[str]:
        tree = {"name": "x", "data": {"columns": columns}, "model": {"parts": parts}}
        return [line for line in unused_settings(validate_config(tree, "test"), written) if "columns" in line]

    price = "data.columns.items.price is not used: model.parts.numbers is null"
    profile = "data.columns.users.profile.vector is not used: model.parts.vectors is null"
    assert unused({}) == [price, profile]
    assert unused({"numbers": {}}) == [profile]
    assert unused({"vectors": {}}) == [price]
    assert unused({"numbers": {}, "vectors": {}}) == []


def with_feature(**feature: Any) -> dict[str, Any]:
    columns = {"items": {"tags": {"ids": {"weights": "score"}}, "badges": "ids"}}
    table = {"rows": 9, "dim": 4}
    features = {"candidate_tags": {"table": "tag", **feature}, "candidate_badges": {"table": "badge"}}
    return {"name": "x", "data": {"columns": columns}, "tables": {"tag": table, "badge": table}, "features": features}


def test_ids_are_bags_with_the_weights_that_are_declared() -> None:
    features = validate_config(with_feature(), "test").features
    assert features["candidate_tags"].pooling == "sum" and features["candidate_tags"].weights == "candidate_score"
    assert features["candidate_badges"].pooling == "sum" and features["candidate_badges"].weights is None
    assert validate_config(with_feature(pooling="mean"), "test").features["candidate_tags"].pooling == "mean"
    config = validate_config(with_feature(), "test")
    assert validate_config(config.model_dump(mode="json"), "test") == config


def test_weights_that_are_not_of_the_ids_and_bags_of_both_kinds_in_one_table_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"features.candidate_tags.weights: 'other' are no weights .* have candidate_score"):
        validate_config(with_feature(weights="other"), "test")
    tree = with_feature(table="badge")
    del tree["tables"]["tag"]
    with pytest.raises(
        ConfigError, match=r"tables.badge would be looked up as weighted sum of candidates for candidate_tags and"
    ):
        validate_config(tree, "test")


def test_ids_that_no_feature_reads_are_told() -> None:
    tree = with_feature()
    del tree["features"]["candidate_badges"], tree["tables"]["badge"]
    told = [line for line in unused_settings(validate_config(tree, "test"), {}) if "badges" in line]
    assert told == ["data.columns.items: 'badges' is not used: no feature reads candidate_badges; add one, with a table"]


@pytest.mark.parametrize("column", sample_columns(DataConfig(item_attributes=[])), ids=lambda column: column.name)
def test_no_declared_column_is_called_like_one_of_ours(column: Column) -> None:
    if column.family == "candidate":
        declared = [("items", column.key), ("impressions", column.key)]
    else:
        declared = [("requests", column.name)]
        declared += [(owner, column.name) for owner in ("users", "queries") if column.name.startswith(PREFIXES[owner])]
    for place, name in declared:
        with pytest.raises(ValueError, match=r"this is the name of a column that the samples have anyway"):
            DataConfig.model_validate({"columns": {place: {name: "number"}}})


PREFIXES = {"users": "user_", "queries": "query_"}


BAD_LABELS: dict[str, tuple[dict[str, Any], str]] = {
    "one that is not declared": (
        {"order": {"after": "carts"}, "cart": {}},
        "labels.order: follows 'carts', which is no label (did you mean 'cart'?)",
    ),
    "itself": ({"order": {"after": "order"}}, "labels.order: order after order is a circle; one of them has to"),
    "in a circle": (
        {"order": {"after": "cart"}, "cart": {"after": "order"}},
        "labels.order: order after cart after order is a circle",
    ),
    "an end of ours": ({"brand_trained": {}}, "labels.brand_trained: this is no name that a label can have"),
    "a name of ours": ({"Click": {}}, "labels.Click: this is no name that a label can have"),
    "no name": ({"to cart": {}}, "labels.to cart: this is no name that a label can have"),
    "a column twice": ({"Price": {}}, "labels.Price: declared twice, also in columns.items"),
    "something before a click": (
        {"click": {"after": "cart"}, "cart": {}},
        "labels.click.after: cart: nothing comes before a click",
    ),
    "a time that is another column": ({"click": {"time": "timestamp"}}, "labels.click.time: timestamp is another column; name"),
    "a time that is a number": ({"cart": {"time": "price"}}, "labels.cart.time: price is another column; name"),
    "counters of another label": (
        {"cart": {}, "carts": {}},
        "labels.cart: its counters are called carts, as a column of labels is",
    ),
    "counters of a column": ({"colour": {}}, "labels.colour: its counters are called colours, as a column of columns.items is"),
    "counters that are ours": ({"event": {}}, "labels.event: this is no name that a label can have"),
    "an attribute": ({"brand_id": {}}, "labels.brand_id: declared twice, also in item_attributes"),
    "an unknown setting": ({"order": {"afer": "click"}}, "data.labels.order.afer: unknown key (did you mean 'after'?)"),
}


@pytest.mark.parametrize(("labels", "message"), BAD_LABELS.values(), ids=BAD_LABELS)
def test_a_wrong_label_is_named(labels: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        validate_config(
            {"name": "x", "data": {"labels": labels, "columns": {"items": {"price": "number", "colours": "ids"}}}}, "test"
        )


def test_the_click_is_no_second_column_where_its_time_is_named() -> None:
    data = DataConfig.model_validate({"labels": {"click": {"time": "click_time"}, "cart": {}}})
    names = [column.name for column in sample_columns(data)]
    assert names.count("candidate_click") == names.count("candidate_cart") == 1
    assert data.late and [*data.further_labels] == ["cart"]
    assert not DataConfig.model_validate({"labels": {"cart": {}}}).late and DataConfig(feedback_delay=1).late


def test_samples_have_a_label_of_each_candidate_and_requests_have_none() -> None:
    data = DataConfig.model_validate({"labels": {"cart": {}, "order": {"after": "cart"}}})
    labels = [column for column in sample_columns(data) if isinstance(column.kind, Label)]
    assert [(column.name, column.served) for column in labels] == [
        ("candidate_click", True),
        ("candidate_cart", False),
        ("candidate_order", False),
    ]


def test_a_column_that_is_written_twice_is_refused(tmp_path: Path) -> None:
    text = "data:\n  columns:\n    items:\n      price: number\n      price: {number: {bins: 4}}\n"
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"x.yaml: not valid YAML: the key 'price' is there twice .*line 5"):
        load_config(tmp_path / "x.yaml")
