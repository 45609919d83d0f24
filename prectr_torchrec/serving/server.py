"""`prectr serve`: an exported ranker over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import ClientDisconnect

from prectr_torchrec.serving.batcher import Expired, MicroBatcher, Overloaded
from prectr_torchrec.serving.body import Refused, read_json, read_request
from prectr_torchrec.serving.connection import BEGAN
from prectr_torchrec.serving.fields import Limits, short
from prectr_torchrec.serving.memory import freeze_objects, release_memory
from prectr_torchrec.serving.page import DemoPage, page, render
from prectr_torchrec.serving.prometheus import Metrics
from prectr_torchrec.serving.ranker import Ranker
from prectr_torchrec.serving.request import RequestSchema
from prectr_torchrec.serving.scores import Scores, as_sent

_LOG = logging.getLogger("prectr.serve")
_LARGE, _LARGE_AT_A_TIME = 2**18, 16
"""Bytes of a body from which on it is large, and how many of these are held at a time."""

_RELEASE_MEMORY = 1.0
"""Seconds after the last of them until memory goes back to the system."""


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
    limits: Limits = field(default_factory=Limits)
    """Of what a request holds."""
    token: str | None = None
    """Where set, `/v1/rank` wants `Authorization: Bearer TOKEN`."""


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
        self._reloading, self._awaited = asyncio.Lock(), False
        self.metrics = Metrics()
        self._larges = 0
        # what is large is read in a thread of its own, and scored in another, so that it keeps nobody else waiting
        self._reading = {large: ThreadPoolExecutor(1, "reading") for large in (False, True)}
        # no pages of documentation: FastAPI's bring scripts from elsewhere
        self.app = FastAPI(title="PRECTR ranker", version="1", lifespan=self._lifespan, docs_url=None, redoc_url=None)
        self._add_routes(self.app, self.ranker.schema)
        if demo is not None:
            self._add_page(self.app, DemoPage(demo))

    async def reload(self) -> None:
        """Loads the folder anew; requests in the works end with the ranker that they began with. What fails to load changes
        nothing."""
        if self._awaited:  # one that waits will load what is there then
            return
        self._awaited = True
        async with self._reloading:  # one after the other, or the slower would stay
            self._awaited = False
            try:
                self.ranker = await asyncio.to_thread(_load, self.model)
            except Exception as error:
                self.metrics.reloads.labels("failed").inc()
                _LOG.error("%s was not reloaded, the ranker in use stays: %s", self.model, error)
            else:
                await asyncio.to_thread(freeze_objects)
                self.metrics.reloads.labels("done").inc()
                _LOG.warning("%s was reloaded", self.model)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        settings = self._settings
        self._batchers = {
            large: MicroBatcher(
                capacity=settings.capacity,
                max_requests=settings.batch_requests,
                max_candidates=settings.batch_candidates,
                wait=settings.wait,
                on_batch=self.metrics.batches.observe,
            )
            for large in (False, True)
        }
        self._running = [asyncio.create_task(batcher.run()) for batcher in self._batchers.values()]
        yield
        for running in self._running:
            running.cancel()

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
            field, got = ".".join(map(str, first["loc"])), short(first["input"])
            return JSONResponse(Refused(422, f"{field}: got {got}; {first['msg']}", field=field, got=got).body, 422)

        @app.head("/healthz", include_in_schema=False)
        @app.get("/healthz")
        async def healthz() -> dict[str, str]:
            """Whether the process lives."""
            return {"status": "ok"}

        @app.head("/readyz", include_in_schema=False)
        @app.get("/readyz")
        async def readyz() -> Response:
            """Whether requests should come here."""
            ready = not any(running.done() for running in self._running)
            return JSONResponse({"status": "ready" if ready else "stopped"}, 200 if ready else 503)

        @app.head("/metrics", include_in_schema=False)
        @app.get("/metrics", response_class=PlainTextResponse)
        async def metrics() -> Response:
            """Figures for Prometheus."""
            return Response(self.metrics.text(self.ranker), media_type=CONTENT_TYPE_LATEST)

    def _add_page(self, app: FastAPI, demo: DemoPage) -> None:
        text, policy = page()
        headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}

        @app.head("/", include_in_schema=False)
        @app.get("/", response_class=HTMLResponse, include_in_schema=False)
        async def look() -> Response:
            return HTMLResponse(text, headers=headers)

        @app.get("/demo", include_in_schema=False)
        async def choices(request: Request) -> Response:
            async def answer() -> bytes:
                with self._batchers[False].admit():
                    return _json(demo.describe(self.ranker))

            return await self._guard(request, answer)

        @app.post("/demo", include_in_schema=False)
        async def rank_for_page(request: Request) -> Response:
            return await self._guard(request, lambda: self._answer_page(demo, request))

    async def _guard(self, request: Request, work: Callable[[], Awaitable[bytes]]) -> Response:
        """The answer of `work`, or why there is none."""
        began, status = time.perf_counter(), 500
        self.metrics.admitted.inc()
        try:
            self._check_token(request)
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
        except Exception:
            _LOG.exception("a request failed")
            return JSONResponse({"error": {"message": "the server failed; its log says more"}}, status)
        finally:
            self.metrics.admitted.dec()
            self.metrics.requests.labels(str(status)).inc()
            self.metrics.seconds.observe(time.perf_counter() - began)

    async def _answer(self, request: Request, explain: bool) -> bytes:
        ranker, deadline = self.ranker, self._deadline(request)
        async with self._body(request, deadline) as body:
            large = len(body) > _LARGE
            ranker, batcher = ranker.aside if large else ranker, self._batchers[large]
            with batcher.admit():
                plain, samples = await self._read_within(
                    deadline, large, read_request, ranker.schema, body, self._settings.limits
                )
                del body
                scores = await batcher.score(ranker, samples, deadline, explain=explain)
                self.metrics.candidates.inc(len(scores.item_id))
                return await asyncio.to_thread(_render, plain, as_sent(plain, samples, scores))

    async def _answer_page(self, demo: DemoPage, request: Request) -> bytes:
        ranker, deadline = self.ranker, self._deadline(request)
        async with self._body(request, deadline) as body:
            with (batcher := self._batchers[False]).admit():
                query, user = _choice(body, self._settings.limits.characters)
                samples = await self._read_within(deadline, False, demo.samples, ranker, query, user)
                scores = [await batcher.score(ranker, samples.slice(i, 1), deadline, explain=True) for i in range(2)]
                return _json(render(samples, scores, demo.past(ranker, user), demo.item_names))

    def _deadline(self, request: Request) -> float:
        """The time on the loop's clock by which the answer to a request is due."""
        began = getattr(request.state, BEGAN, None)
        return (asyncio.get_running_loop().time() if began is None else began) + self._settings.deadline

    @contextlib.asynccontextmanager
    async def _body(self, request: Request, deadline: float) -> AsyncIterator[bytes]:
        """The body of a request, which holds a place of those for large ones as long as it is used."""
        with contextlib.ExitStack() as places:
            reading = self._receive(request, places)
            try:
                body = await asyncio.wait_for(reading, deadline - asyncio.get_running_loop().time())
            except TimeoutError:
                raise Refused(408, f"the body did not arrive within {self._settings.deadline:g} s") from None
            yield body

    async def _receive(self, request: Request, places: contextlib.ExitStack) -> bytes:
        length = request.headers.get("content-length", "")
        body, most, large = bytearray(), self._settings.max_bytes, False
        if length.isdecimal() and int(length) > most:
            raise Refused(413, f"the body is larger than {most:,} bytes")
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise Refused(413, f"the body is larger than {most:,} bytes")
            if len(body) > _LARGE and not large:
                places.enter_context(self._large())
                large = True
        return bytes(body)

    @contextlib.contextmanager
    def _large(self) -> Iterator[None]:
        if self._larges >= _LARGE_AT_A_TIME:
            raise Overloaded
        self._larges += 1
        try:
            yield
        finally:
            self._larges -= 1
            if not self._larges:
                asyncio.get_running_loop().call_later(_RELEASE_MEMORY, self._reading[True].submit, release_memory)

    async def _read_within(self, deadline: float, large: bool, read: Callable[..., Any], *arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        reading = loop.run_in_executor(self._reading[large], read, *arguments)
        try:
            return await asyncio.wait_for(reading, deadline - loop.time())
        except TimeoutError:
            raise Expired from None

    def _check_token(self, request: Request) -> None:
        token = self._settings.token
        if token is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode("latin-1"), token.encode())
        if not same or scheme.lower() != "bearer":
            raise Refused(401, "send the header `Authorization: Bearer TOKEN`")


def _load(model: Path) -> Ranker:
    ranker = Ranker.load(model)
    ranker.aside  # noqa: B018 - made now, not while a client waits
    return ranker


def _render(plain: dict[str, Any], scores: Scores) -> bytes:
    """Candidates best first; the scores have the ids that the client sent."""
    if not scores.finite():
        raise Refused(500, "the model's scores of this request are no numbers")
    ids = scores.item_id.tolist()
    rounded = {name: np.round(x.astype(np.float64), 8).tolist() for name, x in scores.by_name.items()}
    ranked = [
        {"item_id": ids[i], "index": i, **{name: values[i] for name, values in rounded.items()}}
        for i in scores.ranking().tolist()
    ]
    answer = {"request_id": plain.get("request_id"), "candidates": ranked}
    if scores.explanation is not None:
        answer["explanation"] = scores.explanation
    return _json(answer)


def _json(answer: Any) -> bytes:
    return json.dumps(answer, allow_nan=False).encode()


def _choice(body: bytes, characters: int) -> tuple[str, int]:
    """Query and user that the page sent."""
    try:
        sent = read_json(body)
        query, user = sent["query"], int(sent["user"])
        query.encode()
    except (Refused, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        raise Refused(422, 'request: expected {"query": a text, "user": an id}') from None
    if len(query) > characters:
        raise Refused(422, f"query: got a text of {len(query):,} characters; expected at most {characters:,}")
    return query, user


def _embedded(schema: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name != "$schema"}


_ERRORS = {
    400: "The body is not JSON.",
    401: "The token is missing or wrong.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    422: "A field is missing, unknown, or not what it should be.",
    503: "Too many requests, or not done in time.",
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message"],
            "properties": {name: {"type": "string"} for name in ("message", "field", "got", "expected")},
        }
    },
}
_ANSWER = {
    "type": "object",
    "required": ["request_id", "candidates"],
    "properties": {
        "request_id": {"description": "As sent."},
        "candidates": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["item_id", "index", "click_probability"],
                "additionalProperties": {"type": "number", "description": "`LABEL_probability` of each label beside the click."},
                "properties": {
                    "item_id": {"type": ["integer", "string"], "description": "As sent."},
                    "index": {"type": "integer", "description": "Place among the candidates sent, from 0."},
                    "click_probability": {"type": "number"},
                    "score": {"type": "number", "description": "What ranks, of rankers with labels beside the click."},
                    "relevance_probabilities": {
                        "type": "array",
                        "items": {"type": "number"},
                        "description": "Of rankers that have a relevance tower.",
                    },
                },
            },
        },
        "explanation": {"type": "object", "description": "With `?explain=true`."},
    },
}
