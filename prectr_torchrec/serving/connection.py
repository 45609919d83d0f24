"""Connections of clients: how many, how long each may take to say what it wants, and how much it may say."""

from __future__ import annotations

import asyncio
import json
import logging
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

BEGAN = "began"
"""In the state of a request: when its first byte came, by the clock of the event loop."""
_LOG = logging.getLogger("prectr.serve")
SILENT = 10.0
"""Seconds that a new connection may say nothing."""
KEEP_ALIVE = 30.0
"""Seconds between an answer and the next request."""
_SLOW = 30.0
"""Seconds beyond the deadline to answer and to read the answer."""
_HEAD = 2**15
"""Bytes of a request's line and headers, and of anything else that is no body."""
_READ = 2**14
"""Bytes taken at a time, so that no client keeps the others waiting."""
_PIPELINED = 8
"""Requests sent ahead of an answer."""
_LINGER = 2.0
"""Seconds that the rest of a refused body is dropped, for its sender to read the refusal first."""


class Lobby:
    """The open connections of a server; beyond `most` the one that waited longest without a whole request makes room.

    Args:
        most: connections.
        deadline: seconds from the first byte of a request to the end of its headers.
    """

    def __init__(self, most: int, deadline: float) -> None:
        self.most, self.deadline = most, deadline
        self.open: set[Connection] = set()
        self._waiting: dict[Connection, None] = {}  # in the order that they came

    def add(self, connection: Connection) -> None:
        self.open.add(connection)
        self.wait(connection)
        if len(self.open) > self.most:
            _LOG.warning("%d connections are open; those that sent no whole request make room for new ones", self.most)
            oldest = next(iter(self._waiting))
            self.remove(oldest)
            oldest.transport.abort()

    def wait(self, connection: Connection) -> None:
        if connection in self.open:
            self._waiting[connection] = None

    def remove(self, connection: Connection) -> None:
        self.open.discard(connection)
        self.stop_waiting(connection)

    def stop_waiting(self, connection: Connection) -> None:
        self._waiting.pop(connection, None)


class Connection(HttpToolsProtocol):
    """A client's connection: one timer runs from the first byte of a request to the end of its headers, another from there to
    the end of its answer, a third between two requests."""

    def __init__(self, *arguments: Any, lobby: Lobby, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._lobby = lobby
        self._timer: asyncio.TimerHandle | None = None
        self._begun = self._in_head = False
        self._began = 0.0
        self._no_body = 0
        self._dropping = False
        self._refusal = 400, "this is not HTTP/1.1"

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.max_size = _READ  # type: ignore[attr-defined]
        self._lobby.add(self)
        self._within(SILENT, transport.abort)

    def connection_lost(self, error: Exception | None) -> None:
        self._lobby.remove(self)
        self._stop_timer()
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        if self._dropping:
            return
        if not self._begun:
            self._begun, self._began = True, self.loop.time()
            self._within(self._lobby.deadline, partial(self._refuse, 408, "the headers did not arrive in time"))
        self._no_body += len(data)
        super().data_received(data)
        if self._no_body > _HEAD and not self.transport.is_closing():
            if self._in_head or self.cycle is None or not self.cycle.body:
                self._refuse(431, f"the headers are larger than {_HEAD:,} bytes")
            else:  # each chunk costs as much as a large one
                self._refuse(413, f"chunks of a few bytes: {_HEAD:,} bytes more than the body itself; send larger ones")

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether the connection stays open, for the answer to who has said all and waits for it."""
        cycle = self.cycle
        waits = cycle is not None and not (cycle.response_complete or cycle.more_body or self.pipeline or self._dropping)
        if waits:
            cycle.keep_alive = False
        return waits

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()
        self.scope["state"][BEGAN] = self.loop.time() if self.cycle and not self.cycle.response_complete else self._began

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._check_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # what follows a body in chunks is of no use here
            super().on_header(name, value)
            self._check_head()

    def on_headers_complete(self) -> None:
        self._in_head, self._no_body = False, 0
        if len(self.pipeline) >= _PIPELINED:
            self._stop(429, "too many requests ahead of their answers")
        if self.parser.should_upgrade() and any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers):
            self._stop(400, "there is no other protocol here; send the request without `Upgrade`")
        if self.cycle is None or self.cycle.response_complete:
            self._within(self._lobby.deadline + _SLOW, self.transport.abort)
        super().on_headers_complete()
        self.cycle.transport = _Answering(self)  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        self._no_body = max(self._no_body - 2 * len(body), 0)  # what frames a body may be as large as it
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._no_body = 0
        self._lobby.stop_waiting(self)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._dropping or self.transport.is_closing():  # there may be an answer that nobody reads
            return self._within(_LINGER if self._dropping else _SLOW, self.transport.abort)
        if self.cycle.response_complete:  # none was sent ahead
            self._lobby.wait(self)
            self._begun, self._began = self._in_head, self.loop.time()
            self._within(self._lobby.deadline if self._begun else KEEP_ALIVE, self._end)
        else:
            self._within(self._lobby.deadline + _SLOW, self.transport.abort)

    def close_gracefully(self) -> None:
        """Closes after an answer; what its sender is still sending is dropped unread, or the answer might be lost."""
        if not self.cycle.more_body or self._dropping:
            return self.transport.close()
        self._dropping = True
        self.flow.resume_reading()
        try:
            self.transport.write_eof()
        except OSError:  # gone already
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        self._refuse(*self._refusal)

    def _unsupported_upgrade_warning(self) -> None:
        """The request is answered as if it had not asked for another protocol."""

    def _check_head(self) -> None:
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers[-1:]) > _HEAD or len(self.headers) > 100:
            self._stop(431, f"more than 100 headers, or a longer one than {_HEAD:,} bytes")

    def _stop(self, status: int, message: str) -> None:
        self._refusal = status, message
        raise ValueError(message)  # ends the parser, and `send_400_response` is called

    def _refuse(self, status: int, message: str) -> None:
        body = json.dumps({"error": {"message": message}}).encode()
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + head + body)
        self._end()

    def _end(self) -> None:
        self.transport.close()
        self._within(_SLOW, self.transport.abort)

    def _within(self, seconds: float, otherwise: Any) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, otherwise)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Answering:
    """The transport as uvicorn has it to answer on: its end waits for who is still sending."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.write, self.is_closing = connection.transport.write, connection.transport.is_closing

    def close(self) -> None:
        self._connection.close_gracefully()
