import json
from pathlib import Path

import pytest
from small_run import small_config, write_small_data, write_small_manifest

from prectr_torchrec.data.reader.epoch_plan import list_row_groups
from prectr_torchrec.data.schema import MANIFEST, SAMPLE_VERSION, read_manifest, sample_schema


def test_manifest_that_fits_is_read(tmp_path: Path) -> None:
    write_small_manifest(tmp_path, small_config())
    assert read_manifest(tmp_path, small_config().data)["max_candidates"] == 9


def test_unfinished_preparation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not \(wholly\) prepared, prepared.json is missing; run `prectr prepare`"):
        read_manifest(tmp_path, small_config().data)


def test_samples_of_other_levels_are_refused_by_key(tmp_path: Path) -> None:
    write_small_manifest(tmp_path, small_config())
    other = small_config(data={"levels": {"boundaries": [1.5, 2.5]}, "history_length": 6, "peer_length": 4}).data
    with pytest.raises(ValueError, match=r"prepared with data.levels .*2.17.*, the configuration has .*2.5"):
        read_manifest(tmp_path, other)
    with pytest.raises(ValueError, match=r"prepared with data.levels .*2.17.*, run/config.yaml has .*2.5"):
        read_manifest(tmp_path, other, Path("run/config.yaml"))


def test_samples_of_another_examination_or_group_are_refused_by_key(tmp_path: Path) -> None:
    write_small_manifest(tmp_path, small_config())
    lengths = {"history_length": 6, "peer_length": 4}
    with pytest.raises(ValueError, match=r"prepared with data.examination None, the configuration has \[1.0, 0.5\]"):
        read_manifest(tmp_path, small_config(data={**lengths, "examination": [1.0, 0.5]}).data)
    with pytest.raises(ValueError, match=r"prepared with data.query_group 'category_id', the configuration has None"):
        read_manifest(tmp_path, small_config(data={**lengths, "query_group": None}).data)


def test_samples_of_another_version_are_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"version": "1"}', encoding="utf-8")
    with pytest.raises(ValueError, match=f"sample version 1, this release reads {SAMPLE_VERSION}; prepare again"):
        read_manifest(tmp_path, small_config().data)


def test_a_split_of_other_requests_than_were_prepared_is_refused(tmp_path: Path) -> None:
    config = small_config()
    write_small_data(tmp_path, config, requests=20)
    manifest = json.loads((tmp_path / MANIFEST).read_text(encoding="utf-8"))
    (tmp_path / MANIFEST).write_text(json.dumps({**manifest, "splits": {"train": {"requests": 20}}}), encoding="utf-8")
    groups = list_row_groups(tmp_path, "train", sample_schema(config.data), 100)
    assert sum(len(group.num_candidates) for group in groups) == 20
    (tmp_path / "train" / "part-00001.parquet").unlink()
    with pytest.raises(ValueError, match=r"train: 10 requests are there, 20 were prepared: a file is missing"):
        list_row_groups(tmp_path, "train", sample_schema(config.data), 100)
