"""The configuration of the text side: pairs to learn from, encoder and interaction, distillation."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from prectr_torchrec.config.base import LocalPath, Section


class PairsConfig(Section):
    """Which pairs of query and title a teacher grades, and which of them may teach."""

    category: str = "category_id"
    """The item attribute that says what is of the same category."""
    same_category: float = Field(0.25, ge=0)
    """Unshown, ungraded pairs drawn for each query, per graded or shown pair of it, from the categories of those."""
    other_category: float = Field(0.25, ge=0)
    """The same from all other categories."""
    made_queries: float = Field(0.0, ge=0)
    """Queries made of words of titles, per query of the log; each is paired with up to four titles, in the train split."""
    mistyped: float = Field(0.0, ge=0, le=1)
    """Share of the made queries that are made once more with a typing error."""
    validation_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the queries, by a hash of their normalised text."""
    test_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the queries, by a hash of their normalised text."""
    seed: int = 1
    """Of the draws; the split does not depend on it."""
    rows_per_row_group: int = Field(16384, ge=1)
    """Pairs of a row group: what `prectr teach` grades, writes and resumes as one piece."""

    @model_validator(mode="after")
    def _some_queries_teach(self) -> PairsConfig:
        if (held_out := self.validation_fraction + self.test_fraction) >= 1:
            raise ValueError(f"validation_fraction and test_fraction, together {held_out}, leave no query to train on")
        return self

    def draws(self) -> bool:
        """Whether pairs are drawn beside those of the log."""
        return self.same_category + self.other_category + self.made_queries > 0


class TextConfig(Section):
    vocab_size: int = Field(8000, ge=300)
    query_tokens: int = Field(12, ge=2)
    """Tokens kept of a query, [CLS] included."""
    title_tokens: int = Field(24, ge=2)
    """Tokens kept of a title, [CLS] included."""
    stemmer: str | None = "english"
    """Snowball language of the match features; null: words meet only in the same form."""
    encoder: dict[str, Any] = {
        "model_type": "bert",
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": 128,
    }
    """A Hugging Face configuration to build the encoder from; vocab_size and pad_token_id come from the tokenizer. Or
    `{model_type: ngram, rows, embedding_dim, hidden, max_n}`: hashed n-grams and an MLP (BERT2DNN)."""
    interaction: Literal["dual", "late", "cross"] = "dual"
    """Query and title read apart (`dual`), apart and compared token by token (`late`), or together (`cross`). Title vectors can
    be kept with the first two; an encoder of n-grams reads texts apart."""
    late_dim: int = Field(32, ge=1)
    """Width of the token states that `late` keeps of a title."""
    path: LocalPath | None = None
    """A folder to start from: one that `prectr distill` wrote, or any Hugging Face encoder (`AutoModel.from_pretrained`). It
    replaces `encoder`, and `prectr prepare` takes its tokenizer in place of training one."""
    start: Literal["relevance", "encoder"] = "relevance"
    """What is taken from `path`: all of the relevance side that is there and fits, or the encoder alone."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the encoder's products while training, where the processor knows bf16. Weights, measures and serving are fp32."""
    frozen: bool = False
    """Keeps the encoder as it is; what stands on it is trained."""


class DistillConfig(Section):
    """The student of `prectr distill`: what it is comes from `text`, `model.match` and `model.relevance_tower`."""

    seed: int = 1
    batch_size: int = Field(128, ge=1)
    """Pairs of a step of every rank."""
    teacher_epochs: int = Field(3, ge=0)
    """Stage 1: epochs over the train pairs with teacher scores."""
    grade_epochs: int = Field(2, ge=0)
    """Stage 2: epochs over the train pairs with a grade."""
    patience: int = Field(2, ge=1)
    """A stage ends after so many epochs without gain on the validation queries; the best epoch of all is kept."""
    token_vectors: LocalPath | None = None
    """Folder of a larger Hugging Face encoder; what it makes of each word piece is where the student's token vectors start."""
    temperature: float = Field(2.0, gt=0)
    """T of the teacher's and the student's distribution in stage 1."""
    hidden_weight: float = Field(0.0, ge=0)
    """Weight of the cosine distance of a projection to the teacher's hidden state, where the teacher's scores have one."""
    teacher_weight: float = Field(0.0, ge=0)
    """Weight of the teacher's distribution in stage 2, for the graded pairs that have it."""
    lr: float = Field(1e-3, gt=0)
    """Peak rate of AdamW in stage 1."""
    grade_lr: float = Field(1e-4, gt=0)
    """In stage 2; without teacher scores `lr` holds there too."""
    warmup_steps: int = Field(200, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    log_every: int = Field(50, ge=1)
    checkpoint_every: int = Field(500, ge=1)
    """Steps between two checkpoints; one is also saved after each epoch."""
