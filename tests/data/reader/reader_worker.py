"""What each rank does in the reader's tests over real ranks."""

from pathlib import Path
from typing import Any

from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.reader.reader import SearchReader, agree_on_batches
from prectr_torchrec.data.schema import TOKENIZER
from prectr_torchrec.distributed.process import process_group


def print_agreed_batches(folder: str, config: dict[str, Any]) -> None:
    """Rank 0 reads one request a batch, rank 1 four."""
    with process_group("cpu") as process:
        config["batch"]["requests"] = 1 + 3 * process.rank
        reader = SearchReader(
            RunConfig.model_validate(config),
            Path(folder),
            "train",
            Path(folder) / TOKENIZER,
            rank=process.rank,
            world_size=process.world_size,
        )
        own = reader.num_batches(0)
        batches = list(reader.epoch(0, num_batches=agree_on_batches(own)))
        requests = sum(int(batch.request_weight.sum()) for batch in batches)
        print(f"rank {process.rank}: {own} of its own, {len(batches)} batches, {requests} requests", flush=True)
