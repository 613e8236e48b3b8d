"""What the callbacks that measure share: a measurement that cannot be made ends no training."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_stable.diagnostics.finite import check_run
from lightning_stable.recurrence import recurrences_of


def is_measurable(who: str, name: str, module: nn.Module, inputs: Any, state: Any = None) -> bool:
    """Return whether weights, inputs and start state are finite; warn where they are not.

    Args:
        who: The class of the callback.
        name: The name of the module.
        module: The recurrent module.
        inputs: Its inputs, a tensor or a PackedSequence.
        state: Its start state.
    """
    states = state if isinstance(state, tuple) else (state,)
    try:
        check_run(recurrences_of(module), inputs.data, *(part for part in states if isinstance(part, Tensor)))
    except ValueError as error:
        rank_zero_warn(f"{who} skips {name!r} at this validation. {error}")
        return False
    return True
