"""Singular values are clipped with a subspace that is carried from one training step to the next.

An optimizer step moves weights by little, so the right singular vectors that reach above the bound lie nearly where
they lay at the step before. A block ``V`` of them, with a guard of further columns, is filtered by a Chebyshev
polynomial of ``W^T W`` (Zhou & Saad, A Chebyshev-Davidson Algorithm for Large Symmetric Eigenproblems), rotated to the
best approximations inside it (Rayleigh-Ritz), and the excess over the bound is removed along these alone. This is
some ten times cheaper than a decomposition of ``W``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_stable.linalg import Factors
from lightning_stable.stability.projection.sets import gram_eigh, remove_excess

# Below this size a decomposition of the Gram matrix costs no more.
MIN_UNITS = 128
# Measured on a recurrent language model with 512 units over 60 steps, against an SVD and a clamp: degrees 6, 7, 8 are
# off by 4e-5, 2e-5, 9e-6 of the weights at 10.5, 10.1, 9.7 times the speed.
DEGREE = 8
# A direction that is orthogonal to the block at first is found by the next whole decomposition at the latest.
RENEW_EVERY = 64
# Singular values this far below the bound may exceed it after the next step.
_NEAR = 1e-3
# Products are fastest with blocks of this many vectors.
_WIDTH = 16
# Larger blocks cost as much as a whole decomposition.
_LARGEST_SHARE = 0.35


class SubspaceClip:
    """``argmin ||X - W||_F  subject to  ||X||_2 <= bound``, for a stack of square matrices that change slowly.

    The block grows and shrinks with the number of singular values at the bound, and a whole decomposition every
    :data:`RENEW_EVERY` steps finds what it may have missed. For the size of the block values are read on the host:
    this is for a CPU.

    Attributes:
        vectors: The block, one vector a row, shape ``(matrices, k, units)``; None before the first call.
        floor: Smallest eigenvalue of ``W^T W`` on the block, shape ``(matrices, 1, 1)``.
        age: Steps since the last whole decomposition.
    """

    def __init__(self) -> None:
        self.vectors: Tensor | None = None
        self.floor: Tensor | None = None
        self.age = 0

    def __call__(self, weight: Tensor, bound: float, factors: Factors | None = None) -> Tensor:
        """Clip ``weight``, shape ``(matrices, units, units)``; ``factors`` as for :func:`clip_singular_values`."""
        inner = weight if factors is None else factors.left @ weight @ factors.right
        if self.vectors is None or self.floor is None or self.age >= RENEW_EVERY:
            return self._whole(weight, inner, bound, factors)
        self.age += 1
        block = chebyshev_filter(inner, self.vectors, self.floor)
        basis = torch.linalg.qr(block.mT).Q
        image = inner @ basis
        values, rotation = torch.linalg.eigh(image.mT @ image)
        near, columns, guard = _count_above(values, bound), block.shape[1], _guard(weight.shape[2])
        if columns - 3 * guard <= near <= columns - guard // 2:
            self.vectors, self.floor = rotation.mT @ basis.mT, values[:, :1, None].clone()
        else:
            self.vectors = None  # of the wrong size: the next step makes another one
        # Few columns are above the bound, the last ones.
        rotation = rotation[:, :, -near:]
        return remove_excess(weight, image @ rotation, basis @ rotation, values[:, -near:], bound, factors)

    def _whole(self, weight: Tensor, inner: Tensor, bound: float, factors: Factors | None) -> Tensor:
        units, (values, vectors) = inner.shape[2], gram_eigh(inner)
        # Rounded up to whole blocks of products, unless an eighth of the guard would cost another one.
        columns = _WIDTH * math.ceil((_count_above(values, bound) + _guard(units) * 7 // 8) / _WIDTH)
        self.age, self.vectors, self.floor = 0, None, None
        if columns <= _LARGEST_SHARE * units:
            self.vectors = vectors[:, :, -columns:].mT.contiguous()
            self.floor = values[:, -columns, None, None].clone()
        return remove_excess(weight, inner @ vectors, vectors, values, bound, factors)

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the next call depends on; empty before the first one."""
        if self.vectors is None or self.floor is None:
            return {}
        return {"vectors": self.vectors, "floor": self.floor, "age": torch.tensor(self.age)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over the state of another one."""
        self.vectors, self.floor = (state[name].clone() if state else None for name in ("vectors", "floor"))
        self.age = int(state["age"]) if state else 0


def chebyshev_filter(weight: Tensor, block: Tensor, floor: Tensor, degree: int = DEGREE) -> Tensor:
    """``T(2 G / floor - 1)`` of every vector, with ``G = W^T W``: eigenvalues above ``floor`` grow, others do not.

    Args:
        weight: ``W``, shape ``(matrices, rows, columns)``.
        block: One vector a row (products are faster so), shape ``(matrices, k, columns)``.
        floor: Shape ``(matrices, 1, 1)``, positive.
        degree: Degree of the Chebyshev polynomial ``T``.

    Returns:
        Vectors of norm 1, shape ``(matrices, k, columns)``.
    """
    # A product by G is two by W, or one if G itself is made.
    gram = weight.mT @ weight if degree * block.shape[1] > weight.shape[2] else None

    def times(vectors: Tensor) -> Tensor:
        return vectors @ weight.mT @ weight if gram is None else vectors @ gram

    scale = 2 / floor.clamp(min=torch.finfo(weight.dtype).tiny)
    before, current = block, torch.addcmul(-block, times(block), scale)
    for _ in range(degree - 1):
        before, current = current, torch.addcmul(before, times(current), -2 * scale).add_(current, alpha=2).neg_()
    size: Tensor = torch.linalg.vector_norm(current, dim=2, keepdim=True)
    return current / size


def _count_above(values: Tensor, bound: float) -> int:
    """Return the largest number of singular values at or above the bound in a matrix of the stack, at least 1."""
    near = (values > (bound * (1 - _NEAR)) ** 2).sum(1).amax()
    return max(1, int(near))


def _guard(units: int) -> int:
    return max(16, units // 16)
