"""An exported ranker in a process of your own."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors.torch import load_file

from prectr_torchrec.config.files import load_config
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.config.score import multiplied
from prectr_torchrec.data.columns import sample_columns
from prectr_torchrec.data.item_vectors import ITEM_VECTORS, ItemVectors
from prectr_torchrec.data.reader.assemble import BatchBuilder
from prectr_torchrec.data.reader.batch import SearchBatch
from prectr_torchrec.data.reader.epoch_plan import cut_batches
from prectr_torchrec.data.reader.flat import to_columns
from prectr_torchrec.data.tokens import open_tokenizer
from prectr_torchrec.distributed.process import quiet_tracing, quiet_transformers
from prectr_torchrec.evaluation.explanation import observe, take_apart, words_of
from prectr_torchrec.evaluation.predictions import LEVELS
from prectr_torchrec.models import build_model
from prectr_torchrec.modules import Inputs, RankingModel, TextRelevance
from prectr_torchrec.serving.digests import SEAL, check
from prectr_torchrec.serving.export import CONFIG, TABLES, TEXT, TOWERS, encoder_prefix, ids_path, read_about
from prectr_torchrec.serving.exported_tables import ServedEmbeddings, Table
from prectr_torchrec.serving.request import Request, RequestSchema
from prectr_torchrec.serving.scores import Scores, as_sent, numbers_of, to_table
from prectr_torchrec.serving.titles import TitleVectors, encoder_of_titles, load_title_vectors
from prectr_torchrec.serving.trial import check_finite, check_scores, check_table
from prectr_torchrec.system.paths import only_local

_REQUESTS, _CANDIDATES = 64, 4096
"""Of a batch, at most; one request may have more candidates."""
RESIDENT = 2**28
_TEXTS, _TEXTS_ASIDE = 200_000, 10_000
"""Whose tokens are kept, by a ranker and by the one beside it that reads large requests."""


class Ranker:
    """Scores requests with an exported ranker, as the trainer would. Safe to use from several threads, and after a fork, where
    torch has one thread then.

    Example::

        ranker = Ranker.load("exported")
        scores = ranker.score({"query": "red lamp", "candidates": [{"item_id": 7, "title": "Red oak lamp"}]})
        scores.click_probability[scores.ranking()]
    """

    def __init__(
        self,
        config: RunConfig,
        model: RankingModel,
        embeddings: ServedEmbeddings,
        text: Path,
        titles: TitleVectors | None = None,
        id_kinds: Mapping[str, str] | None = None,
        texts: int = _TEXTS,
        vectors: ItemVectors | None = None,
    ) -> None:
        """`vectors`: of items, for requests that do not bring them."""
        self.config, self.titles, self._vectors = config, titles, vectors
        self.schema = RequestSchema(config.data, id_kinds, model.labels, config.score)
        self.model, self._embeddings, self._text, self._id_kinds = model, embeddings, text, id_kinds
        self._levels = model.reported[LEVELS].width if LEVELS in model.reported else 0
        self._builder = BatchBuilder(
            config.data,
            config.text,
            config.tables,
            config.features,
            text,
            1,
            1,
            reads=config.reads(),
            texts=texts,
            vectors=vectors,
        )
        self._building = threading.Lock()
        _forks.add(self)

    @functools.cached_property
    def aside(self) -> Ranker:
        """This ranker once more for another thread, which reads its texts apart: those of a large request keep no other
        waiting. Model, tables and kept titles are shared."""
        shared = self.model, self._embeddings, self._text, self.titles, self._id_kinds
        return Ranker(self.config, *shared, _TEXTS_ASIDE, self._vectors)

    def with_vectors(self, vectors: ItemVectors) -> Ranker:
        """The same ranker with vectors of other items, such as those of the samples that it scores.

        Args:
            vectors: of the columns of the ranker's configuration.
        """
        shared = self.model, self._embeddings, self._text, self.titles, self._id_kinds
        return Ranker(self.config, *shared, _TEXTS, vectors)

    @property
    def relevance(self) -> TextRelevance:
        """The text side.

        Raises:
            ValueError: this kind of ranker has none.
        """
        if (text := self.model.text_side()) is None:
            raise ValueError(f"a ranker of kind {self.config.model.kind} has no relevance tower")
        return text

    @property
    def columns(self) -> list[str]:
        """The sample columns that scores depend on, those that a request has to have, and `request_id`."""
        required = (column.name for column in sample_columns(self.config.data) if column.required)
        read = (column.name for column in self._builder.sized(1, 1, predicted=True).columns)
        return list(dict.fromkeys(["request_id", *required, *read]))

    @classmethod
    @only_local
    def load(
        cls, path: str | Path, *, resident: int = RESIDENT, title_vectors: int = 200_000, all_digests: bool = False
    ) -> Ranker:
        """Opens a folder that `prectr export` wrote.

        Args:
            path: the folder.
            resident: bytes; tables from this size on stay on disk, are mapped into memory and read a row at a time.
            title_vectors: titles whose encoding is kept.
            all_digests: compares the digests of files from `digests.LARGE` on too, whose sizes alone are compared otherwise.

        Raises:
            FileNotFoundError: there is no exported ranker.
            ValueError: it was exported by another release, a file of it is missing or not what was written, or its numbers are
                none; names it.
        """
        quiet_tracing()
        folder = Path(path).resolve()  # a link may be pointed elsewhere while files are opened
        about = read_about(folder)
        check(folder, about["files"], all_digests=all_digests)
        config = load_config(folder / CONFIG)
        encoder = {"path": str(folder / TEXT)} if f"{TEXT}/config.json" in about["files"] else {}
        building = config.model_copy(update={"text": config.text.model_copy(update=encoder)})
        with quiet_transformers():
            model = build_model(building, folder / TEXT)
        towers = load_file(str(folder / TOWERS))
        check_finite(folder / TOWERS, towers)
        found = model.load_state_dict(towers, strict=False)
        elsewhere = encoder_prefix(model) if encoder else None
        missing = [name for name in found.missing_keys if elsewhere is None or not name.startswith(elsewhere)]
        if missing or found.unexpected_keys:
            raise ValueError(
                f"{folder / TOWERS}: these weights are not the model's of {CONFIG}; missing {missing}, unexpected "
                f"{found.unexpected_keys}; export again"
            )
        encoder_weights = {n: weight for n, weight in model.named_parameters() if elsewhere and n.startswith(elsewhere)}
        check_finite(folder / TEXT / "model.safetensors", encoder_weights)
        model.eval().requires_grad_(False)
        tables = {
            name: Table(
                folder / TABLES / f"{name}.safetensors",
                ids_path(folder, name) if table.ids == "managed" else None,
                resident,
                (table.rows, table.dim),
            )
            for name, table in config.tables.items()
        }
        for name, table in tables.items():
            check_table(folder / TABLES / f"{name}.safetensors", table.weight)
        kept = any(name.startswith(f"{ITEM_VECTORS}/") for name in about["files"])
        vectors = ItemVectors.of(config.data, folder / ITEM_VECTORS) if kept else None
        served = model, ServedEmbeddings(config.features, tables)
        ranker = cls(config, *served, folder / TEXT, None, about.get("id_kinds"), vectors=vectors)
        check_scores(ranker, folder)
        if title_vectors and (encode := encoder_of_titles(model)) is not None:
            ranker.titles = TitleVectors(encode, title_vectors)
            load_title_vectors(ranker.titles, folder, about[SEAL])
        return ranker

    @overload
    def score(self, requests: Request, *, explain: bool = ...) -> Scores: ...

    @overload
    def score(self, requests: Sequence[Request], *, explain: bool = ...) -> list[Scores]: ...

    @overload
    def score(self, requests: pa.Table) -> pa.Table: ...

    def score(
        self, requests: Request | Sequence[Request] | pa.Table, *, explain: bool = False
    ) -> Scores | list[Scores] | pa.Table:
        """Scores the candidates of one request, of many, or of a table of samples.

        Args:
            requests: a mapping as `schema.describe()` says, a sequence of them, or an Arrow table with columns of the sample
                schema, of which all but `query` and `candidate_item_id` may be missing; there null and the integer 0 are no id.
            explain: also take each request apart, of mappings; takes a pass for each.

        Returns:
            `Scores`, a list of them, or a table with a row for each candidate: request_id, item_id, click_probability; of a
            ranker with further labels LABEL_probability of each, and score; of one with a relevance tower
            relevance_probabilities.

        Raises:
            RequestError: a field is missing, unknown, or not what it should be.
        """
        if isinstance(requests, pa.Table):
            if explain:
                raise ValueError("explain: the scores of a table have no room for it; send mappings")
            samples = self.schema.from_arrow(requests)
            self.schema.check_multiplied(requests)
            return to_table(requests, self._score(samples), self._nothing())
        one = isinstance(requests, Mapping)
        plain = [requests] if isinstance(requests, Mapping) else requests
        samples = self.schema.from_plain(plain, name=None if one else "requests")
        scores = self.score_samples(samples, [explain] * len(plain))
        scores = [as_sent(request, samples.slice(i, 1), scores[i]) for i, request in enumerate(plain)]
        return scores[0] if one else scores

    def score_samples(self, samples: pa.Table, explain: Sequence[bool] = ()) -> list[Scores]:
        """Scores rows that `schema` made; `explain` says of which to take apart, of none where it is empty."""
        scores = self._score(samples)
        for i in np.flatnonzero(explain).tolist():
            scores[i] = replace(scores[i], explanation=self._explain(samples.slice(i, 1)))
        return scores

    def inputs(self, request: Request | pa.Table) -> Inputs:
        """What `model` reads of a request, a mapping, or of the requests of a table of samples.

        Raises:
            RequestError: as of `score`.
        """
        samples = (
            self.schema.from_arrow(request) if isinstance(request, pa.Table) else self.schema.from_plain([request], name=None)
        )
        return self._inputs(self._batch(samples, sum(samples["num_candidates"].to_pylist())))

    def _explain(self, sample: pa.Table) -> dict[str, Any]:
        row = sample.to_pylist()[0]
        if not row["num_candidates"]:
            return {"candidates": []}
        batch = self._batch(sample, row["num_candidates"])
        with torch.inference_mode():
            observed = observe(self.model, self._inputs(batch))
            return take_apart(self.config.data, row, observed, self.config.score, self._words)

    @functools.cached_property
    def _words(self) -> dict[int, str]:
        return words_of(open_tokenizer(self._text).get_vocab())

    def _score(self, samples: pa.Table) -> list[Scores]:
        counts = samples["num_candidates"].to_numpy()
        starts = cut_batches(counts, _REQUESTS, max(_CANDIDATES, int(counts.max(initial=0))))
        scores = []
        for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            scores += self._score_batch(samples.slice(start, stop - start))
        return scores

    def _score_batch(self, samples: pa.Table) -> list[Scores]:
        counts = samples["num_candidates"].to_numpy()
        ids = samples["request_id"].to_pylist()
        items = samples["candidate_item_id"].combine_chunks().flatten().to_numpy()
        all_of_them = self._nothing()
        if total := int(counts.sum()):
            with torch.inference_mode():
                predictions = self.model(self._inputs(self._batch(samples, total)))
            labels = {label: p.logit.sigmoid().numpy()[:total] for label, p in predictions.ranking.items()}
            relevance = predictions.parts[LEVELS].numpy()[:total] if self._levels else None
            click = labels.pop("click")
            all_of_them = replace(
                all_of_them,
                click_probability=click,
                relevance_probabilities=relevance,
                label_probabilities=labels,
                numbers=numbers_of(samples, all_of_them.numbers),
            )
        ends = np.cumsum(counts).tolist()
        places = [slice(end - count, end) for end, count in zip(ends, counts.tolist(), strict=True)]
        return [
            replace(_part(all_of_them, place), request_id=id_, item_id=items[place])
            for id_, place in zip(ids, places, strict=True)
        ]

    def _nothing(self) -> Scores:
        """Of no candidate."""
        none = np.zeros(0, np.float32)
        relevance = np.zeros((0, self._levels), np.float32) if self._levels else None
        labels = dict.fromkeys(self.model.labels[1:], none)
        numbers = dict.fromkeys(multiplied(self.config.score).values(), none)
        return Scores(0, np.zeros(0, np.int64), none, relevance, labels, self.config.score, numbers)

    def _batch(self, samples: pa.Table, candidates: int) -> SearchBatch:
        predicted = any(
            pc.any(samples[f"{f}_predicted"].combine_chunks().flatten().cast(pa.bool_())).as_py()
            for f in ("history", "peer", "candidate")
        )
        builder = self._builder.sized(samples.num_rows, candidates, predicted=predicted)
        columns = to_columns([samples], ["requests"], builder.columns, limits=builder.limits)
        with self._building:
            builder.trim([])
            rows = builder.prepare(columns)
            arrays = builder.build_arrays([(rows, 0, samples.num_rows)])
        return builder.to_batch(arrays)

    def locks(self) -> list[threading.Lock]:
        """To be held by who wants no other thread to change what is kept."""
        return [self._building, *([self.titles.lock] if self.titles is not None else [])]

    def _inputs(self, batch: SearchBatch) -> Inputs:
        inputs = batch.inputs(*self._embeddings(batch.request_features, batch.candidate_features))
        if self.titles is None:
            return inputs
        title = inputs.texts["title"]
        return replace(inputs, texts={**inputs.texts, "title": title._replace(encoded=self.titles(title.tokens))})


def _part(scores: Scores, rows: slice) -> Scores:
    """Of some of the candidates."""
    relevance = None if scores.relevance_probabilities is None else scores.relevance_probabilities[rows]
    labels = {label: values[rows] for label, values in scores.label_probabilities.items()}
    return replace(
        scores,
        click_probability=scores.click_probability[rows],
        relevance_probabilities=relevance,
        label_probabilities=labels,
        numbers={column: values[rows] for column, values in scores.numbers.items()},
    )


class _Forks:
    """A child of `fork` has none of the parent's threads: torch would wait for its own for ever, and a lock that another thread
    held would stay locked. So the locks are taken before a fork, and in the child torch works with one thread."""

    def __init__(self) -> None:
        self._rankers: weakref.WeakSet[Ranker] = weakref.WeakSet()
        self._held = contextlib.ExitStack()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._acquire, after_in_parent=self._release, after_in_child=self._alone)

    def add(self, ranker: Ranker) -> None:
        self._rankers.add(ranker)

    def _acquire(self) -> None:
        locks = {id(lock): lock for ranker in list(self._rankers) for lock in ranker.locks()}  # some share titles
        for lock in locks.values():
            self._held.enter_context(lock)

    def _release(self) -> None:
        self._held.close()

    def _alone(self) -> None:
        self._release()
        if len(self._rankers):
            torch.set_num_threads(1)


_forks = _Forks()
