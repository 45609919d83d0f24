"""`prectr plan`: where each table of a run would lie on machines that need not be at hand, and what would make it fit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torchrec.distributed.planner.types import PlannerError

from prectr_torchrec.config.kernels import KERNELS
from prectr_torchrec.config.tables import TableConfig
from prectr_torchrec.distributed.costs import Hardware, id_bytes, shard_cost, state_bytes, weight_bytes
from prectr_torchrec.distributed.device import check_device
from prectr_torchrec.distributed.process import quiet_libraries
from prectr_torchrec.distributed.sharding import RESERVED_HBM, PlainShardingPlan, make_plan, plan_to_dict
from prectr_torchrec.distributed.table_collections import build_embeddings
from prectr_torchrec.distributed.workload import Workload
from prectr_torchrec.runs.workspace import replace_text
from prectr_torchrec.system.paths import only_local
from prectr_torchrec.system.sizes import format_bytes, parse_bytes


class RankLoad(NamedTuple):
    """What a plan puts on one rank."""

    rank: int
    tables: int
    """Bytes of weights, optimizer state and managed ids, wherever they lie."""
    hbm: int
    ddr: int
    ssd: int
    lookups: float
    """Rows looked up in a step by full batches, if all rows are wanted alike; popular rows bring their rank more."""
    communication: float
    """Bytes to and from other ranks in a step, for as many lookups."""


class Change(NamedTuple):
    """A change of the run or of the machines, tried with the planner."""

    what: str
    workload: Workload
    settings: list[str]
    """What `workload` changes, as for --set."""
    hardware: Hardware
    plan: PlainShardingPlan | None
    """None: does not fit either."""


def make_hardware(gpus: int, gpus_per_host: int, *, hbm: str, ddr: str, ssd: str, device: str = "cuda") -> Hardware:
    """Machines as they are described on the command line.

    Args:
        hbm: memory of each GPU, such as `80GB`.
        ddr, ssd: of each host.

    Raises:
        ValueError: the ranks do not fill their hosts, or a size is none.
    """
    each = min(gpus, gpus_per_host)
    if gpus % each:
        raise ValueError(f"gpus is {gpus}: must be a multiple of gpus-per-host, {gpus_per_host}")
    memory = parse_bytes(hbm, "hbm") if device == "cuda" else 0
    return Hardware(gpus, each, memory, parse_bytes(ddr, "ddr"), parse_bytes(ssd, "ssd"), device)


def plan_run(workload: Workload, hardware: Hardware) -> PlainShardingPlan | None:
    """The sharding of a run on any hardware, or None if it does not fit; needs neither GPU nor process group.

    Raises:
        ValueError: the tables cannot be sharded so on any size of machine; carries the planner's reason.
    """
    quiet_libraries()
    check_device(workload.tables, workload.communication, hardware.device, hardware.ranks)
    # built as `train` builds it, so that the plan names the modules as training does
    module = nn.ModuleDict({"embeddings": build_embeddings(workload.tables, workload.features, torch.device("meta"))})
    try:
        return plan_to_dict(make_plan(module, workload, hardware))
    except PlannerError:
        return None
    except RuntimeError as error:  # no sharding type and kernel fit together
        raise ValueError(f"no sharding plan: {error}") from None


def rank_loads(workload: Workload, plan: PlainShardingPlan, hardware: Hardware) -> list[RankLoad]:
    """What a plan puts on each rank."""
    loads = [RankLoad(rank, 0, 0, 0, 0, 0.0, 0.0) for rank in range(hardware.ranks)]
    for name, table in _tables(plan):
        for size, rank in zip(table["shards"], table["ranks"], strict=True):
            cost = shard_cost(workload, name, size, kernel=table["compute_kernel"], ranks=hardware.ranks, device=hardware.device)
            tables, storage = cost.weights + cost.state + cost.ids, cost.storage
            own = RankLoad(rank, tables, storage.hbm, storage.ddr, storage.ssd, cost.lookups, cost.communication)
            loads[rank] = RankLoad(rank, *(sum(pair) for pair in zip(loads[rank][1:], own[1:], strict=True)))
    return loads


def tightest(loads: list[RankLoad], hardware: Hardware) -> tuple[RankLoad, str, float]:
    """The rank nearest to its limit, the tier that limits it, and the share of that tier in use."""
    limits = {"hbm": hardware.hbm * (1 - RESERVED_HBM), "ddr": hardware.per_rank.ddr, "ssd": hardware.per_rank.ssd}
    shares = [(getattr(load, tier) / limit, tier, load) for load in loads for tier, limit in limits.items() if limit]
    share, tier, load = max(shares, key=lambda found: found[0])
    return load, tier, share


def find_changes(workload: Workload, hardware: Hardware) -> Iterator[Change]:
    """For a run that does not fit: the least change of each kind that makes it fit, found by planning, those that cost nothing
    first; where no change of a kind does, the largest one, without a plan."""
    by_size = sorted(workload.tables, key=lambda name: -_table_bytes(workload, name))
    wide = [name for name in by_size if workload.tables[name].dtype == "fp32"]
    inside = [name for name in by_size if workload.tables[name].kernel_facts.rows == "hbm" and hardware.device == "cuda"]
    inside = [name for name in inside if workload.tables[name].ids == "hashed"]  # managed ids need rows in the device's memory
    yield from _least("fp16 rows", wide, lambda table: {"dtype": "fp16"}, workload, hardware)
    yield from _moved_rows(inside, workload, hardware, trainable=True)
    yield from _more_hosts(workload, hardware)
    yield from _moved_rows(inside, workload, hardware, trainable=False)


def _moved_rows(tables: list[str], workload: Workload, hardware: Hardware, *, trainable: bool) -> Iterator[Change]:
    """Moves rows to each kernel that is a remedy, and `trainable` or not."""
    for kernel, facts in KERNELS.items():
        if not facts.remedy or facts.checkpointed != trainable:
            continue
        movable = [name for name in tables if not facts.virtual or "row_wise" in workload.tables[name].sharding]
        what = facts.remedy if trainable else f"{facts.remedy} (to plan with: `train` refuses them)"
        room = hardware._replace(ssd=10**18) if facts.rows == "ssd" and not hardware.ssd else hardware
        for change in _least(what, movable, partial(_under, kernel, hardware.ranks), workload, room):
            needed = max(load.ssd for load in rank_loads(change.workload, change.plan, room)) if change.plan else 0
            size = f", {format_bytes(needed * hardware.ranks_per_host)} a host" if needed else ""
            yield change._replace(what=what + size, hardware=room)


def _under(kernel: str, ranks: int, table: TableConfig) -> dict[str, Any]:
    """The settings that put a table under a kernel; a virtual one is in buckets, and has as many rows as they ask for."""
    if not KERNELS[kernel].virtual:
        return {"kernel": kernel}
    buckets = math.lcm(table.buckets, ranks)
    return {"kernel": kernel, "sharding": ["row_wise"], "buckets": buckets, "rows": -(-table.rows // buckets) * buckets}


def _least(
    what: str, tables: list[str], change: Callable[[TableConfig], dict[str, Any]], workload: Workload, hardware: Hardware
) -> Iterator[Change]:
    """Changes one table after the other, the largest first, until the run fits."""
    changed = workload._replace(tables={name: table.model_copy() for name, table in workload.tables.items()})
    settings: list[str] = []
    plan = None
    for name in tables:
        for key, value in change(changed.tables[name]).items():
            if getattr(changed.tables[name], key) != value:
                setattr(changed.tables[name], key, value)
                settings.append(f"tables.{name}.{key}={value}".replace("'", ""))
        plan = plan_run(changed, hardware)
        if plan is not None:
            break
    if settings:
        yield Change(what, changed, settings, hardware, plan)


def _more_hosts(workload: Workload, hardware: Hardware) -> Iterator[Change]:
    """The least number of hosts: none below what the bytes of all tables need is worth a try."""
    total = sum(_table_bytes(workload, name) for name in workload.tables)
    room = hardware.ranks_per_host * _room(hardware)[1]
    hosts = max(int(total // room), hardware.ranks // hardware.ranks_per_host) + 1
    most = math.gcd(*(table.buckets for table in workload.tables.values() if table.in_buckets))  # 0: any number of ranks
    numbers = (hosts, hosts + 1, hosts + 2, 2 * hosts, 4 * hosts) if most == 0 else range(hosts, most + 1)
    unit, found = "GPUs" if hardware.device == "cuda" else "ranks", None
    for tried in numbers:
        more = hardware._replace(ranks=tried * hardware.ranks_per_host)
        if most % more.ranks == 0:
            found = Change(f"{more.ranks} {unit} on {tried} hosts", workload, [], more, plan_run(workload, more))
            if found.plan is not None:
                break
    if found is not None:
        yield found


def describe_plan(workload: Workload, plan: PlainShardingPlan | None, hardware: Hardware) -> dict[str, Any]:
    """What `format_plan` prints, as plain values in bytes; without a plan what `format_misfit` does.

    Returns:
        `fits`; then `tables` (by name), `ranks` (a `RankLoad` each) and `tightest`, or `bytes` and `changes`.
    """
    if plan is None:
        changes = [
            {"what": change.what, "fits": change.plan is not None, "settings": change.settings}
            for change in find_changes(workload, hardware)
        ]
        return {"fits": False, "bytes": sum(_table_bytes(workload, name) for name in workload.tables), "changes": changes}
    tables = {}
    for name, planned in _tables(plan):
        table = workload.tables[name]
        kind, kernel, ranks = (planned[key] for key in ("sharding_type", "compute_kernel", "ranks"))
        about = {
            "rows": table.rows,
            "dim": table.dim,
            "dtype": table.dtype,
            "bytes": _planned_bytes(workload, name, planned, hardware),
        }
        tables[name] = {**about, "sharding": kind, "kernel": kernel, "ranks": sorted(set(ranks))}
    loads = rank_loads(workload, plan, hardware)
    load, tier, share = tightest(loads, hardware)
    limit = {"rank": load.rank, "tier": tier, "share": share}
    return {"fits": True, "tables": tables, "ranks": [load._asdict() for load in loads], "tightest": limit}


def format_plan(workload: Workload, plan: PlainShardingPlan, hardware: Hardware) -> str:
    """The plan as two tables, one line an embedding table and one line a rank, ranks alike in one line."""
    rows = [["table", "rows", "dim", "dtype", "bytes", "sharding", "kernel", "ranks"]]
    planned = dict(_tables(plan))
    for name, table in workload.tables.items():
        kind, kernel, ranks = (planned[name][key] for key in ("sharding_type", "compute_kernel", "ranks"))
        size = format_bytes(_planned_bytes(workload, name, planned[name], hardware))
        rows.append([name, f"{table.rows:,}", str(table.dim), table.dtype, size, kind, kernel, _ranges(sorted(set(ranks)))])
    loads = rank_loads(workload, plan, hardware)
    tiers = [tier for tier in ("hbm", "ddr", "ssd") if any(getattr(load, tier) for load in loads)]
    alike: dict[tuple[str, ...], list[int]] = {}
    for load in loads:
        memory = [format_bytes(getattr(load, tier)) for tier in tiers]
        alike.setdefault((*memory, f"{load.lookups:,.0f}", format_bytes(load.communication)), []).append(load.rank)
    lines = [["rank", *map(str.upper, tiers), "lookups/step", "communication/step"]]
    lines += [[_ranges(numbers), *figures] for figures, numbers in alike.items()]
    return "\n".join([*columns(rows), "", *columns(lines), "", f"tightest: {_tightest(workload, plan, hardware)}"])


def format_misfit(workload: Workload, hardware: Hardware) -> str:
    """What is missing, and the changes that would do, each tried with the planner."""
    total = sum(_table_bytes(workload, name) for name in workload.tables)
    tier, room = _room(hardware)
    lines = [
        f"does not fit: tables and optimizer state are {format_bytes(total)}; {hardware.ranks} ranks have "
        f"{format_bytes(room * hardware.ranks)} of {tier.upper()} for them. Tried:"
    ]
    for change in find_changes(workload, hardware):
        fits = "does not fit either"
        if change.plan is not None:
            fits = f"fits ({_tightest(change.workload, change.plan, change.hardware)})"
        lines.append(f"  {change.what}: {fits}")
        lines += [f"      --set {setting}" for setting in change.settings if change.plan is not None]
    return "\n".join(lines)


def _tightest(workload: Workload, plan: PlainShardingPlan, hardware: Hardware) -> str:
    load, tier, share = tightest(rank_loads(workload, plan, hardware), hardware)
    kept = f" but the {RESERVED_HBM:.0%} kept for towers and activations" if tier == "hbm" else ""
    return f"rank {load.rank} with {share:.0%} of its {tier.upper()}{kept}"


def _room(hardware: Hardware) -> tuple[str, float]:
    """The tier that fused tables fill, and a rank's bytes of it that they may fill."""
    return ("hbm", hardware.hbm * (1 - RESERVED_HBM)) if hardware.device == "cuda" else ("ddr", hardware.per_rank.ddr)


@only_local
def save_plan(plan: PlainShardingPlan, path: Path) -> None:
    """Writes a plan for `prectr train --plan`, written aside and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(plan, indent=1))


def _table_bytes(workload: Workload, name: str) -> int:
    table = workload.tables[name]
    return weight_bytes(table, table.rows, table.dim) + state_bytes(table, table.rows, table.dim) + id_bytes(table, table.rows)


def _planned_bytes(workload: Workload, name: str, planned: dict[str, Any], hardware: Hardware) -> int:
    """Of a table with its optimizer's state and managed ids, as it is planned."""
    kernel, ranks, device = planned["compute_kernel"], hardware.ranks, hardware.device
    shards = [shard_cost(workload, name, size, kernel=kernel, ranks=ranks, device=device) for size in planned["shards"]]
    return sum(shard.weights + shard.state + shard.ids for shard in shards)


def _tables(plan: PlainShardingPlan) -> list[tuple[str, dict[str, Any]]]:
    return [(name, table) for tables in plan.values() for name, table in tables.items()]


def _ranges(numbers: list[int]) -> str:
    """`0-6, 8`."""
    runs = []
    for _, group in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        runs.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ", ".join(runs)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line for each row, its cells under those of the row before."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
