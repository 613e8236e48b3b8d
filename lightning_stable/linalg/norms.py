"""Norms of recurrent matrices, each an upper bound that survives rounding.

The exact relations (all of them for square ``W``)::

    diagonal <= perron <= min(linf, l1)        diagonal <= l2

and none of them can be below the spectral radius. Matrices are ``(rows, columns)``; leading batch dimensions are
not supported.
"""

from __future__ import annotations

import torch
from torch import Tensor

# A floor under Perron weights: without it the weights of units with empty rows underflow, and a ratio of weighted
# norms becomes rounding noise.
PERRON_FLOOR = 1e-4


def all_finite(*tensors: Tensor) -> Tensor:
    """Return which of the tensors have no NaN or infinite entry, shape ``(tensors,)``: their sums tell.

    Entries too large for a sum to be finite count as infinite.
    """
    dtype = torch.float64 if any(value.dtype == torch.float64 for value in tensors) else torch.float32
    return torch.isfinite(torch.stack([value.sum(dtype=dtype) for value in tensors]))


def inflation(size: int) -> float:
    """Return a factor that covers the rounding of a float64 norm of a matrix with ``size`` columns."""
    return 1.0 + size * 2.0**-50


def spectral_norm(weight: Tensor) -> Tensor:
    """``||W||_2``, the largest singular value; infinite where ``W`` is not finite."""
    finite = torch.isfinite(weight)
    norm: Tensor = torch.linalg.matrix_norm(weight.where(finite, 0), ord=2)
    return norm.where(finite.all(), torch.inf)


def row_norm(weight: Tensor) -> Tensor:
    """``||W||_inf``, the largest l1 norm of a row."""
    return weight.abs().sum(1).amax()


def column_norm(weight: Tensor) -> Tensor:
    """``||W||_1``, the largest l1 norm of a column."""
    return weight.abs().sum(0).amax()


def perron_weights(weight: Tensor, iterations: int = 60) -> Tensor:
    """Return positive ``v`` that nearly minimise ``max_i (|W| v)_i / v_i``; every positive ``v`` is a valid witness.

    A damped power iteration on ``|W|``; the best of all iterates is returned.

    Returns:
        Weights of shape ``(size,)``, the largest equal to 1.
    """
    magnitude = weight.abs()
    best = current = torch.ones_like(magnitude[0])
    best_rate = (magnitude @ best).amax()
    for _ in range(iterations):
        image = magnitude @ current
        rate = (image / current).amax()
        best = torch.where(rate < best_rate, current, best)
        best_rate = torch.fmin(rate, best_rate)
        current = 0.5 * (current + image / image.amax().clamp(min=torch.finfo(image.dtype).tiny)) + PERRON_FLOOR
        current = current / current.amax()
    return best


def weighted_row_norm(weight: Tensor, scale: Tensor) -> Tensor:
    """``max_i (|W| v)_i / v_i``: the norm of ``W`` where vectors are measured by ``max_i |x_i| / v_i``."""
    return ((weight.abs() @ scale) / scale).amax()


def diagonal_weights(weight: Tensor, iterations: int = 40) -> Tensor:
    """Return ``d`` that nearly minimise ``||D W D^-1||_2``, ``D = diag(d)``; every positive ``d`` is a valid witness.

    The descent starts at the better of ``d = 1`` and the Perron scaling ``sqrt(left / right)``, for which the norm is
    at most the Perron root of ``|W|``, and follows the subgradient ``u_1^2 - v_1^2`` of the norm, which is convex in
    ``log d``.

    Returns:
        Weights of shape ``(size,)``.
    """
    right, left = perron_weights(weight), perron_weights(weight.mT)
    starts = (torch.zeros_like(right), 0.5 * (left.log() - right.log()))
    best, best_norm, gradient = min(
        ((d, *_norm_and_subgradient(weight, d)) for d in starts), key=lambda start: start[1]
    )
    step = 0.5
    for _ in range(iterations):
        candidate = best - step * gradient
        norm, candidate_gradient = _norm_and_subgradient(weight, candidate)
        if norm < best_norm:
            best, best_norm, gradient = candidate, norm, candidate_gradient
        else:
            step *= 0.7
    return best.exp()


def _norm_and_subgradient(weight: Tensor, log_d: Tensor) -> tuple[Tensor, Tensor]:
    left, values, right = torch.linalg.svd(_scaled(weight, log_d.exp()))
    gradient = left[:, 0].square() - right[0].square()
    return values[0], gradient / gradient.norm().clamp(min=1e-12)


def diagonal_norm(weight: Tensor, scale: Tensor) -> Tensor:
    """``||D W D^-1||_2`` with ``D = diag(scale)``."""
    return spectral_norm(_scaled(weight, scale))


def _scaled(weight: Tensor, scale: Tensor) -> Tensor:
    return scale[:, None] * weight / scale
