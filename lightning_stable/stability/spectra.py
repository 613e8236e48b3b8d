"""The values behind a rate: the singular values of a recurrent matrix, or the rate of every gated unit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_stable.recurrence.base import Recurrence
from lightning_stable.stability.inputs.resolve import Sources, walk_layers


@torch.no_grad()
def layer_spectra(
    recurrences: Sequence[Recurrence], sources: Sources, state_bound: float = 1.0, *, training: bool | None = None
) -> dict[str, Tensor]:
    """Return ``<name>/unit_rates`` of every gated cell and ``<name>/singular_values`` of the others, in float64.

    The largest unit rate is the rate of the certificate ``row``, the largest singular value that of ``l2``. A cell
    with gates whose adapter gives no unit rates has neither.

    Args:
        recurrences: In the order of :func:`~lightning_stable.recurrence.find_recurrences`.
        sources: Their input sets.
        state_bound: As in :func:`lightning_stable.certify`.
        training: Whether dropout between layers is active; None asks each module.

    Returns:
        Tensors of shape ``(units,)``. Unit rates are infinite where nothing is known about the inputs.
    """
    spectra = {}
    for layer in walk_layers(recurrences, sources, state_bound, training):
        recurrence = layer.recurrence
        blocks = list(recurrence.recurrent_blocks(layer.weights).values())
        rates = recurrence.unit_rates(layer.weights, layer.drive, state_bound=state_bound)
        if rates is not None:
            spectra[f"{recurrence.name}/unit_rates"] = rates
        elif len(blocks) == 1 and blocks[0].dim() == 2:
            spectra[f"{recurrence.name}/singular_values"] = torch.linalg.svdvals(blocks[0])
    return spectra
