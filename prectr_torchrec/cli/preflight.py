"""What a command is given, looked at before torch is imported and ranks are started: a mistake is told within a second or two."""

from __future__ import annotations

from pathlib import Path

from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.config.trackers import check_trackers
from prectr_torchrec.data.reader.feature_columns import check_features
from prectr_torchrec.data.schema import check_findings, load_manifest, read_manifest
from prectr_torchrec.runs.layout import checkpoint_path, load_run
from prectr_torchrec.system.errors import ConfigError


def check_training(config: RunConfig, data: Path) -> None:
    """Raises ValueError or FileNotFoundError where the samples or what the configuration names is not there or does not fit."""
    check_features(config.data, config.features)
    check_trackers(config.trackers)
    if config.text.path is not None and not Path(config.text.path).is_dir():
        raise ConfigError(f"text.path: there is no folder {config.text.path}")
    if config.train.init_from is not None:
        load_run(Path(config.train.init_from.run))
    if config.losses.rehearsal.pairs is not None:
        check_pairs(Path(config.losses.rehearsal.pairs))
    read_manifest(data, config.data)


def check_run(run: Path, checkpoint: str, data: Path | None = None) -> None:
    """Raises ValueError or FileNotFoundError where there is no such checkpoint, or the samples are not as the run's."""
    config = load_run(run)
    checkpoint_path(run, checkpoint)
    if data is not None:
        read_manifest(data, config.data)
        check_findings(data, run, load_manifest(run))


def check_pairs(pairs: Path) -> None:
    """Raises ValueError where there is no file of pairs."""
    from prectr_torchrec.data.pairs.pairs import PairsFile

    PairsFile.open(pairs)
