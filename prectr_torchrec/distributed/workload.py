"""What sharding, its plan and its costs read of a configuration: the tables, and how much a step looks up in them."""

from __future__ import annotations

from typing import NamedTuple

from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.config.tables import CommunicationConfig, FeatureConfig, TableConfig, bag_tables


class Input(NamedTuple):
    """A feature's most lookups in a step of one rank: `rows` rows of `length` ids."""

    rows: int
    length: float


class Workload(NamedTuple):
    """The tables of a run and their lookups."""

    tables: dict[str, TableConfig]
    features: dict[str, FeatureConfig]
    communication: CommunicationConfig
    requests: int
    """Of a batch of one rank."""
    inputs: dict[str, list[Input]]
    """By table, of each of its features."""

    def is_pooled(self, name: str) -> bool:
        """Whether a table lies in the EmbeddingBagCollection."""
        return name in bag_tables(self.features)


def build_workload(config: RunConfig) -> Workload:
    """The tables of a run, and as many lookups as its batch shape allows."""
    R, C = config.batch.requests, config.batch.candidates
    lengths = {"history": config.data.history_length, "peer": config.data.peer_length, "candidate": C / R}
    bags, inputs = bag_tables(config.features), dict[str, list[Input]]()
    for name, feature in config.features.items():
        if feature.table in bags and name.startswith("candidate_"):
            lookups = Input(C, config.text.title_tokens if (feature.column or name) == "candidate_title_tokens" else 1)
        else:
            lookups = Input(R, lengths.get(name.split("_")[0], 1))
        inputs.setdefault(feature.table, []).append(lookups)
    return Workload(config.tables, config.features, config.communication, R, inputs)
