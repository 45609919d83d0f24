"""`prectr serve`: an exported ranker over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import ClientDisconnect

from prectr_torchrec.distributed.process import quiet_libraries
from prectr_torchrec.paths import only_local
from prectr_torchrec.serving.batcher import Expired, MicroBatcher, Overloaded
from prectr_torchrec.serving.page import DemoPage, page, render
from prectr_torchrec.serving.ranker import Ranker, Scores
from prectr_torchrec.serving.request import RequestError, RequestSchema

_LOG = logging.getLogger("prectr.serve")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


@dataclass(frozen=True)
class ServerSettings:
    """How a server treats its clients."""

    deadline: float = 1.0
    """Seconds from a request's first byte to its scores; what takes longer is refused with 503."""
    capacity: int = 64
    """Requests admitted at a time; more are refused with 503 at once."""
    batch_requests: int = 16
    batch_candidates: int = 4096
    """Of what is scored together."""
    wait: float = 0.001
    """Seconds that a request which finds nobody waiting lets others join it."""
    max_bytes: int = 4 * 2**20
    """Of a request's body."""
    max_candidates: int = 10_000
    """Of a request."""
    token: str | None = None
    """Where set, `/v1/rank` wants `Authorization: Bearer TOKEN`."""


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, **details: str) -> None:
        super().__init__(message)
        self.status, self.body = status, {"error": {"message": message, **details}}


class RankingServer:
    """The HTTP application around a ranker.

    Args:
        model: exported folder, or a link to one.
        settings: limits.
        demo: folder of sample files for a page to look at rankings, at `/`; None: there is no page.

    Attributes:
        app: the ASGI application.
        model: the folder.
        ranker: what scores; `reload` changes it between two requests.
    """

    def __init__(self, model: Path, settings: ServerSettings, demo: Path | None = None) -> None:
        self.model, self._settings = model, settings
        self.ranker = _load(model)
        self._reloading = asyncio.Lock()
        self._metrics = _Metrics()
        self.app = FastAPI(title="PRECTR ranker", version="1", lifespan=self._lifespan)
        self._add_routes(self.app, self.ranker.schema)
        if demo is not None:
            self._add_page(self.app, DemoPage(demo))

    async def reload(self) -> None:
        """Loads the folder anew; requests in the works end with the ranker that they began with. What fails to load changes
        nothing."""
        async with self._reloading:  # one after the other, or the slower would stay
            try:
                self.ranker = await asyncio.to_thread(_load, self.model)
            except Exception as error:
                self._metrics.reloads.labels("failed").inc()
                _LOG.error("%s was not reloaded, the ranker in use stays: %s", self.model, error)
            else:
                self._metrics.reloads.labels("done").inc()
                _LOG.warning("%s was reloaded", self.model)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        settings = self._settings
        self._batcher = MicroBatcher(
            capacity=settings.capacity, max_requests=settings.batch_requests, max_candidates=settings.batch_candidates,
            wait=settings.wait, on_batch=self._metrics.batches.observe,
        )  # fmt: skip
        self._metrics.admitted.set_function(lambda: self._batcher.admitted)
        self._running = asyncio.create_task(self._batcher.run())
        yield
        self._running.cancel()

    def _add_routes(self, app: FastAPI, schema: RequestSchema) -> None:
        body = {"required": True, "content": {"application/json": {"schema": _embedded(schema.describe())}}}
        answers: dict[int | str, dict[str, Any]] = {
            200: {"description": "Candidates, best first.", "content": {"application/json": {"schema": _ANSWER}}},
            **{s: {"description": d, "content": {"application/json": {"schema": _ERROR}}} for s, d in _ERRORS.items()},
        }

        @app.post("/v1/rank", openapi_extra={"requestBody": body}, responses=answers, response_class=JSONResponse)
        async def rank(request: Request, explain: bool = False) -> Response:
            """Ranks the candidates of a request."""
            return await self._guard(request, lambda: self._answer(request, explain))

        @app.exception_handler(RequestValidationError)
        async def wrong_parameter(request: Request, error: RequestValidationError) -> Response:
            first = error.errors()[0]
            field, got = ".".join(map(str, first["loc"])), repr(first["input"])
            return JSONResponse(Refused(422, f"{field}: got {got}; {first['msg']}", field=field, got=got).body, 422)

        @app.get("/healthz")
        async def healthz() -> dict[str, str]:
            """Whether the process lives."""
            return {"status": "ok"}

        @app.get("/readyz")
        async def readyz() -> Response:
            """Whether requests should come here."""
            ready = not self._running.done()
            return JSONResponse({"status": "ready" if ready else "stopped"}, 200 if ready else 503)

        @app.get("/metrics", response_class=PlainTextResponse)
        async def metrics() -> Response:
            """Figures for Prometheus."""
            return Response(self._metrics.text(self.ranker), media_type=CONTENT_TYPE_LATEST)

    def _add_page(self, app: FastAPI, demo: DemoPage) -> None:
        text, policy = page()
        headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}

        @app.get("/", response_class=HTMLResponse, include_in_schema=False)
        async def look() -> Response:
            return HTMLResponse(text, headers=headers)

        @app.get("/demo", include_in_schema=False)
        async def choices(request: Request) -> Response:
            async def answer() -> bytes:
                return json.dumps(demo.describe(self.ranker)).encode()

            return await self._guard(request, answer)

        @app.post("/demo", include_in_schema=False)
        async def rank_for_page(request: Request) -> Response:
            return await self._guard(request, lambda: self._answer_page(demo, request))

    async def _guard(self, request: Request, work: Callable[[], Awaitable[bytes]]) -> Response:
        """The answer of `work` in one of the places, or why there is none."""
        began, status = time.perf_counter(), 500
        try:
            self._check_token(request)
            with self._batcher.admit():
                content = await work()
            status = 200
            return Response(content, media_type="application/json")
        except Refused as refused:
            status = refused.status
            headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
            return JSONResponse(refused.body, status, headers)
        except (Overloaded, Expired) as error:
            status = 503
            why = "too many requests at a time" if isinstance(error, Overloaded) else f"not within {self._settings.deadline:g} s"
            return JSONResponse({"error": {"message": why}}, status, {"Retry-After": "1"})
        except ClientDisconnect:
            status = 400
            return Response(status_code=status)
        finally:
            self._metrics.requests.labels(str(status)).inc()
            self._metrics.seconds.observe(time.perf_counter() - began)

    async def _answer(self, request: Request, explain: bool) -> bytes:
        ranker, (body, deadline) = self.ranker, await self._read_in_time(request)
        plain, samples = await asyncio.to_thread(self._parse, ranker, body)
        scores = await self._batcher.score(ranker, samples, deadline, explain=explain)
        self._metrics.candidates.inc(len(scores.item_id))
        return await asyncio.to_thread(_render, plain, scores)

    async def _answer_page(self, demo: DemoPage, request: Request) -> bytes:
        ranker, (body, deadline) = self.ranker, await self._read_in_time(request)
        query, user = _choice(body)
        samples = await asyncio.to_thread(demo.samples, ranker, query, user)
        scores = [await self._batcher.score(ranker, samples.slice(i, 1), deadline, explain=True) for i in range(2)]
        return json.dumps(render(samples, scores, demo.past(ranker, user))).encode()

    async def _read_in_time(self, request: Request) -> tuple[bytes, float]:
        """The body, and the time on the loop's clock by which the answer is due."""
        deadline = asyncio.get_running_loop().time() + self._settings.deadline
        try:
            return await asyncio.wait_for(self._read(request), self._settings.deadline), deadline
        except asyncio.TimeoutError:
            raise Refused(408, f"the body did not arrive within {self._settings.deadline:g} s") from None

    async def _read(self, request: Request) -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._settings.max_bytes:
                raise Refused(413, f"the body is larger than {self._settings.max_bytes:,} bytes")
        return bytes(body)

    def _parse(self, ranker: Ranker, body: bytes) -> tuple[dict[str, Any], pa.Table]:
        try:
            plain = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"the body is not JSON: {error}") from None
        try:
            samples = ranker.schema.from_plain([plain], name=None)
        except RequestError as error:
            raise Refused(422, str(error), field=error.field, got=error.got, expected=error.expected) from None
        if (count := samples["num_candidates"][0].as_py()) > self._settings.max_candidates:
            limit = f"{self._settings.max_candidates:,}"
            raise Refused(422, f"candidates: got {count:,}; expected at most {limit}", field="candidates", got=f"{count:,}",
                          expected=f"at most {limit}")  # fmt: skip
        return plain, samples

    def _check_token(self, request: Request) -> None:
        token, given = self._settings.token, request.headers.get("authorization", "")
        if token is not None and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise Refused(401, "send the header `Authorization: Bearer TOKEN`")


@only_local
def serve(model: Path, host: str, port: int, settings: ServerSettings, demo: Path | None = None) -> None:
    """Serves until SIGINT or SIGTERM, which let the requests in the works end; SIGHUP loads the model anew.

    Raises:
        FileNotFoundError: there is no exported ranker, or no sample file in `demo`.
    """
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s")
    quiet_libraries()
    server = RankingServer(model, settings, demo)
    config = uvicorn.Config(
        server.app, host=host, port=port, log_level="warning", access_log=False,
        timeout_graceful_shutdown=max(int(2 * settings.deadline), 1), timeout_keep_alive=30,
    )  # fmt: skip
    listening = config.bind_socket()
    listening.listen()  # once the line is printed nobody is turned away
    asyncio.run(_run(uvicorn.Server(config), server, listening))


async def _run(http: uvicorn.Server, server: RankingServer, listening: Any) -> None:
    tasks: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = asyncio.ensure_future(server.reload())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    if hasattr(signal, "SIGHUP"):
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
    host, port = listening.getsockname()[:2]
    print(f"serving {server.model} on http://{host}:{port}", flush=True)
    await http.serve(sockets=[listening])


def _load(model: Path) -> Ranker:
    ranker = Ranker.load(model)
    ranker.score({"query": "", "candidates": [{"item_id": 0}]})  # what is made at the first call is not to keep a client waiting
    return ranker


class _Metrics:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter("prectr_requests", "Requests by status", ["status"], registry=self._registry)
        self.seconds = Histogram("prectr_request_seconds", "Time to answer", buckets=_SECONDS, registry=self._registry)
        self.batches = Histogram("prectr_batch_requests", "Requests scored together", buckets=(1, 2, 4, 8, 16, 32, 64),
                                 registry=self._registry)  # fmt: skip
        self.candidates = Counter("prectr_candidates", "Candidates scored", registry=self._registry)
        self.admitted = Gauge("prectr_admitted_requests", "Requests in the works", registry=self._registry)
        self.reloads = Counter("prectr_reloads", "Reloads by outcome", ["outcome"], registry=self._registry)
        self._titles = Gauge("prectr_titles", "Titles kept", registry=self._registry)
        self._lookups = Gauge(
            "prectr_title_lookups", "Lookups of titles since the last reload", ["found"], registry=self._registry
        )

    def text(self, ranker: Ranker) -> bytes:
        """All figures in the format of Prometheus."""
        if ranker.titles is not None:
            self._titles.set(len(ranker.titles))
            self._lookups.labels("yes").set(ranker.titles.hits)
            self._lookups.labels("no").set(ranker.titles.misses)
        return generate_latest(self._registry)


def _render(plain: dict[str, Any], scores: Scores) -> bytes:
    """Candidates best first, with the ids that the client sent."""
    sent = plain["candidates"]
    ids = sent["item_id"] if isinstance(sent, dict) else [row["item_id"] for row in sent]
    click, relevance = (
        np.round(x.astype(np.float64), 8).tolist() for x in (scores.click_probability, scores.relevance_probabilities)
    )
    ranked = [
        {"item_id": ids[i], "index": i, "click_probability": click[i], "relevance_probabilities": relevance[i]}
        for i in scores.ranking().tolist()
    ]
    answer = {"request_id": plain.get("request_id"), "candidates": ranked}
    if scores.explanation is not None:
        answer["explanation"] = scores.explanation
    return json.dumps(answer).encode()


def _choice(body: bytes) -> tuple[str, int]:
    """Query and user that the page sent."""
    try:
        sent = json.loads(body)
        query, user = sent["query"], int(sent["user"])
        query.encode()
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise Refused(422, 'request: expected {"query": a text, "user": an id}') from None
    return query, user


def _embedded(schema: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name != "$schema"}


_ERRORS = {
    400: "The body is not JSON.", 401: "The token is missing or wrong.", 408: "The body did not arrive in time.",
    413: "The body is too large.", 422: "A field is missing, unknown, or not what it should be.",
    503: "Too many requests, or not done in time.",
}  # fmt: skip
_ERROR = {
    "type": "object", "required": ["error"],
    "properties": {"error": {"type": "object", "required": ["message"], "properties": {
        name: {"type": "string"} for name in ("message", "field", "got", "expected")}}},
}  # fmt: skip
_ANSWER = {
    "type": "object", "required": ["request_id", "candidates"],
    "properties": {
        "request_id": {"description": "As sent."},
        "candidates": {"type": "array", "items": {
            "type": "object", "required": ["item_id", "index", "click_probability", "relevance_probabilities"],
            "properties": {
                "item_id": {"type": ["integer", "string"], "description": "As sent."},
                "index": {"type": "integer", "description": "Place among the candidates sent, from 0."},
                "click_probability": {"type": "number"},
                "relevance_probabilities": {"type": "array", "items": {"type": "number"}}}}},
        "explanation": {"type": "object", "description": "With `?explain=true`."},
    },
}  # fmt: skip
