"""LightningModules around recurrent networks, one per task."""

from lightning_stable.models.core_model import CoreModel
from lightning_stable.models.cores import CELLS, CORES, build_core, build_recurrence
from lightning_stable.models.language_model import LanguageModel
from lightning_stable.models.music_model import MusicModel
from lightning_stable.models.sequence_regressor import SequenceRegressor
from lightning_stable.models.slot_tagger import SlotTagger

__all__ = [
    "CELLS",
    "CORES",
    "CoreModel",
    "LanguageModel",
    "MusicModel",
    "SequenceRegressor",
    "SlotTagger",
    "build_core",
    "build_recurrence",
]
