"""Where the ranks of a job meet: in files of this machine, or at a port of one of several machines."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.system.job_environment import LAUNCHER, STORE, environment

ID = ".rendezvous-id"
_ANSWER = 3.0
"""Seconds that whoever listens at the rendezvous has to show that it is a store."""
_VALIDATE, _MAGIC, _PING = 0, 0x3C85F7CE, 13
"""Of the protocol of torch's TCPStore."""


@contextlib.contextmanager
def local_rendezvous() -> Iterator[list[str]]:
    """torchrun's arguments for ranks of this machine alone, and their environment.

    A store at a port takes pickles from whoever reaches it, and torchrun's listens on all interfaces. Files in a folder of this
    user are reached by nobody else, and two jobs never meet at one port.
    """
    with tempfile.TemporaryDirectory(prefix="prectr-", ignore_cleanup_errors=True) as folder:
        settings = {
            STORE: f"{folder}/store",
            LAUNCHER: str(os.getpid()),
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # else torchrun serves a store at a port to the ranks
        }
        with environment(settings):
            yield [
                "--nnodes=1",
                "--rdzv-backend=c10d",
                "--rdzv-conf=store_type=file",
                f"--rdzv-endpoint={folder}/rendezvous",
                f"--rdzv-id={secrets.token_hex(16)}",
            ]


@contextlib.contextmanager
def rendezvous_of_machines(nodes: str, rendezvous: str, output: Path) -> Iterator[list[str]]:
    """torchrun's arguments for several machines, which share a random id through the folder that they write to.

    Raises:
        ConfigError: no HOST:PORT, or another program has the port.
    """
    check_rendezvous(rendezvous)
    output.mkdir(parents=True, exist_ok=True)
    # ranks that start again in torchrun's own store may meet the addresses of the dead
    with environment({LAUNCHER: str(os.getpid()), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}):
        yield [
            f"--nnodes={nodes}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={rendezvous}",
            f"--rdzv-id={shared_id(output / ID)}",
            # with torchrun's 60 s a machine that is cut off for longer would close the rendezvous for good once it is back
            "--rdzv-conf=read_timeout=600",
        ]


def shared_id(path: Path) -> str:
    """A random id, of whichever machine is the first to write it."""
    if not path.exists():
        own = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        with os.fdopen(os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(secrets.token_hex(16))
        with contextlib.suppress(FileExistsError):
            os.link(own, path)
        own.unlink()
    return path.read_text(encoding="ascii")


def check_rendezvous(rendezvous: str) -> None:
    """Says soon what else would be a minute of silence.

    Raises:
        ConfigError: no HOST:PORT, or what listens there is no store of a job.
    """
    host, _, port = rendezvous.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ConfigError(f"--rendezvous {rendezvous}: write it as HOST:PORT, such as first-host:29500")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _ANSWER) as connection:
            if not _is_store(connection):
                raise ConfigError(f"--rendezvous {rendezvous}: another program listens there; choose a free port")
    except socket.gaierror as error:
        raise ConfigError(f"--rendezvous {rendezvous}: no such host: {error.strerror}") from None
    except OSError:
        print(f"note: nobody listens at {rendezvous} yet; waiting for the other machines", file=sys.stderr, flush=True)


def _is_store(connection: socket.socket) -> bool:
    nonce = struct.pack("=I", os.getpid())
    try:
        connection.sendall(struct.pack("=BIB", _VALIDATE, _MAGIC, _PING) + nonce)
        return connection.recv(len(nonce)) == nonce
    except OSError:
        return False
