"""`prectr serve` as a process: its socket, its connections, its signals."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import signal
import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from prectr_torchrec.distributed.process import quiet_libraries
from prectr_torchrec.serving.connection import KEEP_ALIVE, Connection, Lobby
from prectr_torchrec.serving.gate import Gate, Hosts
from prectr_torchrec.serving.hangups import Hangups
from prectr_torchrec.serving.log import log_with_times
from prectr_torchrec.serving.memory import freeze_objects
from prectr_torchrec.serving.server import RankingServer, ServerSettings
from prectr_torchrec.system.paths import only_local

_LOG = logging.getLogger("prectr.serve")
_RESERVED = 64
"""Descriptors for all but connections: the files of a model that is loaded anew."""
_QUEUED = 1024
"""Connections that may wait to be taken; the client of one more is left to try again after a second."""
_NONE_LEFT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@only_local
def serve(
    model: Path,
    host: str,
    port: int,
    settings: ServerSettings,
    *,
    demo: Path | None = None,
    hosts: Sequence[str] = (),
    connections: int = 1000,
    hangups: Hangups | None = None,
) -> None:
    """Serves until SIGINT or SIGTERM, which let the requests in the works end; SIGHUP loads the model anew.

    Args:
        model: exported folder, or a link to one.
        host, port: to listen on; a name, an IPv4 or an IPv6 address.
        settings: limits.
        demo: folder of sample files for a page at `/`.
        hosts: names that clients may call the server besides its addresses.
        connections: open at a time, where there are descriptors for so many.
        hangups: what has taken SIGHUP so far.

    Raises:
        FileNotFoundError: there is no exported ranker, or no sample file in `demo`.
        ValueError: the ranker or the address cannot be used.
    """
    log_with_times()
    quiet_libraries()
    hangups = hangups or Hangups()
    server = RankingServer(model, settings, demo)
    freeze_objects()
    most, backlog = _places(connections)
    lobby = Lobby(most, settings.deadline)
    server.metrics.connections.set_function(lambda: len(lobby.open))
    config = uvicorn.Config(
        Gate(server.app, Hosts(host.strip("[]"), hosts)),
        http=partial(Connection, lobby=lobby),  # type: ignore[arg-type]
        ws="none",
        proxy_headers=False,
        log_config=None,
        log_level="warning",
        access_log=False,
        backlog=backlog,
        timeout_graceful_shutdown=max(int(2 * settings.deadline), 1),
        timeout_keep_alive=int(KEEP_ALIVE) + 1,
    )
    listening = _listen(host.strip("[]"), port)
    asyncio.run(_run(uvicorn.Server(config), server, listening, hangups))


async def _run(http: uvicorn.Server, server: RankingServer, listening: socket.socket, hangups: Hangups) -> None:
    tasks: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = asyncio.ensure_future(server.reload())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_log_exception)
    if hasattr(signal, "SIGHUP"):
        loop.add_signal_handler(signal.SIGHUP, reload)
    if hangups.came:
        reload()
    host, port = listening.getsockname()[:2]
    print(f"serving {server.model} on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    await http.serve(sockets=[listening])


class _Listening(socket.socket):
    """A socket whose queue is longer than the number of connections that asyncio, which calls `listen`, takes at a time."""

    def listen(self, backlog: int = _QUEUED) -> None:
        super().listen(max(backlog, _QUEUED))


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens, so that nobody is turned away once its address is printed."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        both = host == "::" and socket.has_dualstack_ipv6()
        return _Listening(fileno=socket.create_server(address, family=family, dualstack_ipv6=both).detach())
    except OSError as error:
        raise ValueError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from None


def _places(connections: int) -> tuple[int, int]:
    """Connections that there are descriptors for, and how many more may be taken at a time."""
    free = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - len(
        os.listdir("/proc/self/fd" if os.path.isdir("/proc") else "/dev/fd")
    )
    free -= min(_RESERVED, free // 2)
    backlog = max(min(128, free // 4), 1)
    return max(min(connections, free - 2 * backlog), 1), backlog


def _log_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in _NONE_LEFT:
        _LOG.error("no connection can be taken for the moment: %s", error.strerror)
    else:
        loop.default_exception_handler(context)
