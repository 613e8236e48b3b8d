"""The worst inputs of rows that are about to move a little: those of a finite set are looked for once.

After the move, safe screening, a rule of sparse regression, leaves out what need not be looked at again. Let a row
``w`` become ``w'``, and ``u`` be the point that was its worst. By the Cauchy-Schwarz inequality a point ``x`` is not
the worst now if::

    w x + ||w' - w|| ||x|| < w' u
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_stable.stability.inputs.sets import FiniteSet, InputSet


class WorstInputs:
    """The inputs of a set at which products with given rows are largest.

    Args:
        inputs: The set.
        rows: Shape ``(rows, features)``.
        reading: Whether values may be read on the host.
        products: :meth:`FiniteSet.products` of the rows, where they are known.
    """

    def __init__(self, inputs: InputSet, rows: Tensor, *, reading: bool, products: Tensor | None = None) -> None:
        self.inputs, self.rows, self.reading, self.products = inputs, rows, reading, products
        if reading and products is None and isinstance(inputs, FiniteSet):
            self.products = inputs.products(rows)

    def of(self, chosen: Tensor) -> WorstInputs:
        """Return those of some rows, by their indices."""
        products = None if self.products is None else self.products[chosen]
        return WorstInputs(self.inputs, self.rows[chosen], reading=self.reading, products=products)

    def highest(self) -> Tensor:
        """Return the largest products, shape ``(rows,)``."""
        return self.inputs.highest(self.rows) if self.products is None else self.products.amax(1)

    def points(self) -> Tensor:
        """Return the inputs, shape ``(rows, features)``."""
        if isinstance(self.inputs, FiniteSet):
            return self.inputs.maximizer(self.rows, self.products)
        return self.inputs.maximizer(self.rows)

    def highest_after(self, rows: Tensor, points: Tensor) -> Tensor:
        """Return the largest products of the rows after they moved, given the worst inputs before."""
        if self.products is None or not isinstance(self.inputs, FiniteSet) or not len(rows):
            return self.inputs.highest(rows)
        moved = torch.linalg.vector_norm(rows - self.rows, dim=1)
        # Of a product or a norm: 8 roundings a feature, where 2 would do.
        rounding = 8 * rows.shape[1] * torch.finfo(rows.dtype).eps
        moved = moved + rounding * (moved + torch.linalg.vector_norm(self.rows, dim=1))
        sizes = self.inputs.lipschitz * torch.linalg.vector_norm(self.inputs.points.detach().to(rows), dim=1)
        beaten = torch.addr(self.products, moved, sizes) < (rows * points).sum(1, keepdim=True)
        left = (~beaten.all(0)).nonzero()[:, 0]  # with NaN nothing is beaten
        return self.inputs.products(rows, left).amax(1)
