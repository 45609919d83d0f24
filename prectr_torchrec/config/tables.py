"""The configuration of embedding tables: their rows, where these lie, and what travels between ranks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, model_validator

from prectr_torchrec.config.base import Section
from prectr_torchrec.config.columns import Declared, IdsColumn, weights_of
from prectr_torchrec.config.kernels import KERNELS, Kernel, KernelName, kernels_where

ShardingName = Literal["row_wise", "table_wise", "column_wise", "table_row_wise"]
CommunicationPrecision = Literal["fp32", "fp16", "bf16", "int8"]
MANAGED_IDS = 2**62
"""Range of the ids of managed tables: two ids of 10^9 meet with a chance of one in ten."""
INT8_ROW = 32
"""Numbers that share a scale and an offset (8 bytes) when they travel as int8, in FBGEMM."""


class CacheConfig(Section):
    """What a table outside of HBM keeps in it."""

    load_factor: float = Field(0.2, gt=0, lt=1)
    """Share of the table's rows."""
    algorithm: Literal["lru", "lfu"] = "lru"
    """What makes room: the row not used for longest, or least often."""
    ssd_directory: str | None = None
    """Folder for rows on SSD, of each rank its own where it names `@local_rank`; null: a temporary folder."""


class ManagedConfig(Section):
    """Which ids have rows of their own, for `ids: managed`."""

    algorithm: Literal["sorted", "multi_probe"] = "sorted"
    """`sorted` keeps a sorted list of the ids (24 to 32 bytes a row); `multi_probe` a hash table on the GPU, which needs CUDA."""
    eviction: Literal["lru", "lfu", "distance_lfu"] = "lru"
    """Who makes room: the id not seen for longest, seen least often, or with the fewest lookups for each step since it was last
    seen. `lfu` never lets go of what was frequent once. `multi_probe` has `lru` only."""
    interval: int = Field(10, ge=1)
    """Steps between two rounds of admission and eviction; each sorts the table."""
    admission: int = Field(1, ge=1)
    """Lookups within an interval, over all ranks, that an id needs to be admitted. Until then it shares a row of its own rank."""
    decay: float = Field(1.0, gt=0)
    """Exponent of the steps since an id was last seen, for `lru` and `distance_lfu`."""
    max_probe: int = Field(128, ge=1)
    """Slots that `multi_probe` looks at."""


class TableConfig(Section):
    rows: int = Field(ge=1)
    dim: int = Field(ge=4, multiple_of=4)
    dtype: Literal["fp32", "fp16"] = "fp32"
    """Of the rows; the optimizer's state is fp32."""
    stochastic_rounding: bool | None = None
    """Round updated fp16 rows up or down by chance, so that small steps are not lost; null: where the device can, that
    is on CUDA."""
    init: float | None = Field(None, gt=0)
    """Rows start at random within so much of 0; null: within rows^-0.5. Factors that are multiplied with each other learn nothing
    while both are next to nothing."""
    ids: Literal["hashed", "managed"] = "hashed"
    """`hashed`: row = mix64(id) % rows, which ids may share. `managed`: ids have rows of their own as long as they are in use;
    rows of ids that are not are cleared and given to others."""
    managed: ManagedConfig = ManagedConfig()
    sharding: list[ShardingName] = ["row_wise", "table_wise", "column_wise"]
    """Sharding types the planner may choose among. Where a type by rows would leave a rank without one, `table_wise` is added."""
    shard_columns: int | None = Field(None, ge=4, multiple_of=4)
    """Columns of a shard of `column_wise`; null: the width over the ranks. Row-wise Adagrad keeps 4 bytes a row of each."""
    kernel: KernelName = "fused"
    """Where the rows lie: in the device's own memory (`fused`); in host memory read over the bus, plain or behind a cache in HBM;
    or behind a cache in HBM in a store in host memory or on SSD, which can be planned with, not trained. All but `fused` need
    CUDA."""
    cache: CacheConfig = CacheConfig()
    buckets: int = Field(840, ge=1)
    """Of managed and virtual tables: parts that ranks share out among them, fixed for the table's life. `rows` is a multiple of
    it, and it of the number of ranks."""
    optimizer: Literal["rowwise_adagrad", "adagrad"] = "rowwise_adagrad"
    """`rowwise_adagrad` keeps one number a row (and column shard), `adagrad` one an element: dim times the memory."""

    @property
    def start(self) -> float:
        """What rows start within of 0."""
        return float(self.rows**-0.5 if self.init is None else self.init)

    @property
    def id_range(self) -> int:
        """Ids are mixed and brought down to less than this before they are looked up: rows, or too many to collide."""
        return MANAGED_IDS if self.ids == "managed" else self.rows

    @property
    def kernel_facts(self) -> Kernel:
        """Where the kernel keeps the rows, and what follows from it."""
        return KERNELS[self.kernel]

    @property
    def in_buckets(self) -> bool:
        """Whether ranks share the rows out by `buckets`."""
        return self.kernel_facts.virtual or self.ids == "managed"

    @model_validator(mode="after")
    def _split_by_buckets(self) -> TableConfig:
        asks = f"kernel {self.kernel!r}" if self.kernel_facts.virtual else "ids 'managed'" if self.ids == "managed" else None
        if asks and self.sharding != ["row_wise"]:
            raise ValueError(f"{asks} is sharded by rows only: sharding must be [row_wise]")
        if asks and self.rows % self.buckets:
            near = -(-self.rows // self.buckets) * self.buckets
            raise ValueError(f"rows must be a multiple of buckets {self.buckets}, such as {near}, for {asks}")
        if self.ids == "managed" and self.kernel_facts.rows != "hbm":
            raise ValueError(f"ids 'managed' needs kernel {kernels_where(lambda k: k.rows == 'hbm')}; got {self.kernel!r}")
        if self.ids == "managed" and self.managed.algorithm == "multi_probe" and self.managed.eviction != "lru":
            raise ValueError(f"managed.algorithm 'multi_probe' has eviction 'lru' only; got {self.managed.eviction!r}")
        return self


Pooling = Literal["sum", "mean"]


class FeatureConfig(Section):
    table: str
    column: str | None = None
    """Of samples, with the prefix of the feature's name; null: the name is the column's. A column may have several features."""
    sequence: Literal["history", "peer", "candidate"] | None = None
    """The list that this feature belongs to; must agree with the column's prefix. `candidate_*` features whose table has no
    sequence or request feature go through the EmbeddingBagCollection, all others through the EmbeddingCollection."""
    pooling: Pooling | None = None
    """One vector of all ids, of a candidate or, for `history_*`, `peer_*` and others, of a request; null: `sum` for columns of
    `ids` and for what goes through the EmbeddingBagCollection, and for the rest a vector an id. By weights, `mean` divides by
    their sum."""
    weights: str | None = None
    """Of samples, the weights of the column's ids; null: those that `data.columns` declares."""


def bag_tables(features: dict[str, FeatureConfig]) -> set[str]:
    """Tables of an EmbeddingBagCollection: those with pooled features, and those that only candidates use."""
    apart = {f.table for n, f in features.items() if not f.pooling and (f.sequence or not n.startswith("candidate_"))}
    pooled = {feature.table for feature in features.values() if feature.pooling}
    return pooled | {feature.table for feature in features.values()} - apart


def averaged_by_shares(features: dict[str, FeatureConfig]) -> set[str]:
    """Averaged bags beside weighted ones. All ids of a batch then have weights, and kernels that average do not divide the
    gradients of such: these are summed by their shares instead."""
    pooled = {name: feature for name, feature in features.items() if feature.pooling}
    owners = {_owner(name) for name, feature in pooled.items() if feature.weights}
    return {name for name, f in pooled.items() if f.pooling == "mean" and not f.weights and _owner(name) in owners}


def check_pooling(features: dict[str, FeatureConfig]) -> None:
    """That each table lies in one collection: a vector an id, or bags of one pooling, all of requests or all of candidates.

    Raises:
        ValueError: it does not.
    """
    bags, seen = bag_tables(features), dict[str, tuple[str, tuple[Any, ...]]]()
    for name, feature in features.items():
        owner = _owner(name)
        apart = not feature.pooling and (feature.sequence or owner == "requests")
        how = ("a vector an id",) if apart else _bag(feature, owner)
        other, before = seen.setdefault(feature.table, (name, how))
        if feature.table in bags and before != how:
            lookups = f"{' '.join(before)} for {other} and {' '.join(how)} for {name}"
            raise ValueError(f"tables.{feature.table} would be looked up as {lookups}; give each a table of its own")


def _owner(name: str) -> str:
    return "candidates" if name.startswith("candidate_") else "requests"


def _bag(feature: FeatureConfig, owner: str) -> tuple[str, ...]:
    """How its bags are pooled; weighted ones are summed, since their weights bring the mean."""
    return ("weighted sum" if feature.weights else feature.pooling or "sum", f"of {owner}")


def with_bags(features: dict[str, FeatureConfig], declared: Iterable[Declared]) -> dict[str, FeatureConfig]:
    """Features of columns of `ids` are bags, with the weights that the columns have.

    Raises:
        ValueError: a feature has weights that its ids have not.
    """
    columns = list(declared)
    bags = {c.sample: c for c in columns if isinstance(c.settings, IdsColumn)}
    weights = weights_of(columns)
    found = {}
    for name, feature in features.items():
        column = bags.get(feature.column or name)
        theirs = weights.get(column.sample) if column else None
        if feature.weights not in (None, theirs):
            has = f"its ids have {theirs}" if theirs else "its column has none; declare them: data.columns, {ids: {weights: ...}}"
            raise ValueError(f"features.{name}.weights: {feature.weights!r} are no weights of this feature: {has}")
        bag = {"pooling": feature.pooling or "sum", "weights": theirs} if column else {}
        found[name] = feature.model_copy(update=bag)
    return found


class CommunicationConfig(Section):
    """How looked-up vectors travel between ranks; the tables and the towers keep their own precision."""

    forward: CommunicationPrecision = "fp32"
    """Of the vectors. `bf16` needs CUDA. `int8` needs tables of a width that is a multiple of 32, and lets the sums of row-wise
    bags travel as fp16."""
    backward: CommunicationPrecision = "fp32"
    """Of their gradients; as above."""
