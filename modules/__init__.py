"""The towers, as plain `nn.Module`s that import nothing of the rest of the project."""

from .attention.target import TargetAttention
from .declared_effects import DeclaredEffects, DeclaredFound
from .embeddings import SearchEmbeddings
from .gaussian_effects import (
    EffectsPosterior,
    GaussianEffect,
    GaussianRows,
    GaussianTitles,
    effects_posterior,
    expected_log_probability,
    expected_probability,
)
from .hugging_face import from_folder, max_tokens
from .inputs import CandidateSlots, ComparedEvents, Events, Inputs, Label, Texts, Widths
from .losses.anchor import Anchor, anchor_loss, level_targets
from .losses.balance import LoadBalance, load_balance
from .losses.base import Loss, label_mean, weighted_mean
from .losses.click import CrossEntropy
from .losses.consistency import Consistency, consistency_loss
from .losses.debias import Debias, lowered_distance
from .losses.distillation import divergence
from .losses.negatives import RandomNegatives
from .mixture import LabelProbability, LevelMixture, grade_distributions, known_level_log_probabilities, label_chain
from .numbers import NumberColumn, NumberEncoding
from .parts.base import Attention, Given, Part, PartOutput, ReportedPart
from .parts.declared import Numbers, Vectors
from .parts.features import LookedUpFeatures, MatchFeatures, PastCounts, TextFeatures, TitleFeatures
from .parts.grade import KnownGrade
from .parts.incentive import Incentive, RelevanceIncentive
from .parts.interest import EventEmbedding, Interest, InterestTower
from .parts.label_counters import LabelCounters
from .parts.personal import Personal, PersonalFindings
from .parts.position import Examination
from .parts.posterior import GaussianPosterior, Posterior
from .parts.preference import EventAttention, GateKind, PrecisionGate, Preference, RelevancePreference
from .parts.statistics import Counters, LevelStatistics
from .parts.taste import EventTaste, Taste, TitleBag, TitleTaste
from .parts.texts import FurtherEncodings, FurtherMatch
from .parts.vector_taste import VectorTaste
from .rankers.base import Predictions, RankingModel, WordTaste
from .rankers.mmoe import ExpertTower
from .rankers.parted import PartedRanker, TowerRanker
from .rankers.prectr import PRECTR, OtherTexts, PRECTRFindings
from .rankers.towers import ClickTower
from .text.encoder import NgramEncoder, Precision, ReplicatedEmbeddingBagCollection, TextEncoder, pairwise_text_features
from .text.interaction import CrossInteraction, DualInteraction, Interaction, LateInteraction
from .text.match import TextMatch
from .text.relevance import Relevance, RelevanceTower, SwappedTitles, TextEncodings, TextReading, TextRelevance
from .vectors import VectorColumn, VectorEncoding

__all__ = [
    "PRECTR",
    "Anchor",
    "Attention",
    "CandidateSlots",
    "ClickTower",
    "ComparedEvents",
    "Consistency",
    "Counters",
    "CrossEntropy",
    "CrossInteraction",
    "Debias",
    "DeclaredEffects",
    "DeclaredFound",
    "DualInteraction",
    "EffectsPosterior",
    "EventAttention",
    "EventEmbedding",
    "EventTaste",
    "Events",
    "Examination",
    "ExpertTower",
    "FurtherEncodings",
    "FurtherMatch",
    "GateKind",
    "GaussianEffect",
    "GaussianPosterior",
    "GaussianRows",
    "GaussianTitles",
    "Given",
    "Incentive",
    "Inputs",
    "Interaction",
    "Interest",
    "InterestTower",
    "KnownGrade",
    "Label",
    "LabelCounters",
    "LabelProbability",
    "LateInteraction",
    "LevelMixture",
    "LevelStatistics",
    "LoadBalance",
    "LookedUpFeatures",
    "Loss",
    "MatchFeatures",
    "NgramEncoder",
    "NumberColumn",
    "NumberEncoding",
    "Numbers",
    "OtherTexts",
    "PRECTRFindings",
    "Part",
    "PartOutput",
    "PartedRanker",
    "PastCounts",
    "Personal",
    "PersonalFindings",
    "Posterior",
    "Precision",
    "PrecisionGate",
    "Predictions",
    "Preference",
    "RandomNegatives",
    "RankingModel",
    "Relevance",
    "RelevanceIncentive",
    "RelevancePreference",
    "RelevanceTower",
    "ReplicatedEmbeddingBagCollection",
    "ReportedPart",
    "SearchEmbeddings",
    "SwappedTitles",
    "TargetAttention",
    "Taste",
    "TextEncoder",
    "TextEncodings",
    "TextFeatures",
    "TextMatch",
    "TextReading",
    "TextRelevance",
    "Texts",
    "TitleBag",
    "TitleFeatures",
    "TitleTaste",
    "TowerRanker",
    "VectorColumn",
    "VectorEncoding",
    "VectorTaste",
    "Vectors",
    "Widths",
    "WordTaste",
    "anchor_loss",
    "consistency_loss",
    "divergence",
    "effects_posterior",
    "expected_log_probability",
    "expected_probability",
    "from_folder",
    "grade_distributions",
    "known_level_log_probabilities",
    "label_chain",
    "label_mean",
    "level_targets",
    "load_balance",
    "lowered_distance",
    "max_tokens",
    "pairwise_text_features",
    "weighted_mean",
]
