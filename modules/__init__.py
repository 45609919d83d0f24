"""The towers, as plain `nn.Module`s that import nothing of the rest of the project."""

from .attention.target import TargetAttention
from .embeddings import SearchEmbeddings
from .hugging_face import from_folder, max_tokens
from .inputs import CandidateSlots, Events, LookedUp, SearchInputs, counters, past_events, search_inputs, without_past
from .losses.anchor import anchor_loss, level_targets
from .losses.base import weighted_mean
from .losses.consistency import consistency_loss
from .losses.distillation import divergence
from .mixture import ClickProbability, LevelMixture, grade_distributions, known_level_log_probabilities
from .parts.incentive import Incentive, RelevanceIncentive, load_balance
from .parts.interest import EventEmbedding, InterestTower
from .parts.position import Examination
from .parts.posterior import GaussianPosterior, Posterior
from .parts.preference import EventAttention, GateKind, PrecisionGate, Preference, RelevancePreference
from .parts.statistics import LevelStatistics
from .parts.taste import Taste, TitleBag
from .rankers.personal import Personal, PersonalSide, PreferenceParts
from .rankers.prectr import PRECTR, OtherTexts, PersonalEffect, PRECTROutput
from .rankers.towers import ClickTower
from .text.encoder import NgramEncoder, Precision, ReplicatedEmbeddingBagCollection, TextEncoder, pairwise_text_features
from .text.interaction import CrossInteraction, DualInteraction, Interaction, LateInteraction
from .text.match import TextMatch
from .text.relevance import Relevance, RelevanceTower, TextRelevance

__all__ = [
    "PRECTR",
    "CandidateSlots",
    "ClickProbability",
    "ClickTower",
    "CrossInteraction",
    "DualInteraction",
    "EventAttention",
    "EventEmbedding",
    "Events",
    "Examination",
    "GateKind",
    "GaussianPosterior",
    "Incentive",
    "Interaction",
    "InterestTower",
    "LateInteraction",
    "LevelMixture",
    "LevelStatistics",
    "LookedUp",
    "NgramEncoder",
    "OtherTexts",
    "PRECTROutput",
    "Personal",
    "PersonalEffect",
    "PersonalSide",
    "Posterior",
    "Precision",
    "PrecisionGate",
    "Preference",
    "PreferenceParts",
    "Relevance",
    "RelevanceIncentive",
    "RelevancePreference",
    "RelevanceTower",
    "ReplicatedEmbeddingBagCollection",
    "SearchEmbeddings",
    "SearchInputs",
    "TargetAttention",
    "Taste",
    "TextEncoder",
    "TextMatch",
    "TextRelevance",
    "TitleBag",
    "anchor_loss",
    "consistency_loss",
    "counters",
    "divergence",
    "from_folder",
    "grade_distributions",
    "known_level_log_probabilities",
    "level_targets",
    "load_balance",
    "max_tokens",
    "pairwise_text_features",
    "past_events",
    "search_inputs",
    "weighted_mean",
    "without_past",
]
