"""Table kernels: where TorchRec keeps a table's rows, and what follows from it, one row of facts for each.

Whoever costs, constrains, checks or documents tables reads these facts; nobody compares names. A further kernel of TorchRec's
`EmbeddingComputeKernel` is one more row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

Tier = Literal["hbm", "ddr", "ssd"]


class Cache(NamedTuple):
    """Rows that a kernel keeps in HBM, a share `tables.*.cache.load_factor` of them, and FBGEMM's bookkeeping of them."""

    bytes_per_row: int = 0
    """Of the table."""
    bytes_per_slot: int = 0
    """Of the cache."""


class Kernel(NamedTuple):
    """Facts of a compute kernel on a GPU; CPU ranks keep everything in host memory."""

    rows: Tier
    """Where the rows lie."""
    state: Tier
    """Where the optimizer's state of an element lies."""
    rowwise_state: Tier
    """Where the optimizer's state of a row lies."""
    cache: Cache | None = None
    cpu: bool = False
    """Whether it runs without CUDA."""
    store: bool = False
    """Whether a key-value store holds the rows, with settings of its own (`KeyValueParams`)."""
    virtual: bool = False
    """Whether rows are made when they are first trained on. Such tables are sharded by rows, in buckets."""
    checkpointed: bool = True
    """Whether a checkpoint holds the rows. Stores hand out `PartiallyMaterializedTensor`s, of which Distributed Checkpoint
    writes no rows and into which it loads none: such a table can be planned with, not trained."""
    remedy: str = ""
    """What `prectr plan` calls a move of rows to this kernel; empty: it proposes none."""


KERNELS: dict[str, Kernel] = {
    "fused": Kernel("hbm", "hbm", "hbm", cpu=True),
    "fused_uvm": Kernel("ddr", "ddr", "hbm"),
    "fused_uvm_caching": Kernel(
        "ddr",
        "ddr",
        "hbm",
        cache=Cache(bytes_per_row=4, bytes_per_slot=16),  # an int32 for each row; id and age, int64 each, for each slot
        remedy="rows in host memory, a cache in HBM",
    ),
    "key_value": Kernel("ssd", "hbm", "hbm", cache=Cache(), store=True, checkpointed=False),
    "dram_virtual_table": Kernel("ddr", "ddr", "ddr", cache=Cache(), store=True, virtual=True, checkpointed=False),
    "ssd_virtual_table": Kernel(
        "ssd", "ssd", "ssd", cache=Cache(), store=True, virtual=True, checkpointed=False, remedy="rows on SSD"
    ),
}
"""By the name that `tables.*.kernel` and TorchRec have for it."""

if TYPE_CHECKING:
    KernelName = str
else:
    KernelName = Literal[tuple(KERNELS)]  # pydantic refuses all other names, and lists these


def kernels_where(fits: Callable[[Kernel], bool]) -> str:
    """The names of the kernels that fit, as an error says them: `'fused' or 'fused_uvm'`."""
    return " or ".join(repr(name) for name, kernel in KERNELS.items() if fits(kernel))
