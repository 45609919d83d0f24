"""One rank of a training job: `torchrun -m prectr_torchrec.training.rank --config C --data DIR --run-dir DIR`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import timedelta

from torch.distributed.elastic.multiprocessing.errors import record

from prectr_torchrec.config.files import load_config
from prectr_torchrec.distributed.process import process_group, run_rank
from prectr_torchrec.distributed.sharding import read_plan
from prectr_torchrec.system.locks import job_lock
from prectr_torchrec.system.paths import check_arguments, unambiguous
from prectr_torchrec.training.trainer import Trainer


@record
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="YAML file or the name of a shipped configuration")
    parser.add_argument("--data", required=True, type=unambiguous, help="prepared folder")
    # torchrun takes a bare `--run` for an abbreviation of its own `--run-path`
    parser.add_argument(
        "--run-dir", "--run", required=True, type=unambiguous, help="run directory; resumed if it has a checkpoint"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one setting")
    parser.add_argument("--plan", type=unambiguous, help="sharding plan that `prectr plan --save` wrote; default: planned here")
    check_arguments(argv)
    arguments = parser.parse_args(argv)
    config = load_config(arguments.config, arguments.set)
    plan = read_plan(arguments.plan) if arguments.plan else None
    with (
        process_group(config.train.device, timedelta(seconds=config.train.timeout)) as process,
        job_lock(arguments.run_dir, process.rank),
    ):
        Trainer(config, arguments.data, arguments.run_dir, process, plan).train()


if __name__ == "__main__":
    run_rank(main)
