"""What the tables ask for against what the job's devices can do, before anything starts."""

from __future__ import annotations

from prectr_torchrec.config.kernels import kernels_where
from prectr_torchrec.config.tables import INT8_ROW, CommunicationConfig, TableConfig
from prectr_torchrec.system.errors import ConfigError


def check_device(tables: dict[str, TableConfig], communication: CommunicationConfig, device: str, ranks: int) -> None:
    """Refuses tables and communication that cannot run on `ranks` ranks of `device`, `cpu` or `cuda`.

    Raises:
        ConfigError: names every key that asks for too much, and what would be right.
    """
    problems = []
    for name, table in tables.items():
        if device == "cpu":
            if not table.kernel_facts.cpu:
                problems.append(f"tables.{name}.kernel: {table.kernel!r} needs CUDA; use {kernels_where(lambda k: k.cpu)}")
            if table.stochastic_rounding:
                problems.append(f"tables.{name}.stochastic_rounding: true needs CUDA; use null or false")
            if table.ids == "managed" and table.managed.algorithm == "multi_probe":
                problems.append(f"tables.{name}.managed.algorithm: 'multi_probe' needs CUDA; use 'sorted'")
        if table.in_buckets and table.buckets % ranks:
            problems.append(f"tables.{name}.buckets: {table.buckets} must be a multiple of the {ranks} ranks")
    for way in ("forward", "backward"):
        if device == "cpu" and getattr(communication, way) == "bf16":
            problems.append(f"communication.{way}: 'bf16' needs CUDA, gloo does not send it; use 'fp16'")
        if getattr(communication, way) == "int8":
            narrow = {name: table.dim for name, table in tables.items() if table.dim % INT8_ROW}
            problems += [
                f"communication.{way}: 'int8' needs widths that are multiples of {INT8_ROW}; tables.{name}.dim is {dim}"
                for name, dim in narrow.items()
            ]
    if problems:
        raise ConfigError(f"this job's {ranks} ranks run on {device}: " + "; ".join(problems))


def check_trainable(tables: dict[str, TableConfig]) -> None:
    """Refuses what can be planned with, but neither saved nor loaded.

    Raises:
        ConfigError: names the table, and what would be right.
    """
    for name, table in tables.items():
        if not table.kernel_facts.checkpointed:
            cached = kernels_where(lambda k: k.checkpointed and k.cache is not None)
            raise ConfigError(
                f"tables.{name}.kernel: {table.kernel!r} can be planned with, not trained: a checkpoint would not hold its rows; "
                f"use {cached}, or more ranks"
            )
