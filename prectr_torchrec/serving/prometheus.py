"""Figures of a server for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from prectr_torchrec.serving.ranker import Ranker

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counts what a server does."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("prectr_requests", "Requests by status", ["status"], registry=registry)
        self.seconds = Histogram("prectr_request_seconds", "Time to answer", buckets=_SECONDS, registry=registry)
        self.batches = Histogram("prectr_batch_requests", "Requests scored together", buckets=_SIZES, registry=registry)
        self.candidates = Counter("prectr_candidates", "Candidates scored", registry=registry)
        self.admitted = Gauge("prectr_admitted_requests", "Requests in the works", registry=registry)
        self.connections = Gauge("prectr_connections", "Open connections", registry=registry)
        self.reloads = Counter("prectr_reloads", "Reloads by outcome", ["outcome"], registry=registry)
        self._titles = Gauge("prectr_titles", "Titles kept", registry=registry)
        self._lookups = Gauge("prectr_title_lookups", "Lookups of titles since the last reload", ["found"], registry=registry)

    def text(self, ranker: Ranker) -> bytes:
        """All figures in the format of Prometheus."""
        if ranker.titles is not None:
            self._titles.set(len(ranker.titles))
            self._lookups.labels("yes").set(ranker.titles.hits)
            self._lookups.labels("no").set(ranker.titles.misses)
        return generate_latest(self._registry)
