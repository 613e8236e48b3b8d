"""Recurrences: directed recurrent layers seen as state maps, one adapter per cell family."""

from lightning_stable.recurrence.base import Budget, Contraction, GatedRecurrence, LeakingRecurrence, Recurrence
from lightning_stable.recurrence.intervals import Interval
from lightning_stable.recurrence.registry import (
    find_recurrences,
    is_recurrent,
    recurrences_by_module,
    recurrences_of,
    recurrent_modules,
    register_recurrence,
    register_recurrence_factory,
)

__all__ = [
    "Budget",
    "Contraction",
    "GatedRecurrence",
    "Interval",
    "LeakingRecurrence",
    "Recurrence",
    "find_recurrences",
    "is_recurrent",
    "recurrences_by_module",
    "recurrences_of",
    "recurrent_modules",
    "register_recurrence",
    "register_recurrence_factory",
]
