"""Projections onto the sets certificates are made of: pure functions of tensors, formula first.

None of them reads a value on the host unless it is told to; each returns its argument unchanged, bit for bit, where it
is in the set.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_stable.linalg import Factors

# Newton's iteration for the l1 threshold rises monotonically to the solution and is exact after finitely many steps.
# After one optimizer step of an LSTM 6 leave 1e-6 to 4e-6 of the weights to do (4 left a thousandth), which a factor
# just below 1 removes.
NEWTON_STEPS = 6
EXACT_NEWTON_STEPS = 40


def clip_singular_values(
    weight: Tensor, bound: float | Tensor, *, reading: bool = False, factors: Factors | None = None
) -> Tensor:
    r"""``argmin ||X - W||_F  subject to  ||X||_2 <= bound``: singular values above ``bound`` are lowered to it.

    Computed from the eigenvectors ``V`` of ``W^T W`` as ``W - W V diag(1 - bound / sigma)_+ V^T``, which leaves a
    matrix inside the set untouched. Exact up to the rounding of the dtype: 2e-8 relative in float64 and 1e-6 in
    float32, so a target must carry such a margin. Far outside the set the eigenvalues are known only to the rounding
    of the largest one, and the bound is lowered by as much.

    Args:
        weight: Shape ``(..., rows, columns)``.
        bound: Largest singular value of the result, positive.
        reading: Look on the host how many singular values are above: few after a training step, which saves products.
        factors: With those of a quadratic form, the singular values of ``A W B`` are clipped instead, which lowers the
            rate in that form to ``bound``, and the result is mapped back.
    """
    inner = weight if factors is None else factors.left @ weight @ factors.right
    values, vectors = gram_eigh(inner)
    if reading:
        above = int((_excess(values, bound) > 0).sum(-1).amax())
        if above == 0:
            return weight
        vectors, values = vectors[..., -above:], values[..., -above:]
    return remove_excess(weight, inner @ vectors, vectors, values, bound, factors)


def gram_eigh(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``W^T W = V diag(sigma^2) V^T``: the squared singular values, ascending, and the right singular vectors."""
    values, vectors = torch.linalg.eigh(weight.mT @ weight)
    return values, vectors


def remove_excess(
    weight: Tensor,
    image: Tensor,
    vectors: Tensor,
    values: Tensor,
    bound: float | Tensor,
    factors: Factors | None = None,
) -> Tensor:
    """``W - W V diag(1 - bound / sigma)_+ V^T`` for right singular vectors ``V`` with ``image = W V``.

    Args:
        weight: Shape ``(..., rows, columns)``.
        image: Shape ``(..., rows, k)``.
        vectors: Shape ``(..., columns, k)``.
        values: Squared singular values, shape ``(..., k)``.
        bound: Largest singular value of the result.
        factors: With these, image, vectors and values are those of ``A W B``.
    """
    excess = image * _excess(values, bound).unsqueeze(-2)
    if factors is None:
        return weight - excess @ vectors.mT
    return weight - (factors.left_inverse @ excess) @ (vectors.mT @ factors.right_inverse)


def _excess(values: Tensor, bound: float | Tensor) -> Tensor:
    """``(1 - bound / sigma)_+``, the share of every singular value that lies above the bound."""
    limits, sigma = torch.finfo(values.dtype), values.clamp(min=0).sqrt()
    unresolved = limits.eps * (values.amax(-1, keepdim=True) / bound**2 - 1).clamp(min=0)
    return (1 - bound / (1 + unresolved) / sigma.clamp(min=limits.tiny)).clamp(min=0)


def project_rows_l1(rows: Tensor, radius: Tensor, *, exact: bool = False) -> Tensor:
    r"""``argmin ||x - row||_2  subject to  ||x||_1 <= radius``, for every row: soft-thresholding.

    The threshold is found by Newton's method on ``sum (|a| - t)_+ = radius``; the sorting algorithm of Duchi et al.
    (Efficient Projections onto the l1-Ball) gives the same point.

    Args:
        rows: Shape ``(rows, columns)``.
        radius: Shape ``(rows,)``, nonnegative; infinite radii leave a row as it is.
        exact: Iterate to the end; otherwise a few steps, and a factor below 1 for the rest.
    """
    return project_rows_weighted_l1(rows, None, radius, exact=exact)


def project_rows_weighted_l1(
    rows: Tensor, weights: Tensor | None, radius: Tensor, *, exact: bool = False, sizes: Tensor | None = None
) -> Tensor:
    r"""``argmin ||x - row||_2  subject to  sum_k weights_k |x_k| <= radius``, for every row.

    Args:
        rows: Shape ``(rows, columns)``.
        weights: Positive, broadcastable to ``rows``; None for ones.
        radius: Shape ``(rows,)``, nonnegative.
        exact: As in :func:`project_rows_l1`.
        sizes: ``sum_k weights_k |row_k|``, shape ``(rows,)``, where it is known already.
    """
    weights = None if weights is None else weights.expand_as(rows)
    if exact and rows.device.type == "cpu":
        return _project_violating_rows(rows, weights, radius)
    return _newton(rows, weights, radius, EXACT_NEWTON_STEPS if exact else NEWTON_STEPS, sizes)


def _project_violating_rows(rows: Tensor, weights: Tensor | None, radius: Tensor) -> Tensor:
    """Project the rows outside to the end, until no threshold rises any more, where values may be read."""
    magnitude = rows.abs() if weights is None else rows.abs() * weights
    outside = (magnitude.sum(1) > radius).nonzero()[:, 0]
    if len(outside) == 0:
        return rows
    chosen = None if weights is None else weights[outside]
    projected = _newton(rows[outside], chosen, radius[outside], EXACT_NEWTON_STEPS, until=True)
    return rows.index_copy(0, outside, projected)


def _newton(
    rows: Tensor,
    weights: Tensor | None,
    radius: Tensor,
    steps: int,
    sizes: Tensor | None = None,
    *,
    until: bool = False,
) -> Tensor:
    """Take Newton steps on the threshold, then a factor of at most 1; with ``until`` stop when nothing changes."""
    magnitude, target, tiny = rows.abs(), radius[:, None], torch.finfo(rows.dtype).tiny

    def size(values: Tensor) -> Tensor:
        return (values if weights is None else values * weights).sum(1, keepdim=True)

    def soften(threshold: Tensor) -> Tensor:
        return (magnitude - (threshold if weights is None else threshold * weights)).clamp_(min=0)

    left, threshold = magnitude, torch.zeros_like(target)
    left_size = size(magnitude) if sizes is None else sizes[:, None]
    for step in range(steps):
        # The slope: how many entries are left. Rows that were projected before have many zeros, which must not count.
        slope = size(left.sign() if weights is None else left.sign() * weights)
        rise = (left_size - target).clamp_(min=0) / slope.clamp(min=tiny)
        if step == 0 and weights is None:  # the largest entry alone asks for this much, more where few will be left
            rise = torch.maximum(rise, magnitude.amax(1, keepdim=True) - target)
        threshold = threshold + rise
        left = soften(threshold)
        left_size = size(left)
        if until and not (rise > torch.finfo(rows.dtype).eps * threshold).any():
            break
    # Rows inside have the threshold 0 and the factor 1.
    return left.mul_((target / left_size.clamp_(min=tiny)).clamp_(max=1)).mul_(rows.sign())


def share_budget(demand: Tensor, shares: Tensor, budget: Tensor) -> Tensor:
    r"""``min(demand_q, level * share_q)`` with ``level`` such that the sum over the gates is the budget.

    Every gate is sure of its share; what one gate does not ask for goes to the others in proportion to theirs.
    Nothing is cut where the demands fit into the budget.

    Args:
        demand: Nonnegative, shape ``(gates, units)``.
        shares: Positive, shape ``(gates,)``.
        budget: Nonnegative, shape ``(units,)``.

    Returns:
        Allocation of shape ``(gates, units)``, at most ``demand``.
    """
    share = shares[:, None]
    # A gate is served in full at the level demand / share; what all of them get at that level shows whether it is.
    level = demand / share
    served = torch.minimum(demand, level[:, None] * share).sum(1) <= budget
    rest = (budget - (demand * served).sum(0)).clamp(min=0)
    level = rest / (share * ~served).sum(0).clamp(min=torch.finfo(demand.dtype).tiny)
    return torch.where(served, demand, torch.minimum(demand, level * share))


def project_rows_image_l1(
    rows: Tensor, image: Tensor, coefficients: Tensor, radius: Tensor, *, exact: bool = False
) -> Tensor:
    r"""``sum_q coefficients_q || row_q @ image ||_1 <= radius``: return the nearest point of the same directions.

    ``argmin sum_q (1 - s_q)^2 ||row_q||^2`` over one factor ``s_q`` in [0, 1] per block: a weighted l1 projection of
    the lengths of the rows. No block's image grows, which the nearest point of all would not promise.

    Args:
        rows: Shape ``(n, blocks, states)``.
        image: Shape ``(states, units)``.
        coefficients: Shape ``(n, blocks)``.
        radius: Shape ``(n,)``.
        exact: As in :func:`project_rows_l1`.
    """
    length: Tensor = torch.linalg.vector_norm(rows, dim=2)
    divisor = length.clamp(min=torch.finfo(rows.dtype).tiny)
    cost = coefficients * (rows @ image).abs().sum(2) / divisor
    kept = project_rows_weighted_l1(length, cost, radius, exact=exact)
    return rows * (kept / divisor)[:, :, None]
