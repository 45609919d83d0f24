import os
from pathlib import Path
from typing import Any

import pytest
from small_run import small_config, write_small_data

from prectr_torchrec.config.kernels import KERNELS
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.config.tables import ManagedConfig
from prectr_torchrec.distributed.device import check_device, check_trainable
from prectr_torchrec.distributed.process import process_group
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.training.trainer import Trainer


def changed(table: dict[str, Any] | None = None, **communication: str) -> RunConfig:
    config = small_config(communication=communication)
    config.tables["item"] = config.tables["item"].model_copy(update=table or {})
    return config


def check(config: RunConfig, device: str, ranks: int) -> None:
    check_device(config.tables, config.communication, device, ranks)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kernel": "fused_uvm_caching"}, "tables.item.kernel: 'fused_uvm_caching' needs CUDA; use 'fused'"),
        ({"stochastic_rounding": True}, "tables.item.stochastic_rounding: true needs CUDA; use null or false"),
    ],
)
def test_what_the_cpu_cannot_do_names_its_key_and_what_would_be_right(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(changed(table), "cpu", 2)
    assert f"this job's 2 ranks run on cpu: {message}" == str(caught.value)
    check(changed(table), "cuda", 2)


def test_a_process_group_leaves_the_environment_as_it_was() -> None:
    before = dict(os.environ)
    with process_group("cpu"):
        assert os.environ["GLOO_SOCKET_IFNAME"].startswith("lo")
    assert dict(os.environ) == before


def test_gloo_sends_no_bf16() -> None:
    with pytest.raises(ConfigError, match=r"communication.backward: 'bf16' needs CUDA, gloo does not send it; use 'fp16'"):
        check(changed(backward="bf16"), "cpu", 2)
    check(changed(backward="bf16"), "cuda", 2)


def test_int8_communication_needs_wide_tables() -> None:
    with pytest.raises(
        ConfigError, match=r"communication.forward: 'int8' needs widths that are multiples of 32; tables.\w+.dim is 8"
    ):
        check(changed(forward="int8"), "cuda", 2)


def test_multi_probe_ids_need_cuda_and_buckets_for_all_ranks() -> None:
    managed = {"ids": "managed", "rows": 8400, "sharding": ["row_wise"]}
    probed = managed | {"managed": ManagedConfig(algorithm="multi_probe", eviction="lru")}
    check(changed(managed), "cpu", 2)
    with pytest.raises(ConfigError, match=r"tables.item.managed.algorithm: 'multi_probe' needs CUDA; use 'sorted'"):
        check(changed(probed), "cpu", 2)
    with pytest.raises(ConfigError, match=r"tables.item.buckets: 840 must be a multiple of the 16 ranks"):
        check(changed(managed), "cpu", 16)


def test_buckets_of_a_virtual_table_are_shared_out_among_the_ranks() -> None:
    virtual = {"kernel": "dram_virtual_table", "rows": 8400, "sharding": ["row_wise"]}
    check(changed(virtual), "cuda", 8)
    with pytest.raises(ConfigError, match=r"tables.item.buckets: 840 must be a multiple of the 16 ranks"):
        check(changed(virtual), "cuda", 16)


@pytest.mark.parametrize("kernel", [name for name, kernel in KERNELS.items() if not kernel.checkpointed])
def test_tables_in_a_store_are_not_trained_since_a_checkpoint_would_not_hold_their_rows(kernel: str) -> None:
    with pytest.raises(ConfigError, match=rf"tables.item.kernel: '{kernel}' can be planned with, not trained"):
        check_trainable(changed({"kernel": kernel}).tables)
    check_trainable(changed({"kernel": "fused_uvm_caching"}).tables)


def test_a_job_that_cannot_run_writes_nothing(tmp_path: Path) -> None:
    config = changed({"kernel": "fused_uvm"})
    data = write_small_data(tmp_path / "data", config)
    with process_group("cpu") as process, pytest.raises(ConfigError, match="needs CUDA"):
        Trainer(config, data, tmp_path / "run", process)
    assert not (tmp_path / "run").exists()
