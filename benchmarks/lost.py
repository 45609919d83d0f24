"""Where a ranker's score falls short of a simulated log's oracle, and how much of that the log's clicks could tell.

    python benchmarks/lost.py --log DIR --predictions predictions-candidates.parquet --tokenizer DIR

`--log` is a folder with `raw/`, `meta.json` and `eval/oracle.parquet`, which has `relevance`, `user_strictness`,
`query_strictness`, `taste` and `quality`. The first table adds each true part of the oracle's logit to the score, with the weight
that suits the true probability best. The second adds what training clicks tell of it: how far the clicks of a user, a query or
an item lie above the rate of their level and position, and how they rise with the grade, as posterior means of a line. The third
takes titles and brands as bags of vectors, users as Gaussian, and clicks as linear in their product: `known` fits the vectors to
the oracle's taste itself, so that only users are inferred from the training clicks; `learned` fits them to these clicks too, by
expectation maximisation with a precision for each token. A measurement; nothing of it enters a model.
pandas comes with the extra `bench`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import torch
from common import describe, logistic
from torch import Tensor
from torch.nn import functional as F

from prectr_torchrec.data.tokenizer import load_tokenizer
from prectr_torchrec.metrics import auc

DIM, TITLE, ROUNDS = 6, 24, 50
PRECISION, BRAND, SHAPE = 40.0, 3.0, 3.0
"""Of a token's vector at the start; weight of the brand beside the title's tokens; of the prior on a token's own precision."""
LINE = (4.0, 1.0)
"""Prior precisions of a line's level and slope."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--predictions", type=Path, required=True, help="of all candidates of the oracle")
    parser.add_argument("--tokenizer", type=Path, required=True)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print(describe("torch"))
    oracle = duckdb.sql(
        f"""SELECT o.*, p.user_id, p.query_id, p.click_probability, p.taste AS taste_score
        FROM '{arguments.log}/eval/oracle.parquet' o JOIN '{arguments.predictions}' p USING (request_id, item_id)"""
    ).df()
    decompose(oracle)
    clicks = past_clicks(
        arguments.log, json.loads((arguments.log / "meta.json").read_text(encoding="utf-8"))["test_from_timestamp"]
    )
    learned = learned_from_clicks(oracle, clicks)
    taste_limits(oracle, Items(arguments.log, arguments.tokenizer), clicks, learned)


def better_with(oracle: pd.DataFrame, columns: Sequence[Any]) -> str:
    """Expected AUC, shown and all, of the score with columns added, each with its best weight."""
    shown, truth = oracle.exposed.to_numpy(bool), oracle.probability.to_numpy()
    score = oracle.click_probability.clip(1e-6, 1 - 1e-6)
    design = np.stack([np.ones(len(oracle)), np.log(score / (1 - score)), *columns], axis=1)
    found = []
    for rows in (shown, np.ones_like(shown)):
        better = design[rows] @ logistic(design[rows], truth[rows])
        found.append(f"{auc(better, truth[rows]):.4f}")
    return "  ".join(found)


def decompose(oracle: pd.DataFrame) -> None:
    """Each true part added."""
    relevance = oracle.relevance - 2
    parts = {
        "nothing": [],
        "relevance": [relevance, relevance**2],
        "user strictness": [oracle.user_strictness * relevance],
        "query strictness": [oracle.query_strictness * relevance],
        "taste": [oracle.taste],
        "quality": [oracle.quality],
    }
    print(f"{'added':18} shown   all")
    for name, columns in parts.items():
        print(f"{name:18} {better_with(oracle, columns)}")


def learned_from_clicks(oracle: pd.DataFrame, clicks: pd.DataFrame) -> list[Any]:
    """What past clicks tell of users, queries and items, as columns; prints what each adds to the score."""
    relevance, columns = oracle.relevance - 2, []
    print(f"{'told by clicks':18} shown   all     correlation with the truth")
    for truth, key in (("user_strictness", "user_id"), ("query_strictness", "query_id"), ("quality", "item_id")):
        lines = posterior_lines(clicks, key)
        level, slope = (oracle[key].map(lines[column]).fillna(0).to_numpy() for column in lines)
        learned, added = (level, [level]) if truth == "quality" else (slope, [level, slope * relevance])
        seen = oracle.drop_duplicates(key).index
        correlation = np.corrcoef(learned[seen], oracle[truth].iloc[seen])[0, 1]
        print(f"{truth.replace('_', ' '):18} {better_with(oracle, added)}  {correlation:.3f}")
        columns += added
    print(f"{'all three':18} {better_with(oracle, columns)}")
    return columns


def posterior_lines(clicks: pd.DataFrame, key: str) -> pd.DataFrame:
    """Level and slope over the grade of each key's surplus: posterior means, with a Gaussian prior of precisions LINE."""
    grade = clicks.grade.fillna(0)
    sums = (
        pd.DataFrame(
            {
                "level": clicks.surplus,
                "slope": clicks.surplus * grade,
                "weight": clicks.information,
                "cross": clicks.information * grade,
                "square": clicks.information * grade**2,
            }
        )
        .groupby(clicks[key])
        .sum()
    )
    precision = np.stack([sums.weight + LINE[0], sums.cross, sums.cross, sums.square + LINE[1]], axis=1).reshape(-1, 2, 2)
    means = np.linalg.solve(precision, sums[["level", "slope"]].to_numpy()[..., None])[..., 0]
    return pd.DataFrame(means, index=sums.index, columns=["level", "slope"])


class Items:
    """Items as bags of title tokens and the brand."""

    def __init__(self, log: Path, tokenizer: Path) -> None:
        table = duckdb.sql(f"SELECT item_id, title, brand_id FROM '{log}/raw/items.parquet'").df()
        vocabulary = load_tokenizer(tokenizer)
        tokens = vocabulary(table.title.tolist(), add_special_tokens=False)["input_ids"]
        rows = [list(dict.fromkeys(ids))[:TITLE] for ids in tokens]
        brand = pd.factorize(table.brand_id)[0]
        self.count = len(vocabulary) + int(brand.max()) + 1
        self.tokens = torch.tensor(
            [[*ids, *[0] * (TITLE - len(ids)), len(vocabulary) + b] for ids, b in zip(rows, brand, strict=True)]
        )
        self.weight = (self.tokens != 0).float() / torch.tensor([max(len(ids), 1) for ids in rows]).sqrt().unsqueeze(1)
        self.weight[:, -1] *= BRAND
        self.row = dict(zip(table.item_id, range(len(table)), strict=True))

    def vectors(self, table: Tensor, rows: Tensor) -> Tensor:
        return F.embedding_bag(self.tokens[rows], table, per_sample_weights=self.weight[rows], mode="sum")

    def back(self, gradient: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
        """Sums of (items, D) over the tokens that the items have, (count, D)."""
        spread = gradient.unsqueeze(1) * weight.unsqueeze(2)
        return torch.zeros(self.count, gradient.shape[1]).index_add_(0, self.tokens[rows].reshape(-1), spread.flatten(0, 1))


def past_clicks(log: Path, before: int) -> pd.DataFrame:
    """Keys, grade less 2 (NaN: none), surplus of the click over its level's and position's rate, information."""
    return duckdb.sql(
        f"""WITH seen AS (SELECT i.*, j.relevance - 2 AS grade,
            CASE WHEN j.relevance IS NULL THEN 0 ELSE ceil(j.relevance * 2) END AS level
            FROM '{log}/raw/impressions.parquet' i LEFT JOIN '{log}/raw/judgments.parquet' j USING (query_id, item_id)
            WHERE timestamp < {before}),
        rates AS (SELECT level, position, avg(click) AS rate FROM seen GROUP BY ALL)
        SELECT user_id, query_id, item_id, grade, click - rate AS surplus, rate * (1 - rate) AS information
        FROM seen JOIN rates USING (level, position)"""
    ).df()


def taste_limits(oracle: pd.DataFrame, items: Items, clicks: pd.DataFrame, by_clicks: list[Any]) -> None:
    """Correlation of the inferred taste with the true one; `by_clicks`: further columns for the score."""
    users = {user: row for row, user in enumerate(pd.unique(pd.concat([clicks.user_id, oracle.user_id])))}
    user, item, target = (
        torch.tensor(oracle[c].map(m).to_numpy()) for c, m in (("user_id", users), ("item_id", items.row), ("taste", lambda t: t))
    )
    past = Past(items, clicks, users)
    seen = torch.tensor(oracle.user_id.map(clicks.user_id.value_counts()).fillna(0).to_numpy())
    known, mean, covariance = fit_to_truth(items, user, item, target.float(), len(users))
    learned = learn(items, past)
    identity = torch.eye(DIM)
    print(f"{'item vectors':18} correlation with the true taste: all, users of 1-19, 20-99, 100+ past impressions")
    for name, table, prior in (
        ("known", known, (mean, torch.linalg.inv(covariance))),
        ("learned", learned, (torch.zeros(DIM), identity)),
    ):
        taste, _ = past.posterior(items.vectors(table, past.rows), *prior)
        found = (taste[user] * items.vectors(table, item)).sum(1)
        if name == "learned":
            columns = [oracle.taste_score, found.numpy()]  # the first may be weighed out
            print(f"{'learned taste':18} {better_with(oracle, columns)}, in place of the model's")
            print(f"{'and all three':18} {better_with(oracle, [*columns, *by_clicks])}")
        groups = [seen >= 0] + [(seen >= low) & (seen <= high) for low, high in ((1, 19), (20, 99), (100, 1e9))]
        print(f"{name:18} " + "  ".join(f"{np.corrcoef(found[g], target[g])[0, 1]:.3f}" for g in groups))


class Past:
    """Training clicks, and the users' posteriors given item vectors."""

    def __init__(self, items: Items, clicks: pd.DataFrame, users: dict[int, int]) -> None:
        rows, inverse = np.unique(clicks.item_id.map(items.row), return_inverse=True)
        self.rows, self.item = torch.tensor(rows), torch.tensor(inverse)
        self.user, self.users = torch.tensor(clicks.user_id.map(users).to_numpy()), len(users)
        self.surplus, self.information = (torch.tensor(clicks[c].to_numpy()).float() for c in ("surplus", "information"))

    def posterior(self, vectors: Tensor, mean: Tensor, precision: Tensor) -> tuple[Tensor, Tensor]:
        """Means (U, D) and covariances (U, D, D) under a Gaussian prior; vectors: of `rows`."""
        x = vectors[self.item]
        total = precision.repeat(self.users, 1, 1)
        total.index_add_(0, self.user, self.information[:, None, None] * x[:, :, None] * x[:, None, :])
        evidence = (precision @ mean).repeat(self.users, 1).index_add_(0, self.user, self.surplus[:, None] * x)
        covariance = torch.linalg.inv(total)
        return (covariance @ evidence[..., None])[..., 0], covariance


def fit_to_truth(items: Items, user: Tensor, item: Tensor, target: Tensor, users: int) -> tuple[Tensor, Tensor, Tensor]:
    """Token vectors that explain the true taste best, and mean and covariance of the users' vectors beside them."""
    table = torch.nn.Parameter(0.1 * torch.randn(items.count, DIM))
    taste = torch.nn.Parameter(0.5 * torch.randn(users, DIM))
    optimizer = torch.optim.Adam([table, taste], lr=0.02)
    for _ in range(ROUNDS // 2):
        for rows in torch.randperm(len(target)).split(1024):
            loss = ((taste[user[rows]] * items.vectors(table, item[rows])).sum(1) - target[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        fitted = torch.cat(
            [(taste[user[r]] * items.vectors(table, item[r])).sum(1) for r in torch.arange(len(target)).split(8192)]
        )
        print(f"vectors explain {1 - float((fitted - target).var() / target.var()):.3f} of the true taste's variance")
        there = taste[user.unique()]
        return table.detach(), there.mean(0), torch.cov(there.T) + 1e-3 * torch.eye(DIM)


def learn(items: Items, past: Past) -> Tensor:
    """Token vectors by expectation maximisation on past clicks: users' posteriors, then ridge regression of the tokens."""
    weight, table = items.weight[past.rows], 0.05 * torch.randn(items.count, DIM)
    precision = torch.full((items.count,), PRECISION)
    flat = items.tokens[past.rows].reshape(-1)
    for turn in range(ROUNDS):
        mean, covariance = past.posterior(items.vectors(table, past.rows), torch.zeros(DIM), torch.eye(DIM))
        second = mean[:, :, None] * mean[:, None, :] + covariance
        shape = (len(past.rows), DIM, DIM)
        gram = torch.zeros(shape).index_add_(0, past.item, past.information[:, None, None] * second[past.user])
        evidence = torch.zeros(shape[:2]).index_add_(0, past.item, past.surplus[:, None] * mean[past.user])

        def times(x: Tensor, gram: Tensor = gram, precision: Tensor = precision) -> Tensor:
            return items.back((gram @ items.vectors(x, past.rows)[..., None])[..., 0], past.rows, weight) + precision[:, None] * x

        table = conjugate_gradient(times, items.back(evidence, past.rows, weight), table)
        if turn >= ROUNDS // 5:
            curvature = gram.diagonal(dim1=1, dim2=2).mean(1)
            of_token = torch.zeros(items.count).index_add_(0, flat, (curvature[:, None] * weight.square()).reshape(-1))
            spread = table.square().sum(1) + DIM / (of_token + precision)
            precision = (DIM + 2 * SHAPE) / (spread + 2 * SHAPE / PRECISION)
    return table


def conjugate_gradient(times, target: Tensor, x: Tensor, steps: int = 12) -> Tensor:  # type: ignore[no-untyped-def]
    residual = target - times(x)
    direction, size = residual.clone(), residual.square().sum()
    for _ in range(steps):
        image = times(direction)
        step = size / (direction * image).sum()
        x, residual = x + step * direction, residual - step * image
        new = residual.square().sum()
        direction, size = residual + new / size * direction, new
    return x


if __name__ == "__main__":
    main()
