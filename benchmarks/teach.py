"""Pairs a second of a teacher: of a trained one on one core, or of a causal language model of random weights on a GPU.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/teach.py --teacher DIR [--pairs FILE]     # one core
    python benchmarks/teach.py --shape 0.5b 1.5b 7b [--pairs FILE]                      # where there is a GPU

Without `--pairs` the pairs are those of a simulated log. For a shape it also tells the share of the card's matrix peak: the
floating-point operations that the pairs' own tokens need, padding left out, over those of the same time spent on large bf16
matrix products (measured here), or over the data sheet's figure where `--peak` gives it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from common import describe, median, take_turns
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.config.text import PairsConfig
from prectr_torchrec.data.pairs.pairs import PairsFile, write_pairs
from prectr_torchrec.data.simulate.simulate import simulate
from prectr_torchrec.distributed.process import quiet_libraries
from prectr_torchrec.text.teacher import PROMPT, CausalTeacher, Teacher, TeacherOptions, load_prompt, load_teacher

SHAPES = {
    "0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "1.5b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
}
"""Of the Qwen2 family."""
VOCABULARY = 151_936
CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--teacher", type=Path, help="folder of a trained teacher")
    what.add_argument("--shape", nargs="+", choices=SHAPES, help="causal models of random weights")
    parser.add_argument("--pairs", type=Path, help="file of pairs")
    parser.add_argument("--count", type=int, default=2000, help="pairs of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, nargs="+", default=[2048, 8192], help="tokens of a batch, to compare")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", type=float, help="bf16 Tflop/s of the card's data sheet")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    quiet_libraries()
    print(describe("torch", "transformers"))
    with tempfile.TemporaryDirectory() as scratch:
        queries, titles = read_texts(arguments.pairs or simulated_pairs(Path(scratch)), arguments.count)
    if arguments.teacher:
        compare_precisions(arguments.teacher, queries, titles, arguments.max_tokens, arguments.rounds)
    for shape in arguments.shape or ():
        measure_shape(shape, queries, titles, arguments.max_tokens, arguments.rounds, arguments.peak)


def simulated_pairs(folder: Path) -> Path:
    simulate(folder / "log", requests=2000, users=100, queries=200, items=1000)
    write_pairs(DataConfig(), PairsConfig(), folder / "log" / "raw", folder / "pairs.parquet")
    return folder / "pairs.parquet"


def read_texts(pairs: Path, count: int) -> tuple[list[str], list[str]]:
    """`count` pairs, spread evenly over the file."""
    table = PairsFile.open(pairs).read(["query", "title"])
    table = table.take(torch.linspace(0, len(table) - 1, min(count, len(table))).long().numpy())
    return table["query"].to_pylist(), table["title"].to_pylist()


def compare_precisions(folder: Path, queries: list[str], titles: list[str], max_tokens: list[int], rounds: int) -> None:
    """Rates of a trained teacher on the CPU, and what bf16 changes in its grades."""
    levels = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("id2label", range(len(load_prompt().answers)))
    teachers = {
        (precision, tokens): load_teacher(folder, len(levels), options=TeacherOptions(precision=precision, max_tokens=tokens))
        for precision in ("fp32", "bf16")
        for tokens in max_tokens
    }
    parameters = sum(weights.numel() for weights in next(iter(teachers.values())).model.parameters())
    print(f"{folder.name}: {parameters / 1e6:.1f} million parameters, {len(queries):,} pairs a round")

    def work(teacher: Teacher) -> int:
        return len(teacher.grade(queries, titles).probabilities)

    rates = take_turns({str(key): lambda t=teacher: work(t) for key, teacher in teachers.items()}, rounds)
    for (precision, tokens), name in zip(teachers, rates, strict=True):
        rate = median(rates[name])
        print(f"{precision}, {tokens} tokens a batch: {rate.wall:,.0f} pairs/s, {rate.cpu:,.0f} per second of processor time")
    exact, rounded = (teachers[precision, max_tokens[0]].grade(queries, titles).probabilities for precision in ("fp32", "bf16"))
    difference = abs(exact - rounded)
    print(f"bf16 against fp32: probabilities differ by {difference.mean():.4f} on average, {difference.max():.3f} at most")


def measure_shape(
    shape: str, queries: list[str], titles: list[str], max_tokens: list[int], rounds: int, peak: float | None
) -> None:
    """Rate and share of the matrix peak of a causal model of random weights."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = Qwen2Config(vocab_size=VOCABULARY, **SHAPES[shape])
    with torch.device(device):
        model = Qwen2ForCausalLM(config).to(torch.bfloat16).eval()
    tokenizer = trained_tokenizer([*queries, *titles])
    peak = peak or matrix_peak(device)
    print(f"Qwen2 shape {shape}: {model.num_parameters() / 1e9:.2f} billion parameters, peak {peak:,.0f} Tflop/s")
    for tokens in max_tokens:
        teacher = CausalTeacher(model, tokenizer, TeacherOptions(max_tokens=tokens), load_prompt())
        lengths = [len(ids) for ids in teacher.tokenize(queries, titles)["input_ids"]]
        work = sum(operations(config, length) for length in lengths)
        seconds = []
        for _ in range(rounds + 1):  # the first one warms up
            began = time.perf_counter()
            teacher.grade(queries, titles)  # ends with a copy to the host, so all is done
            seconds.append(time.perf_counter() - began)
        second = sorted(seconds[1:])[rounds // 2]
        print(
            f"{tokens} tokens a batch, {sum(lengths) / len(lengths):.0f} a pair: {len(queries) / second:,.0f} pairs/s, "
            f"{work / second / 1e12:,.0f} Tflop/s, {work / second / 1e12 / peak:.0%} of the peak"
        )


def operations(config: Qwen2Config, length: int) -> float:
    """Floating-point operations of one prompt: two a weight and token, causal attention, and one row of logits."""
    width, layers = config.hidden_size, config.num_hidden_layers
    keys = width * config.num_key_value_heads // config.num_attention_heads
    weights = layers * (2 * width * width + 2 * width * keys + 3 * width * config.intermediate_size)
    return 2 * weights * length + layers * 2 * width * length * length + 2 * width * config.vocab_size


def matrix_peak(device: torch.device, size: int = 8192) -> float:
    """Tflop/s of large bf16 matrix products, the best of some."""
    size = size if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(10):
        began = time.perf_counter()
        for _ in range(5):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 5 * 2 * size**3 / (time.perf_counter() - began) / 1e12)
    return best


def trained_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a chat template, about as fine as those of language models."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=20_000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    )
    tokenizer.train_from_iterator([*texts, PROMPT.read_text(encoding="utf-8")], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", chat_template=CHAT)


if __name__ == "__main__":
    main()
