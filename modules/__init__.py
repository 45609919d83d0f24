"""The towers, as plain `nn.Module`s that import nothing of the rest of the project."""

from .attention import CandidateSlots, TargetAttention
from .embeddings import SearchEmbeddings
from .history import EventEmbedding, InterestTower
from .mixture import ClickProbability, LevelMixture, known_level_log_probabilities
from .position import PositionBias
from .prectr import PRECTR, PRECTROutput, SearchInputs, SwappedTitles
from .relevance import TextRelevance
from .statistics import LevelStatistics
from .text_encoder import TextEncoder, pairwise_text_features
from .text_match import TextMatch
from .towers import ClickTower, Relevance, RelevanceTower

__all__ = [
    "PRECTR",
    "CandidateSlots",
    "ClickProbability",
    "ClickTower",
    "EventEmbedding",
    "InterestTower",
    "LevelMixture",
    "LevelStatistics",
    "PRECTROutput",
    "PositionBias",
    "Relevance",
    "RelevanceTower",
    "SearchEmbeddings",
    "SearchInputs",
    "SwappedTitles",
    "TargetAttention",
    "TextEncoder",
    "TextMatch",
    "TextRelevance",
    "known_level_log_probabilities",
    "pairwise_text_features",
]
