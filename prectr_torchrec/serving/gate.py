"""What every request passes first: whose host it names, and whether its body was read before its answer."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK_NAME = "localhost"


class Hosts:
    """The names that a server answers to: a page elsewhere whose name is made to point here must not read from it.

    Args:
        listening: address or name that the server listens on.
        named: names that it goes by besides; `*`: any.
    """

    def __init__(self, listening: str, named: Iterable[str] = ()) -> None:
        self._named = {name.lower().strip("[]").rstrip(".") for name in named}
        address = _address(listening)
        self._local_only = address.is_loopback if address else listening == LOOPBACK_NAME
        self._names = self._named | {LOOPBACK_NAME} | ({listening.lower()} if address is None else set())

    def answers(self, host: str) -> bool:
        """Whether a `Host` header names this server: by one of its names, or by an address that can be its own."""
        name = _name(host)
        address = _address(name)
        if address is not None and (address.is_loopback or not self._local_only):
            return True
        return name in self._names or "*" in self._named

    def shares(self, origin: str, host: str) -> bool:
        """Whether a page of `origin` is this server's."""
        place = urlsplit(origin).netloc.lower()
        return place == host.lower() or _name(place) in self._named or "*" in self._named


class Gate:
    """Refuses requests to other hosts and of other pages, and closes a connection whose request was answered before its body
    had come: what is refused is not read on.

    Args:
        app: what answers the others.
        hosts: the names that it goes by.
    """

    def __init__(self, app: ASGIApp, hosts: Hosts) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        unread = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers

        async def read() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and bool(message.get("more_body"))
            return message

        async def answer(message: Message) -> None:
            if unread and message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        refusal = self._refusal(headers, scope.get("http_version", "1.1"))
        await (self._app(scope, read, answer) if refusal is None else _refuse(*refusal, send))

    def _refusal(self, headers: Headers, version: str) -> tuple[int, str] | None:
        hosts = headers.getlist("host")
        if len(hosts) > 1 or (not hosts and version != "1.0"):
            return 400, "send the header `Host`, once"
        if not hosts:
            return None
        if not self._hosts.answers(hosts[0]):
            return 421, f"this server is not {hosts[0][:100]!r}; name its hosts with `prectr serve --allow-host`"
        if (origin := headers.get("origin")) is not None and not self._hosts.shares(origin, hosts[0]):
            return 403, f"pages of {origin[:100]!r} may not ask this server"
        return None


async def _refuse(status: int, message: str, send: Send) -> None:
    body = json.dumps({"error": {"message": message}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _name(host: str) -> str:
    """Of a `Host` header, without its port."""
    name = host[: host.find("]") + 1] if host.startswith("[") else host.rpartition(":")[0] or host
    return name.strip("[]").rstrip(".").lower()


def _address(name: str) -> Any:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
