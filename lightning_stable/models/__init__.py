"""LightningModules around recurrent networks, one per task."""

from lightning_stable.models.cells import CELLS, build_recurrence
from lightning_stable.models.cores import CORES, build_core
from lightning_stable.models.language_model import LanguageModel
from lightning_stable.models.music_model import MusicModel
from lightning_stable.models.sequence_regressor import SequenceRegressor
from lightning_stable.models.slot_tagger import SlotTagger

__all__ = [
    "CELLS",
    "CORES",
    "LanguageModel",
    "MusicModel",
    "SequenceRegressor",
    "SlotTagger",
    "build_core",
    "build_recurrence",
]
