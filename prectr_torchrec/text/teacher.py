"""Teachers: large models that grade pairs of query and title with a distribution over the K relevance levels.

Two kinds, both in Hugging Face layout: a causal language model, asked for the level in a prompt, and a sequence classifier with
K labels (a cross-encoder). `load_teacher` tells them apart by the model's configuration.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prectr_torchrec.config.base import Section
from prectr_torchrec.config.run import validate_section
from prectr_torchrec.modules import from_folder, max_tokens
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.system.plain_files import read_yaml
from prectr_torchrec.text.batches import pad_batch, to_device, token_batches

PROMPT = Path(__file__).with_name("prompt.yaml")
CLASSIFIERS = ("ForSequenceClassification",)
CAUSAL = ("ForCausalLM", "LMHeadModel")


MIN_LENGTH = 8
"""Tokens of a pair, or of each text in a prompt, below which nothing is graded."""


class Prompt(Section):
    user: str
    """The question, with `{query}` and `{title}` in it."""
    answers: list[str] = Field(min_length=2)
    """One token each, from the lowest level to the highest."""
    template_options: dict[str, Any] = Field(default_factory=dict)
    """Further variables of the tokenizer's chat template."""


class TeacherOptions(Section):
    temperature: float = Field(1.0, gt=0)
    """Above 1 makes the distributions flatter."""
    max_length: int = Field(128, ge=MIN_LENGTH)
    """Tokens kept of a pair (sequence classifier), or of each of the two texts in a prompt (causal model)."""
    max_tokens: int | None = Field(None, ge=1)
    """Tokens of a batch, padding included; null: 32,768 on a GPU, 2,048 on a CPU."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the weights; `auto`: bf16 on a GPU, fp32 on a CPU."""
    device_map: str | None = None
    """As of Hugging Face, for a model that needs several GPUs (`auto`, `balanced`, ...); null: each rank's own device."""


@dataclass(frozen=True)
class Graded:
    probabilities: NDArray[np.float32]
    """(N, K)."""
    hidden: NDArray[np.float16] | None
    """(N, D) pooled hidden states, where asked for."""


class Teacher(ABC):
    """Grades pairs in batches of like length; the batches, and so every bit of the result, depend on the pairs given alone.

    Args:
        model: in evaluation mode, on its device or devices.
        tokenizer: its tokenizer.
        options: batching and temperature.
    """

    left = False
    """Whether padding goes in front."""
    padding: int
    """Token id that fills up a batch; masked."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: TeacherOptions) -> None:
        self.model, self.tokenizer, self.options = model, tokenizer, options
        self.hidden_size: int = model.config.get_text_config().hidden_size
        self.accepted = accepted_inputs(model)

    def grade(self, queries: Sequence[str], titles: Sequence[str], *, hidden: bool = False) -> Graded:
        """Grades N >= 1 pairs.

        Args:
            queries: N texts.
            titles: N texts.
            hidden: whether to return pooled hidden states too.
        """
        return self.grade_tokens(self.tokenize(queries, titles), hidden=hidden)

    @torch.inference_mode()
    def grade_tokens(self, inputs: dict[str, list[list[int]]], *, hidden: bool = False) -> Graded:
        """`grade` of what `tokenize` gave, which may be called in another thread meanwhile."""
        lengths = [len(ids) for ids in inputs["input_ids"]]
        max_tokens = self.options.max_tokens or (32_768 if self.model.device.type == "cuda" else 2_048)
        order, probabilities, states = [], [], []
        for rows in token_batches(lengths, max_tokens):
            batch = pad_batch(inputs, rows, self.padding, left=self.left)
            if lengths[rows[0]] == lengths[rows[-1]]:  # no padding, and none to be looked for
                batch.pop("attention_mask", None)
            batch = {name: to_device(values, self.model.device) for name, values in batch.items() if name in self.accepted}
            logits, pooled = self.forward(batch, hidden)
            order.append(rows)
            probabilities.append((logits.float() / self.options.temperature).softmax(-1))
            if pooled is not None:
                states.append(pooled.half())
        back = np.argsort(np.concatenate(order))  # only now is a GPU waited for
        return Graded(torch.cat(probabilities).cpu().numpy()[back], torch.cat(states).cpu().numpy()[back] if hidden else None)

    @abstractmethod
    def tokenize(self, queries: Sequence[str], titles: Sequence[str]) -> dict[str, list[list[int]]]:
        """Name of a model input -> token values of each pair, not padded."""

    @abstractmethod
    def forward(self, batch: dict[str, Tensor], hidden: bool) -> tuple[Tensor, Tensor | None]:
        """Padded (B, W) inputs to (B, K) logits of the levels and, where asked for, (B, D) pooled hidden states.

        A batch without padding has no `attention_mask`.
        """


class ClassifierTeacher(Teacher):
    """A sequence classifier that reads query and title as a pair; label k is level k + 1.

    The pooled hidden state is the mean of the last hidden states over the tokens.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: TeacherOptions) -> None:
        super().__init__(model, tokenizer, options)
        self.padding = settle_padding(model, tokenizer)
        self.max_length = kept_tokens(model, options.max_length)

    def tokenize(self, queries: Sequence[str], titles: Sequence[str]) -> dict[str, list[list[int]]]:
        return tokenize_pairs(self.tokenizer, queries, titles, self.max_length)

    def forward(self, batch: dict[str, Tensor], hidden: bool) -> tuple[Tensor, Tensor | None]:
        output = self.model(**batch, output_hidden_states=hidden)
        if not hidden:
            return output.logits, None
        states = output.hidden_states[-1].float()  # (B, W, D)
        if "attention_mask" not in batch:
            return output.logits, states.mean(1)
        mask = batch["attention_mask"].unsqueeze(-1)  # (B, W, 1)
        return output.logits, (states * mask).sum(1) / mask.sum(1)


class CausalTeacher(Teacher):
    """A causal language model: the softmax over the answers' tokens alone of its prediction after the prompt.

    The pooled hidden state is the last layer's at the last token, from which the answer is predicted.

    Args:
        model, tokenizer, options: as of `Teacher`.
        prompt: the question and the K answers.

    Raises:
        ValueError: an answer is not a single token after the prompt.
    """

    left = True
    padding = 0  # any token of the vocabulary, to which a tokenizer's own padding need not belong

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: TeacherOptions, prompt: Prompt
    ) -> None:
        super().__init__(model, tokenizer, options)
        self.prompt = prompt
        self.question = self._question()
        self.positions = max_tokens(model)
        self.max_length = self._room()
        self.answers = torch.tensor(self._answer_tokens(), device=model.device)  # (K,)

    def tokenize(self, queries: Sequence[str], titles: Sequence[str]) -> dict[str, list[list[int]]]:
        inputs = self._ask(queries, titles, self.max_length)
        for row, ids in enumerate(inputs["input_ids"]):
            limit = self.max_length
            while self.positions is not None and len(ids) > self.positions:  # a text may have more tokens amid others
                limit -= 1
                shorter = self._ask([queries[row]], [titles[row]], limit)
                ids = shorter["input_ids"][0]
                for name, values in shorter.items():
                    inputs[name][row] = values[0]
        return inputs

    def forward(self, batch: dict[str, Tensor], hidden: bool) -> tuple[Tensor, Tensor | None]:
        extra: dict[str, Any] = {}
        if "position_ids" in self.accepted and "attention_mask" in batch:  # or they would count the padding in front
            extra["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        if "logits_to_keep" in self.accepted:  # or the whole vocabulary is scored at every token
            extra["logits_to_keep"] = 1
        output = self.model(**batch, **extra, use_cache=False, output_hidden_states=hidden)
        logits = output.logits[:, -1].index_select(1, self.answers.to(output.logits.device))  # (B, K)
        return logits, output.hidden_states[-1][:, -1] if hidden else None

    def _ask(self, queries: Sequence[str], titles: Sequence[str], limit: int) -> dict[str, list[list[int]]]:
        pairs = zip(self._cut(queries, limit), self._cut(titles, limit), strict=True)
        return self._encode([self._fill(query, title) for query, title in pairs])

    def _room(self) -> int:
        """Tokens of each text that the model has positions for beside the prompt's own.

        Raises:
            ValueError: there are next to none.
        """
        if self.positions is None:
            return self.options.max_length
        asked = len(self._encode([self._fill("", "")])["input_ids"][0])
        if (room := (self.positions - asked) // 2) < MIN_LENGTH:
            raise ValueError(
                f"the prompt alone takes {asked} of the {self.positions} tokens that the teacher reads; write a shorter one"
            )
        if room < self.options.max_length:
            _say_cut(self.positions, f"each text is cut after {room} tokens", self.options.max_length)
        return min(room, self.options.max_length)

    def _question(self) -> str:
        """The prompt with its places still open, inside the chat template where there is one."""
        if not self.tokenizer.chat_template:
            return self.prompt.user
        message = [{"role": "user", "content": self.prompt.user}]
        options = {"tokenize": False, "add_generation_prompt": True, **self.prompt.template_options}
        return str(self.tokenizer.apply_chat_template(message, **options))

    def _fill(self, query: str, title: str) -> str:
        texts = {"{query}": query, "{title}": title}  # in one pass: a query may hold the word {title}
        return re.sub("{query}|{title}", lambda place: texts[place[0]], self.question)

    def _encode(self, texts: list[str]) -> dict[str, list[list[int]]]:
        """A chat template writes the special tokens itself."""
        return dict(self.tokenizer(texts, add_special_tokens=not self.tokenizer.chat_template))

    def _cut(self, texts: Sequence[str], limit: int) -> list[str]:
        """The texts, cut behind the last token that is kept; a text has at most as many tokens as bytes."""
        cut = list(texts)
        long = [place for place, text in enumerate(cut) if len(text.encode()) > limit]
        if long:
            tokens = self.tokenizer([cut[p] for p in long], add_special_tokens=False, return_offsets_mapping=True)
            for place, ends in zip(long, tokens["offset_mapping"], strict=True):
                cut[place] = cut[place][: ends[:limit][-1][1]] if ends else cut[place]
        return cut

    def _answer_tokens(self) -> list[int]:
        text = self._fill("query", "title")
        asked = self._encode([text])["input_ids"][0]
        tokens = []
        for answer in self.prompt.answers:
            answered = self._encode([text + answer])["input_ids"][0]
            if answered[:-1] != asked:
                pieces = self.tokenizer.convert_ids_to_tokens(answered[-4:])
                raise ValueError(
                    f"answer {answer!r} is not one token behind the prompt: with it, the prompt ends in {pieces}; "
                    "choose other `answers`, or another end of `user`, in the prompt file"
                )
            tokens.append(answered[-1])
        if len(set(tokens)) < len(tokens):
            raise ValueError(f"answers {self.prompt.answers} are not all different tokens; choose others in the prompt file")
        return tokens


def load_prompt(path: Path = PROMPT) -> Prompt:
    """Reads a prompt file.

    Raises:
        ConfigError: no such file, not YAML, an unknown key, or a question without the texts; names file and key.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such prompt file")
    prompt = validate_section(Prompt, read_yaml(path), str(path))
    for name in ("{query}", "{title}"):
        if name not in prompt.user:
            raise ConfigError(f"{path}: user: {name} is missing; the question must say where the texts go")
    return prompt


def load_teacher(
    path: Path,
    levels: int,
    *,
    options: TeacherOptions | None = None,
    prompt: Prompt | None = None,
    device: torch.device | None = None,
) -> Teacher:
    """Loads the teacher of a folder: a causal language model or a sequence classifier, by its configuration's `architectures`.

    Args:
        path: folder in Hugging Face layout, with tokenizer.
        levels: K.
        options: how to batch and run it.
        prompt: for a causal model; None: the one shipped.
        device: where; None: the CPU.

    Raises:
        ValueError: neither kind, or another number of levels.
    """
    options, device = options or TeacherOptions(), device or torch.device("cpu")
    check_model_folder(path)
    names = from_folder(AutoConfig, path).architectures or []
    classifies, generates = (any(name.endswith(kind) for name in names) for kind in (CLASSIFIERS, CAUSAL))
    if not (classifies or generates):
        raise ValueError(
            f"{path}: architectures {names} is neither a causal language model nor a sequence classifier; "
            "`prectr teacher-tune` makes the latter of any encoder"
        )
    tokenizer = from_folder(AutoTokenizer, path)
    bf16 = options.precision == "bf16" or (options.precision == "auto" and device.type == "cuda")
    auto = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    placed = options.device_map or {"": device}
    model = from_folder(auto, path, dtype=torch.bfloat16 if bf16 else torch.float32, device_map=placed).eval()
    if classifies:
        if model.config.num_labels != levels:
            raise ValueError(f"{path}: the classifier has {model.config.num_labels} labels, the pairs {levels} levels")
        return ClassifierTeacher(model, tokenizer, options)
    prompt = prompt or load_prompt()
    if len(prompt.answers) != levels:
        raise ValueError(f"the prompt has {len(prompt.answers)} answers, the pairs {levels} levels; write a prompt file for them")
    return CausalTeacher(model, tokenizer, options, prompt)


def check_model_folder(path: Path) -> None:
    """Raises ValueError where there is no model, before Hugging Face takes the path for a name on its hub."""
    if not (path / "config.json").is_file():
        raise ValueError(f"{path}: no model here (config.json is missing); a teacher is a folder in Hugging Face layout")


def accepted_inputs(model: PreTrainedModel) -> set[str]:
    """The inputs of a tokenizer that a model takes: token types only where it has more than one."""
    accepted = set(inspect.signature(model.forward).parameters)
    return accepted if getattr(model.config, "type_vocab_size", 2) > 1 else accepted - {"token_type_ids"}


def kept_tokens(model: PreTrainedModel, max_length: int) -> int:
    """Tokens kept of a pair: `max_length`, or as many as the model has positions for, which is said.

    Raises:
        ValueError: there are next to none.
    """
    limit = max_tokens(model)
    if limit is None or limit >= max_length:
        return max_length
    if limit < MIN_LENGTH:
        raise ValueError(f"{model.config._name_or_path}: the model reads {limit} tokens, too few for a pair")
    _say_cut(limit, "pairs are cut there", max_length)
    return limit


def _say_cut(positions: int, what: str, max_length: int) -> None:
    if os.environ.get("RANK", "0") == "0":  # the others would say the same
        print(f"note: the teacher reads {positions} tokens at most: {what}, not after {max_length} (max_length)", file=sys.stderr)


def settle_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills up a classifier's batches, set in its configuration too: decoders find a text's end by it."""
    known = (model.config.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
    model.config.pad_token_id = next((token for token in known if token is not None and token >= 0), 0)
    return int(model.config.pad_token_id)


def tokenize_pairs(
    tokenizer: PreTrainedTokenizerBase, queries: Sequence[str], titles: Sequence[str], max_length: int
) -> dict[str, list[list[int]]]:
    """Name of a model input -> token values of each pair of N >= 0, cut to `max_length` tokens, not padded."""
    if not len(queries):
        return {"input_ids": []}
    return dict(tokenizer(list(queries), list(titles), truncation="longest_first", max_length=max_length))
