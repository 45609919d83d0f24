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

from prectr_torchrec import modules as m

R, P, L, K, V, D = 32, 4, 5, 4, 11, 16  # requests, candidates of each, past events of each, levels, vocabulary, width


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        features = {"user": ["user"], "item": ["item", "past_item"]}
        tables = [EmbeddingConfig(name=n, num_embeddings=500, embedding_dim=D, feature_names=f) for n, f in features.items()]
        self.ids = EmbeddingCollection(tables=tables, device=torch.device("meta"))
        text = m.TextEncoder.from_config(model_type="bert", vocab_size=V, hidden_size=48, num_hidden_layers=1)
        match = m.TextMatch(torch.ones(V), torch.zeros(V, dtype=torch.bool))  # all words weigh alike, none is a number
        relevance = m.TextRelevance(m.DualInteraction(text), match, [32, 16], K)
        widths = m.Widths(request={"user": D}, candidate={"item": D}, sequences={"history": {"item": D}})
        personal = m.Personal(widths, K, peers=False, relevance_dim=16)
        parts = {"ids": m.LookedUpFeatures(widths), "text": m.TextFeatures(16, match.num_features), "personal": personal}
        self.prectr = m.PRECTR(relevance, parts, num_levels=K, click_tower=[32])

    def forward(self, ids: KeyedJaggedTensor, known: dict[str, Tensor], click: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        user, item, past = (found.values() for found in self.ids(ids).values())
        request = {"user": user, "user_shown": known["shown"], "user_clicked": known["clicked"]}
        happened = {name: known[name] for name in ("level", "click", "position", "age")}
        history = m.Events({**happened, "item": past.view(R, L, D)}, lengths=torch.full((R,), L))
        texts = {"query": m.Texts(known["query"], torch.arange(R)), "title": m.Texts(known["title"], torch.arange(R * P))}
        whose = torch.arange(R).repeat_interleave(P)
        out = self.prectr(m.Inputs(request, {"item": item}, {"history": history}, texts, torch.ones(R), whose, torch.ones(R * P)))
        bce = nn.functional.binary_cross_entropy_with_logits(out.logged["click"].logit, click)
        return bce, nn.functional.nll_loss(out.own.text.relevance.log_pi, level - 1)


def batch() -> tuple[KeyedJaggedTensor, dict[str, Tensor], Tensor, Tensor]:
    """A title is relevant where it has the query's word; half of the users click what is relevant, the others what is not."""
    ids, lengths = torch.randint(500, (R * (1 + P + L),)), torch.tensor([1, P, L]).repeat_interleave(R)
    strict = (ids[:R] % 2 * 4 - 2).float().unsqueeze(1)
    query, title = torch.randint(5, V, (R, 1)), torch.randint(5, V, (R * P, 3))
    level = 1 + 3 * (title == query.repeat_interleave(P, 0)).any(1).long()
    past, shown, zero = torch.randint(1, K + 1, (R, L)), torch.tensor([0.0, 9, 9, 9, 9]).expand(R, K + 1), torch.zeros(R, L)
    known = {"query": query, "title": title, "shown": shown, "clicked": shown * ((torch.arange(K + 1) - 2.5) * strict).sigmoid()}
    known |= {"level": past, "click": ((past - 2.5) * strict > 0).long(), "position": zero.long(), "age": zero}
    click = torch.bernoulli(((level.view(R, P) - 2.5) * strict).sigmoid()).flatten()
    return KeyedJaggedTensor(["user", "item", "past_item"], ids, lengths=lengths), known, click, level


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
