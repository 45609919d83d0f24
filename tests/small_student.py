"""A small student, distilled in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from small_run import small_config

from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.distributed.process import process_group
from prectr_torchrec.text.distill import distill


def small(text: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **settings: Any) -> RunConfig:
    quick = {"batch_size": 32, "warmup_steps": 5, "lr": 0.005, "grade_lr": 0.001, "teacher_epochs": 3, "grade_epochs": 1}
    return small_config(
        text={"vocab_size": 300, "query_tokens": 5, "title_tokens": 8, **(text or {})},
        model={"relevance_tower": [16], "match": False, "dropout": 0.0, **(model or {})},
        distill={**quick, **settings},
    )


def run(
    config: RunConfig, root: Path, out: str = "student", *, scores: bool = True, tokenizer: Path | None = None
) -> dict[str, Any]:
    with process_group("cpu") as process:
        given = [root / "scores"] if scores else []
        return distill(config, root / "pairs.parquet", root / out, process, teacher_scores=given, tokenizer=tokenizer)
