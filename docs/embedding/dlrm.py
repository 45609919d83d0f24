"""A TorchRec DLRM that owns its tables, with PRECTR's level mixture and relevance incentive added."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.models.dlrm import DLRM
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from prectr_torchrec.modules import LabelProbability, LevelMixture, LevelStatistics, RelevanceIncentive, RelevanceTower

K = 4  # relevance levels
TABLES = [EmbeddingBagConfig(name=n, num_embeddings=1000, embedding_dim=16, feature_names=[f"{n}_id"]) for n in ("user", "item")]


class IncentiveDLRM(DLRM):
    """The over-arch has one click logit for each level; the incentive shifts them by what the user's record says."""

    def __init__(self) -> None:
        bags = EmbeddingBagCollection(tables=TABLES, device=torch.device("meta"))  # the sharder gives them memory
        super().__init__(bags, dense_in_features=3, dense_arch_layer_sizes=[16], over_arch_layer_sizes=[32, K])
        self.relevance = RelevanceTower(3, [16], K)
        self.record = LevelStatistics(K + 1)
        self.preference = nn.Linear(self.record.num_features, 16)
        self.incentive = RelevanceIncentive(16, 16, K)
        self.mixture = LevelMixture()

    def forward(self, match: Tensor, ids: KeyedJaggedTensor, shown: Tensor, clicked: Tensor) -> tuple[LabelProbability, Tensor]:
        """Args: match: (B, 3) of query and title; shown, clicked: (B, K + 1) the user's past by level, first without one."""
        relevance = self.relevance(match)
        preference = self.preference(self.record(shown, clicked, shown))
        nobody = self.preference.bias  # the preference of an empty record, whose incentive is zero
        incentive = self.incentive(relevance.hidden, preference, nobody)
        return self.mixture(relevance.log_pi, super().forward(match, ids) + incentive.tau), relevance.log_pi


def batch(B: int = 256) -> tuple[Tensor, KeyedJaggedTensor, Tensor, Tensor, Tensor, Tensor]:
    """Some users click what is relevant, some rather what is not; their past shows which."""
    user, item, level = *torch.randint(1000, (2, B)), torch.randint(1, K + 1, (B,))
    strictness = (user % 5 - 2.0).unsqueeze(1)
    shown = torch.cat([torch.zeros(B, 1), torch.full((B, K), 12.0)], dim=1)
    clicked = torch.binomial(shown, (strictness * (torch.arange(K + 1) - 2.5)).sigmoid())
    match = level.unsqueeze(1) + torch.randn(B, 3)
    ids = KeyedJaggedTensor(["user_id", "item_id"], torch.cat([user, item]), lengths=torch.ones(2 * B, dtype=torch.long))
    return match, ids, shown, clicked, level, torch.bernoulli((strictness.squeeze(1) * (level - 2.5)).sigmoid())


def main(steps: int = 80) -> tuple[nn.Module, list[float]]:
    """Trains on the ranks of the process group; returns the sharded model and the losses of this rank."""
    torch.manual_seed(dist.get_rank())
    model = IncentiveDLRM()
    apply_optimizer_in_backward(RowWiseAdagrad, model.sparse_arch.parameters(), {"lr": 0.05})
    kinds = {table.name: ParameterConstraints(sharding_types=["table_wise"]) for table in TABLES}
    plan = EmbeddingShardingPlanner(constraints=kinds).collective_plan(model)
    sharded = DistributedModelParallel(model, device=torch.device("cpu"), plan=plan)
    optimizer = torch.optim.Adam([p for _, p in in_backward_optimizer_filter(sharded.named_parameters())], lr=3e-3)
    losses: list[float] = []
    for _ in range(steps):
        *features, level, click = batch()
        p, log_pi = sharded(*features)
        loss = -(click * p.log_yes + (1 - click) * p.log_no).mean()
        optimizer.zero_grad()
        (loss + 0.3 * nn.functional.nll_loss(log_pi, level - 1)).backward()
        optimizer.step()
        losses.append(loss.item())
    return sharded, losses


if __name__ == "__main__":
    dist.init_process_group("gloo")
    _, losses = main()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    dist.destroy_process_group()
