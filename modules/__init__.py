"""The towers, as plain `nn.Module`s that import nothing of the rest of the project."""

from .attention import CandidateSlots, TargetAttention
from .embeddings import SearchEmbeddings
from .history import EventEmbedding, InterestTower
from .hugging_face import from_folder, max_tokens
from .incentive import Incentive, RelevanceIncentive, load_balance
from .inputs import Events, LookedUp, SearchInputs, counters, past_events, search_inputs, without_past
from .interaction import CrossInteraction, DualInteraction, Interaction, LateInteraction
from .mixture import ClickProbability, LevelMixture, grade_distributions, known_level_log_probabilities
from .personal import Personal, PersonalSide, PreferenceParts
from .position import Examination
from .posterior import GaussianPosterior, Posterior
from .prectr import PRECTR, OtherTexts, PersonalEffect, PRECTROutput
from .preference import EventAttention, GateKind, PrecisionGate, Preference, RelevancePreference
from .relevance import TextRelevance
from .statistics import LevelStatistics
from .taste import Taste, TitleBag
from .text_encoder import NgramEncoder, Precision, ReplicatedEmbeddingBagCollection, TextEncoder, pairwise_text_features
from .text_match import TextMatch
from .towers import ClickTower, Relevance, RelevanceTower

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
    "counters",
    "from_folder",
    "grade_distributions",
    "known_level_log_probabilities",
    "load_balance",
    "max_tokens",
    "pairwise_text_features",
    "past_events",
    "search_inputs",
    "without_past",
]
