"""Where a server listens, for how many, and what it writes about it."""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import socket

import pytest

from prectr_torchrec.serving import log
from prectr_torchrec.serving.listen import _listen, _log_exception, _places


def test_a_port_of_another_program_is_named() -> None:
    with _listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"cannot listen on 127.0.0.1, port {port}: Address already in use"):
            _listen("127.0.0.1", port)
    with pytest.raises(ValueError, match="cannot listen on nowhere-invalid, port 0: "):
        _listen("nowhere-invalid", 0)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_all_addresses_of_both_kinds_are_listened_on() -> None:
    with _listen("::", 0) as listening:
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, listening.getsockname()[1]), timeout=60).close()


def test_there_are_no_more_places_than_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        most, backlog = _places(1000)
        assert 20 < most + 2 * backlog < 256
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_flood_of_the_same_trouble_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    handler, logger = logging.StreamHandler(), logging.getLogger("prectr.serve")
    handler.addFilter(log.RepeatFilter())
    logger.addHandler(handler)
    try:
        loop = asyncio.new_event_loop()
        for _ in range(1000):
            _log_exception(loop, {"message": "socket.accept()", "exception": OSError(errno.EMFILE, "Too many open files")})
        monkeypatch.setattr(log, "SECONDS", 0)
        _log_exception(loop, {"message": "socket.accept()", "exception": OSError(errno.EMFILE, "Too many open files")})
        loop.close()
    finally:
        logger.removeHandler(handler)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "no connection can be taken for the moment: Too many open files"
    assert second == f"{first} (and 999 like it since the line before)"
