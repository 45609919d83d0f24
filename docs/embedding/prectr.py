"""The whole of PRECTR over an embedding dict of one's own: no reader, trainer or configuration of this package."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from prectr_torchrec.modules import PRECTR, DualInteraction, PreferenceParts, TextEncoder, TextMatch, TextRelevance, search_inputs

R, P, L, K, V = 32, 4, 5, 4, 60  # requests, candidates of each, past events of each, levels, vocabulary


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        features = {"user": ["user"], "item": ["candidate_item", "history_item"]}
        tables = [EmbeddingConfig(name=n, num_embeddings=500, embedding_dim=16, feature_names=f) for n, f in features.items()]
        self.ids = EmbeddingCollection(tables=tables, device=torch.device("meta"))
        text = TextEncoder.from_config(model_type="bert", vocab_size=V, hidden_size=48, num_hidden_layers=1)
        match = TextMatch(torch.ones(V), torch.zeros(V, dtype=torch.bool))  # all words weigh alike, none is a number
        self.prectr = PRECTR(
            num_levels=K,
            request_dims={"user": 16},
            candidate_dims={"candidate_item": 16},
            statistics=["user"],
            click_tower=[32],
            history={"history_item": "candidate_item"},
            preference=PreferenceParts(own=True, incentive="per_level"),
            relevance=TextRelevance(DualInteraction(text), match, [32, 16], K),
        )

    def forward(self, ids: KeyedJaggedTensor, fields: dict[str, Tensor], click: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        out = self.prectr(search_inputs(num_levels=K, **fields), self.ids(ids), {})
        bce = -(click * out.click.log_click + (1 - click) * out.click.log_no_click).mean()
        return bce, nn.functional.nll_loss(out.relevance.log_pi, level - 1)


def batch() -> tuple[KeyedJaggedTensor, dict[str, Tensor], Tensor, Tensor]:
    """A title is relevant where it has the query's word; half of the users click what is relevant, the others what is not."""
    user, items = torch.randint(500, (R,)), torch.randint(500, (R * (P + L),))
    strict = (user % 2 * 4 - 2).float()
    query, titles = torch.randint(5, V, (R, 1)), torch.randint(5, V, (R * P, 3))
    titles[::2, :1] = query.repeat_interleave(P // 2, 0)
    level = 1 + 3 * (titles == query.repeat_interleave(P, 0)).any(1).long()
    past, shown = torch.randint(1, K + 1, (R, L)), torch.tensor([0.0, 9, 9, 9, 9]).expand(R, K + 1)
    fields = {
        "candidate_request": torch.arange(R).repeat_interleave(P),
        "query_index": torch.arange(R),
        "query_tokens": query,
        "title_index": torch.arange(R * P),
        "title_tokens": titles,
        "history_lengths": torch.full((R,), L),
        "history_level": past,
        "history_click": ((past - 2.5) * strict.unsqueeze(1) > 0).long(),
        "user_shown": shown,
        "user_clicked": torch.binomial(shown, ((torch.arange(K + 1) - 2.5) * strict.unsqueeze(1)).sigmoid()),
    }
    lengths, names = torch.tensor([1, P, L]).repeat_interleave(R), ["user", "candidate_item", "history_item"]
    click = torch.bernoulli(((level - 2.5) * strict.repeat_interleave(P)).sigmoid())
    return KeyedJaggedTensor(names, torch.cat([user, items]), lengths=lengths), fields, click, level


def main(steps: int = 80) -> tuple[nn.Module, list[float]]:
    """Trains on the ranks of the process group; returns the sharded model and the losses of this rank."""
    torch.manual_seed(dist.get_rank())
    model, by_rows = Model(), ParameterConstraints(sharding_types=["row_wise"])
    apply_optimizer_in_backward(RowWiseAdagrad, model.ids.parameters(), {"lr": 0.05})
    plan = EmbeddingShardingPlanner(constraints={"user": by_rows, "item": by_rows}).collective_plan(model)
    sharded = DistributedModelParallel(model, device=torch.device("cpu"), plan=plan)
    optimizer = torch.optim.Adam([p for _, p in in_backward_optimizer_filter(sharded.named_parameters())], lr=3e-3)
    losses: list[float] = []
    for _ in range(steps):
        loss, anchor = sharded(*batch())
        optimizer.zero_grad()
        (loss + anchor).backward()
        optimizer.step()
        losses.append(loss.item())
    return sharded, losses


if __name__ == "__main__":
    dist.init_process_group("gloo")
    _, losses = main()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    dist.destroy_process_group()
