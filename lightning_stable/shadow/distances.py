"""How far two models are apart, in their weights and in what they predict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

# Predictions of one batch: one tensor of shape ``(..., features)`` per call that was watched.
Predictions = Sequence[Tensor]


@torch.no_grad()
def weight_distances(
    model: Mapping[str, Tensor], twin: Mapping[str, Tensor], initial: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """``||w - w'||`` between the parameters of two models, and the same over ``||w - w_0||``.

    Args:
        model: Parameters ``w`` by name.
        twin: Parameters ``w'`` of the same names and shapes.
        initial: Parameters ``w_0`` that the model had before training.

    Returns:
        Tensors on the model's device: ``"weight_distance"`` over all parameters, ``"weight_distance/<child>"`` over
        those of each top-level child, and ``"weight_distance_relative"``, the first over the distance that the model
        itself has moved.
    """
    groups: dict[str, list[Tensor]] = {}
    for name, value in model.items():
        groups.setdefault(name.partition(".")[0], []).append(_square(value, twin[name]))
    parts = {f"weight_distance/{group}": torch.stack(squares).sum().sqrt() for group, squares in groups.items()}
    total = _norm(parts.values())
    moved = torch.stack([_square(value, initial[name]) for name, value in model.items()]).sum().sqrt()
    return {"weight_distance": total, "weight_distance_relative": _ratio(total, moved), **parts}


@torch.no_grad()
def prediction_distances(model: Predictions, twin: Predictions) -> dict[str, Tensor]:
    """``mean_t ||y'_t - y_t||`` between predictions, and ``||y' - y|| / ||y||``.

    Args:
        model: Predictions ``y`` of shape ``(..., features)``; a one-dimensional tensor counts as ``(positions, 1)``.
        twin: Predictions ``y'`` of the same shapes.

    Returns:
        Tensors on the model's device: ``"prediction_distance"``, the mean over all positions of the Euclidean norm
        over the features, and ``"prediction_distance_relative"``, the quotient of Frobenius norms. The mapping is
        empty if there are no predictions or their shapes differ.
    """
    pairs = [(_rows(ours), _rows(theirs)) for ours, theirs in zip(model, twin, strict=False)]
    pairs = [(ours, theirs) for ours, theirs in pairs if ours.shape == theirs.shape and ours.numel()]
    if not pairs:
        return {}
    norms = torch.cat([torch.linalg.vector_norm(theirs - ours, dim=-1) for ours, theirs in pairs])
    size = _norm(torch.linalg.vector_norm(ours) for ours, _ in pairs)
    return {
        "prediction_distance": norms.mean(),
        "prediction_distance_relative": _ratio(torch.linalg.vector_norm(norms), size),
    }


def _rows(value: Tensor) -> Tensor:
    value = value.detach()
    value = value if value.dtype == torch.float64 else value.float()
    return value.reshape(-1, 1) if value.dim() < 2 else value.flatten(0, -2)


def _square(first: Tensor, second: Tensor) -> Tensor:
    difference = first.detach() - second.detach().to(first.device)
    return (difference if difference.dtype == torch.float64 else difference.float()).square().sum()


def _norm(parts: Iterable[Tensor]) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(torch.stack(list(parts)))
    return norm


def _ratio(distance: Tensor, size: Tensor) -> Tensor:
    """Return ``distance / size``, where nothing over nothing is zero."""
    return distance / size.clamp_min(torch.finfo(size.dtype).tiny)
