"""An export whose numbers are none is refused, and never takes the place of one that serves."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from prectr_torchrec import Ranker
from prectr_torchrec.serving.digests import SEAL, describe, sealed
from prectr_torchrec.serving.export import ABOUT, export, read_about
from prectr_torchrec.serving.server import RankingServer, Refused, ServerSettings, _json, _render


def spoiled(folder: Path, copy: Path, file: str, value: float = float("nan")) -> Path:
    """An export that had one other number in a file from the first."""
    shutil.copytree(folder, copy)
    tensors = load_file(str(copy / file))
    tensor = next(tensor for _, tensor in sorted(tensors.items()) if tensor.dtype in (torch.float32, torch.uint8))
    floats = tensor[-1:, -8:].contiguous().view(torch.float32) if tensor.dtype == torch.uint8 else tensor
    floats.view(-1)[-1] = value
    if tensor.dtype == torch.uint8:
        tensor[-1:, -8:] = floats.view(torch.uint8)
    save_file(tensors, str(copy / file), {"format": "pt"} if file.startswith("text/") else None)
    about = {name: value for name, value in read_about(copy).items() if name != SEAL}
    about["files"] = describe(copy, [copy / name for name in about["files"]])
    (copy / ABOUT).write_text(json.dumps(sealed(about)), encoding="utf-8")
    return copy


@pytest.mark.parametrize("file", ["towers.safetensors", "tables/item.safetensors", "text/model.safetensors"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_file(exported: Any, tmp_path: Path, file: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{file}: \S+ holds NaN or infinity"):
        Ranker.load(spoiled(exported.folder, tmp_path / "spoiled", file, value))


def test_scales_of_an_int8_table_are_looked_at(exported: Any, tmp_path: Path) -> None:
    export(exported.run, tmp_path / "int8", quantize="int8")
    with pytest.raises(ValueError, match=r"tables/user\.safetensors: weight holds NaN"):
        Ranker.load(spoiled(tmp_path / "int8", tmp_path / "spoiled", "tables/user.safetensors"))


def test_a_reload_of_what_does_not_score_keeps_the_ranker_in_use(exported: Any, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.symlink_to(exported.folder)
    server = RankingServer(model, ServerSettings())
    before = server.ranker
    model.unlink()
    model.symlink_to(spoiled(exported.folder, tmp_path / "spoiled", "towers.safetensors"))
    asyncio.run(server.reload())
    assert server.ranker is before and b'prectr_reloads_total{outcome="failed"} 1.0' in server.metrics.text(before)


def test_scores_that_are_no_numbers_are_an_error_and_no_answer(ranker: Ranker) -> None:
    request = {"query": "q", "candidates": [{"item_id": 1}]}
    scores = ranker.score(request)
    assert json.loads(_render(request, scores))["candidates"][0]["item_id"] == 1
    scores.click_probability[0] = np.nan
    with pytest.raises(Refused, match="no numbers"):
        _render(request, scores)
    with pytest.raises(ValueError, match="JSON"):
        _json({"explanation": float("nan")})
