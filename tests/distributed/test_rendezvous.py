"""Where ranks meet: nobody else's port, and an id of the job's own."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from prectr_torchrec.distributed.rendezvous import check_rendezvous, local_rendezvous, rendezvous_of_machines, shared_id
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.system.job_environment import STORE


@pytest.fixture(params=[b"", b"SSH-2.0-other\r\n"], ids=["silent", "talking"])
def other_program(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a program that is no store."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            connection.sendall(request.param)
            connection.recv(1000)
            over.wait()

        over = threading.Event()
        thread = threading.Thread(target=answer)
        thread.start()
        yield server.getsockname()[1]
        over.set()
        thread.join()


def test_a_port_that_another_program_holds_is_refused_at_once(other_program: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prectr_torchrec.distributed.rendezvous._ANSWER", 0.3)
    with pytest.raises(ConfigError, match=rf"--rendezvous 127.0.0.1:{other_program}: another program listens there"):
        check_rendezvous(f"127.0.0.1:{other_program}")


def test_the_store_of_a_job_is_no_other_program(capsys: pytest.CaptureFixture[str]) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    check_rendezvous(f"127.0.0.1:{store.port}")
    assert capsys.readouterr().err == ""


def test_a_machine_that_is_not_there_yet_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    check_rendezvous(f"127.0.0.1:{port}")
    assert f"nobody listens at 127.0.0.1:{port} yet" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["host", "host:", ":29500", "host:99999", "host:a"])
def test_what_is_no_host_and_port_is_refused(place: str) -> None:
    with pytest.raises(ConfigError, match="write it as HOST:PORT"):
        check_rendezvous(place)


def test_machines_of_one_run_directory_agree_on_a_random_id(tmp_path: Path) -> None:
    found = {shared_id(tmp_path / ".rendezvous-id") for _ in range(2)}
    assert len(found) == 1 and found != {shared_id(tmp_path / "another")}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".rendezvous-id", "another"]
    with rendezvous_of_machines("2", "127.0.0.1:1", tmp_path) as arguments:
        assert f"--rdzv-id={found.pop()}" in arguments and "--nnodes=2" in arguments


def test_ranks_of_one_machine_meet_in_a_folder_of_this_user() -> None:
    with local_rendezvous() as first, local_rendezvous() as second:
        folder = Path(os.environ[STORE]).parent
        assert folder.stat().st_mode & 0o777 == 0o700
        assert "--rdzv-conf=store_type=file" in first and not set(first[3:]) & set(second[3:])
    assert STORE not in os.environ and not folder.exists()
