"""`prectr serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prectr_torchrec.serving.hangups import Hangups


def serve(
    model: Annotated[Path, typer.Option(help="Folder of `prectr export`, or a link to one; SIGHUP loads it anew.")],
    host: Annotated[str, typer.Option(help="Name, IPv4 or IPv6 address to listen on; `::`: all of both kinds.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8080,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Name that clients may call the server, besides its addresses; may be repeated.")
    ] = None,
    deadline: Annotated[float, typer.Option(min=0.001, help="Seconds; what takes longer is refused with 503.")] = 1.0,
    capacity: Annotated[int, typer.Option(min=1, help="Requests at a time; more are refused with 503.")] = 64,
    max_connections: Annotated[int, typer.Option(min=1, help="Open at a time.")] = 1000,
    batch: Annotated[int, typer.Option(min=1, help="Requests scored together.")] = 16,
    max_bytes: Annotated[int, typer.Option(min=1, help="Of a request's body.")] = 4 * 2**20,
    max_candidates: Annotated[int, typer.Option(min=1, help="Of a request.")] = 10_000,
    max_events: Annotated[int, typer.Option(min=1, help="Of a request's history, and of its peers.")] = 2_000,
    max_characters: Annotated[int, typer.Option(min=1, help="Of a text; a request may have a thousand times as many.")] = 1_000,
    token_file: Annotated[Path | None, typer.Option(help="File with the token that clients must send.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="Of torch; 0: its own choice.")] = 0,
    demo_page: Annotated[
        Path | None, typer.Option(help="Folder of sample files, such as prepared/test: serve a page to look at rankings of them.")
    ] = None,
) -> None:
    """Serve an exported ranker over HTTP: /v1/rank, /healthz, /readyz, /metrics, /openapi.json, and a page at / if asked for."""
    hangups = Hangups()  # before torch is imported
    try:
        from prectr_torchrec.serving.listen import serve
        from prectr_torchrec.serving.server import Limits, ServerSettings
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed; pip install 'prectr-torchrec[serve]'") from None
    import torch

    if threads:
        torch.set_num_threads(threads)
    token = token_file.read_text(encoding="utf-8").strip() if token_file else None
    if token == "":
        raise ValueError(f"{token_file}: there is no token in this file")
    settings = ServerSettings(
        deadline=deadline,
        capacity=capacity,
        batch_requests=batch,
        max_bytes=max_bytes,
        token=token,
        limits=Limits(max_candidates, max_events, max_characters, 1000 * max_characters),
    )
    serve(model, host, port, settings, demo=demo_page, hosts=allow_host or (), connections=max_connections, hangups=hangups)
