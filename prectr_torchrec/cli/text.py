"""`prectr teacher-tune`, `teach` and `distill`: from pairs to a text encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prectr_torchrec.cli.options import Config, Nproc, Overrides
from prectr_torchrec.system.locks import check_free, check_job_free

app = typer.Typer()

Pairs = Annotated[Path, typer.Option(help="File of pairs.")]


@app.command()
def teacher_tune(
    teacher: Annotated[Path, typer.Option(help="Folder of a Hugging Face encoder.")],
    pairs: Annotated[Path, typer.Option(help="File of pairs, some of them graded.")],
    out: Annotated[Path, typer.Option(help="Folder for the tuned classifier; an unfinished tuning there goes on.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one setting, such as lr=5e-5; may be repeated."),
    ] = None,
) -> None:
    """Fine-tune a sequence classifier on the grades of pairs, to be their teacher."""
    check_free(out)
    from prectr_torchrec.cli.preflight import check_pairs

    check_pairs(pairs)
    from prectr_torchrec.text.tune import tune_teacher, tuning_config

    result = tune_teacher(teacher, pairs, out, tuning_config(overrides or ()))
    typer.echo(f"{out}: validation loss {result['validation_loss']:.4f} at step {result['best_step']} of {result['steps']}")


@app.command()
def teach(
    teacher: Annotated[Path, typer.Option(help="Folder of a Hugging Face causal language model or sequence classifier.")],
    pairs: Pairs,
    out: Annotated[Path, typer.Option(help="Folder for the soft grades; an unfinished job there is finished.")],
    hidden: Annotated[bool, typer.Option("--hidden", help="Write pooled hidden states too.")] = False,
    prompt: Annotated[Path | None, typer.Option(help="Prompt file of a causal model; default: the one shipped.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Above 1 makes the soft grades flatter.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens kept of a pair, or of each text in a prompt.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens of a batch, padding included.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16; auto: bf16 on a GPU.")] = None,
    device_map: Annotated[str | None, typer.Option(help="As of Hugging Face, for a model that needs several GPUs.")] = None,
    nproc: Nproc = 1,
) -> None:
    """Grade pairs softly with a teacher, for a student to learn from or to fill missing grades."""
    check_job_free(out)
    from prectr_torchrec.cli.preflight import check_pairs
    from prectr_torchrec.distributed.launch import launch

    check_pairs(pairs)
    optional = {
        "--prompt": prompt,
        "--temperature": temperature,
        "--max-length": max_length,
        "--max-tokens": max_tokens,
        "--precision": precision,
        "--device-map": device_map,
    }
    given = [word for flag, value in optional.items() if value is not None for word in (flag, str(value))]
    given += ["--hidden"] if hidden else []
    launch("teach", ["--teacher", str(teacher), "--pairs", str(pairs), "--out", str(out), *given], nproc, output=out)


@app.command()
def distill(
    config: Config,
    pairs: Pairs,
    out: Annotated[Path, typer.Option(help="Result folder, to be `text.path`; an unfinished one is gone on with.")],
    teacher_scores: Annotated[
        list[Path] | None, typer.Option(help="Folder of a teacher's scores; several are averaged, none: grades alone.")
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of the tokenizer; default: one trained on the pairs.")] = None,
    nproc: Nproc = 1,
    overrides: Overrides = None,
) -> None:
    """Distil a small text encoder and relevance tower from a teacher's scores and from grades."""
    check_job_free(out)
    from prectr_torchrec.cli.preflight import check_pairs
    from prectr_torchrec.config.files import load_config
    from prectr_torchrec.config.trackers import check_trackers
    from prectr_torchrec.distributed.launch import launch

    check_trackers(load_config(config, overrides or ()).trackers)
    check_pairs(pairs)
    words = [word for folder in teacher_scores or () for word in ("--teacher-scores", str(folder))]
    words += ["--tokenizer", str(tokenizer)] if tokenizer is not None else []
    words += [word for override in overrides or () for word in ("--set", override)]
    launch("distill", ["--config", config, "--pairs", str(pairs), "--out", str(out), *words], nproc, output=out)
