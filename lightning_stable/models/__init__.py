"""LightningModules around recurrent networks, one per task."""

from lightning_stable.models.cells import CELLS, build_recurrence
from lightning_stable.models.language_model import LanguageModel

__all__ = ["CELLS", "LanguageModel", "build_recurrence"]
