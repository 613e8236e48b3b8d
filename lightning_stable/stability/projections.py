"""Projections onto the sets certificates are made of: pure functions of tensors, formula first.

None of them reads a value on the host; each returns its argument unchanged, bit for bit, where it is in the set.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Newton's iteration for the l1 threshold rises monotonically to the solution and is exact after finitely many steps.
# After one optimizer step 1 to 3 are enough; a factor just below 1 removes what is left.
NEWTON_STEPS = 4
EXACT_NEWTON_STEPS = 40


def clip_singular_values(weight: Tensor, bound: float | Tensor) -> Tensor:
    r"""``argmin ||X - W||_F  subject to  ||X||_2 <= bound``: singular values above ``bound`` are lowered to it.

    Computed from the eigenvectors ``V`` of ``W^T W`` as ``W - W V diag(1 - bound / sigma)_+ V^T``, which leaves a
    matrix inside the set untouched. Exact up to the rounding of the dtype: 2e-8 relative in float64 and 1e-6 in
    float32, so a target must carry such a margin. Far outside the set the eigenvalues are known only to the rounding
    of the largest one, and the bound is lowered by as much.

    Args:
        weight: Shape ``(rows, columns)``.
        bound: Largest singular value of the result, positive.
    """
    values, vectors = torch.linalg.eigh(weight.mT @ weight)
    limits, sigma = torch.finfo(values.dtype), values.clamp(min=0).sqrt()
    unresolved = limits.eps * (values.amax() / bound**2 - 1).clamp(min=0)
    excess = (1 - bound / (1 + unresolved) / sigma.clamp(min=limits.tiny)).clamp(min=0)
    removed: Tensor = ((weight @ vectors) * excess) @ vectors.mT
    return weight - removed


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


def project_rows_weighted_l1(rows: Tensor, weights: Tensor | None, radius: Tensor, *, exact: bool = False) -> Tensor:
    r"""``argmin ||x - row||_2  subject to  sum_k weights_k |x_k| <= radius``, for every row.

    Args:
        rows: Shape ``(rows, columns)``.
        weights: Positive, broadcastable to ``rows``; None for ones.
        radius: Shape ``(rows,)``, nonnegative.
        exact: As in :func:`project_rows_l1`.
    """
    magnitude, target, tiny = rows.abs(), radius[:, None], torch.finfo(rows.dtype).tiny

    def size(values: Tensor) -> Tensor:
        return (values if weights is None else values * weights).sum(1, keepdim=True)

    def soften(threshold: Tensor) -> Tensor:
        return (magnitude - (threshold if weights is None else threshold * weights)).clamp_(min=0)

    threshold = torch.zeros_like(target)
    for _ in range(EXACT_NEWTON_STEPS if exact else NEWTON_STEPS):
        left = soften(threshold)
        active = (left > 0).to(rows.dtype)
        slope = size(active if weights is None else active * weights).clamp(min=tiny)
        threshold = threshold + (size(left) - target).clamp(min=0) / slope
    left = soften(threshold)
    left = left * (target / size(left).clamp(min=tiny)).clamp(max=1)
    return torch.where(threshold > 0, left.copysign(rows), rows)


def share_budget(demand: Tensor, shares: Tensor, budget: Tensor) -> Tensor:
    r"""Divide a budget among gates: ``min(demand_q, level * share_q)`` with ``level`` such that the sum is the budget.

    Every gate is sure of its share; what one gate does not ask for goes to the others in proportion to theirs.
    Nothing is cut where the demands fit into the budget.

    Args:
        demand: Nonnegative, shape ``(gates, units)``.
        shares: Positive, shape ``(gates,)``.
        budget: Nonnegative, shape ``(units,)``.

    Returns:
        Allocation of shape ``(gates, units)``, at most ``demand``.
    """
    share = shares[:, None].expand_as(demand)
    # A gate is served in full when level >= demand / share: try the levels in that order.
    ratio, order = (demand / share).sort(dim=0)
    sorted_demand, sorted_share = demand.gather(0, order), share.gather(0, order)
    served = sorted_demand.cumsum(0) - sorted_demand
    open_share = sorted_share.flip(0).cumsum(0).flip(0)
    level = ((budget - served) / open_share).clamp(min=0)
    # Before gate m is served in full the level solves served + level * open_share = budget; it is right for the first
    # m with level <= ratio. If none, all demands fit.
    cut = level <= ratio
    first = cut.to(torch.uint8).argmax(0, keepdim=True)
    level = torch.where(cut.any(0, keepdim=True), level.gather(0, first), torch.inf)
    return torch.minimum(demand, level * share)


def project_rows_image_l1(
    rows: Tensor, image: Tensor, coefficients: Tensor, radius: Tensor, *, exact: bool = False
) -> Tensor:
    r"""Nearest point of the same directions with ``sum_q coefficients_q || row_q @ image ||_1 <= radius``.

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
