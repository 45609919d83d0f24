"""The configuration of training: stages, rates, checkpoints, and what is taken over from other runs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from prectr_torchrec.config.base import LocalPath, Section


class StageConfig(Section):
    split: Literal["judgments", "train"] = "train"
    """`judgments`: graded pairs without users or clicks, for the relevance tower and the encoder alone."""
    epochs: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Passes over the split; `auto`: from the number of its requests, 1 to 4, two at 50,000."""
    lr: float = Field(3e-3, gt=0)
    """Peak rate of AdamW for the towers."""
    encoder_lr: float = Field(3e-4, gt=0)
    """Peak rate of AdamW for the text encoder."""
    relevance_lr: float | None = Field(None, gt=0)
    """Of the rest of the relevance side; null: `lr`. One that starts from a student is best moved as slowly as its encoder."""
    offset_lr: float | None = Field(None, gt=0)
    """Of what has to travel further than a weight does: examination by position, base rates by level, priors. AdamW moves each
    parameter by about its rate a step, whatever the gradient; null: ten times `lr`. No weight decay."""
    table_lr: float = Field(0.03, gt=0)
    """Peak rate of row-wise Adagrad for the tables."""
    table_decay: bool = False
    """Lower the tables' rate linearly to 0 over the stage, as AdamW's."""
    warmup_steps: int = Field(50, ge=0)
    reset_tables: bool = False
    """Re-initialise the sparse tables before each epoch but the first; dense parts go on."""


class InitFromConfig(Section):
    run: LocalPath
    """Run directory to take weights from."""
    checkpoint: str = "best"
    """`best`, `last`, or the name of one that is kept."""
    include: list[str] = ["*"]
    """Patterns of what is taken, such as `tables.item*` or `relevance.*`."""
    exclude: list[str] = []
    """Patterns of what of it is not."""


class TrainConfig(Section):
    seed: int = 1
    stages: list[StageConfig] = [StageConfig(split="judgments", epochs=1), StageConfig()]
    reference_requests: int | None = Field(32, ge=1)
    """Requests of a step, of all ranks together, that the rates of AdamW are stated for: with n times as many they are sqrt(n)
    times as high. null: the rates as they are, whatever the ranks."""
    hidden_grades: float = Field(0.0, ge=0, lt=1)
    """Share of the graded training candidates, drawn anew in each step, that the ranker sees as of a request without any grade,
    and half of those without one, so that it learns what to do there; the losses see all grades."""
    weight_decay: float = Field(0.01, ge=0)
    taste_weight_decay: float = Field(3.0, ge=0)
    """Of the title tokens' taste vectors: many, each with few clicks to learn from."""
    clip_norm: float = Field(1.0, gt=0)
    log_every: int = Field(20, ge=1)
    """Steps between two lines of metrics.jsonl."""
    checkpoint_every: int = Field(500, ge=1)
    """Steps between two checkpoints; one is also saved after each epoch."""
    keep_checkpoints: int = Field(2, ge=1)
    """How many of the latest are kept, beside the best: if the files of the last one are found broken, the run goes on from the
    one before it."""
    async_checkpoints: bool = False
    """Write checkpoints while training goes on, from a copy of each rank's tables in host memory, which must have room for it."""
    validation: bool = True
    """Measure the validation split after each epoch; its best NE marks the best checkpoint."""
    compile: bool = False
    """Run the towers through `torch.compile`, which needs a C++ compiler; weights, names and exports are the same either way."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    timeout: float = Field(600, gt=0)
    """Seconds that a rank waits for the others in one collective operation; then the job fails."""
    reader_timeout: float = Field(300, gt=0)
    """Seconds that a rank waits for its next batch; then the job fails and names the file that was being read."""
    on_bad_loss: Literal["stop", "skip"] = "stop"
    """What follows a loss that is NaN, infinite or above `max_loss` on a rank: end the job, or leave the batch out on all."""
    max_loss: float | None = Field(None, gt=0)
    """A greater loss has exploded; null: any number is good."""
    max_skipped: int = Field(10, ge=0)
    """Bad batches in a row that `skip` leaves out before it ends the job."""
    init_from: InitFromConfig | None = None
    """Start from the weights of another run, all or some of them."""
    freeze: list[str] = []
    """Patterns of tables and tower parameters that stay as they are, such as `tables.item` or `relevance.*`."""

    @model_validator(mode="after")
    def _the_reader_gives_up_first(self) -> TrainConfig:
        if self.reader_timeout >= self.timeout:
            raise ValueError(
                f"reader_timeout {self.reader_timeout:g} must be below timeout {self.timeout:g}: else the ranks that wait "
                "for a hung reader end the job before it is named"
            )
        return self
