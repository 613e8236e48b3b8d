"""What the output ``bound`` of a program starts from, and what it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_stable.recurrence import find_recurrences, recurrences_by_module
from lightning_stable.recurrence.enclosed import Premises
from lightning_stable.stability.inputs.resolve import resolve_sources, walk_layers
from lightning_stable.stability.inputs.sets import InputBound, weakest_guarantee
from lightning_stable.stability.tube import premises_of

_STATE_BOUND = 1.0


@dataclass(frozen=True)
class Bounded:
    """The premises of the bounds of a program.

    Attributes:
        premises: By layer of the recurrent module, forward before backward.
        metadata: What a file says about them, see :class:`~lightning_stable.export.metadata.Metadata`.
    """

    premises: tuple[Premises, ...]
    metadata: dict[str, Any]


def bounded(model: nn.Module, input_bound: InputBound) -> Bounded:
    """Return the premises of the bounds of a model.

    Args:
        model: A model with one recurrent module.
        input_bound: As for :func:`~lightning_stable.export.export`.

    Raises:
        ValueError: If the model has several recurrent modules, their cell has no tube, or nothing bounds their states.
    """
    recurrences = find_recurrences(model)
    names = list(recurrences_by_module(model))
    if len(names) > 1:
        raise ValueError(f"`bound` needs a model with one recurrent module. Got {len(names)}: {names}.")
    without = [type(recurrence).__name__ for recurrence in recurrences if not recurrence.has_tube]
    if without:
        raise ValueError(f"`bound` needs adapters that implement `tube`. Got none in {without[0]}.")
    sources = resolve_sources(model, recurrences, input_bound, training=False, state_bound=_STATE_BOUND)
    layers = list(walk_layers(recurrences, sources, _STATE_BOUND, training=False))
    premises, guarantees = zip(*map(premises_of, layers), strict=True)
    inputs = layers[0].inputs
    return Bounded(
        premises,
        {
            "module": names[0],
            "norm": "euclidean",
            "state_bound": _STATE_BOUND,
            "inputs_before": None if inputs is None else inputs.describe(),
            "guarantee": weakest_guarantee(guarantees),
        },
    )
