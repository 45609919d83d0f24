"""`prectr_torchrec.data` where there is no torch, as on Spark workers: all of it but the reader."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import prectr_torchrec.data

WITH_TORCH = {
    f"prectr_torchrec.data.reader.{name}" for name in ("assemble", "batch", "epoch_plan", "origin", "reader", "watchdog")
}
"""What a reader is made of."""


def test_data_is_imported_without_torch() -> None:
    found = pkgutil.walk_packages(prectr_torchrec.data.__path__, "prectr_torchrec.data.")
    names = sorted({module.name for module in found} - WITH_TORCH)
    assert "prectr_torchrec.data.prepare.prepare" in names and "prectr_torchrec.data.reader.flat" in names
    script = f"""
import importlib, sys
sys.modules["torch"] = sys.modules["torchrec"] = None  # as if they were not installed
for name in {names}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
