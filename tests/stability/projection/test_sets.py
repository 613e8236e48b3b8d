import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_stable.stability.projection.sets import (
    clip_singular_values,
    project_rows_image_l1,
    project_rows_l1,
    project_rows_weighted_l1,
    share_budget,
)

seeds = st.integers(0, 10**6)
sizes = st.integers(1, 7)
scales = st.sampled_from([0.1, 1.0, 10.0])


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sorted_projection(row: Tensor, weights: Tensor, radius: float) -> Tensor:
    """The sorting algorithm of Duchi et al. for ``sum weights |x| <= radius``."""
    magnitude = row.abs()
    if (weights * magnitude).sum() <= radius:
        return row
    order = (magnitude / weights).argsort(descending=True)
    a, w = magnitude[order], weights[order]
    thresholds = ((a * w).cumsum(0) - radius) / w.square().cumsum(0)
    threshold = thresholds[max((a / w > thresholds).nonzero().flatten().tolist(), default=0)]
    return row.sign() * (magnitude - threshold * weights).clamp(min=0)


# Rows -----------------------------------------------------------------------------------------------------------------
@settings(deadline=None, max_examples=80)
@given(seeds, sizes, scales, st.booleans())
def test_rows_go_where_sorting_sends_them(seed: int, columns: int, scale: float, weighted: bool) -> None:
    rows = scale * randn(seed, 6, columns)
    weights = randn(seed + 1, 6, columns).exp() if weighted else torch.ones_like(rows)
    radius = torch.tensor([0.0, 1e-3, 0.5, 1.0, 3.0, torch.inf], dtype=torch.float64)
    projected = project_rows_weighted_l1(rows, weights if weighted else None, radius, exact=True)
    expected = torch.stack([sorted_projection(*row) for row in zip(rows, weights, radius.tolist(), strict=True)])
    torch.testing.assert_close(projected, expected, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=50)
@given(seeds, sizes, scales)
def test_few_newton_steps_end_inside_and_near(seed: int, columns: int, scale: float) -> None:
    rows, radius = scale * randn(seed, 6, columns), torch.ones(6, dtype=torch.float64)
    exact, few = (project_rows_l1(rows, radius, exact=exact) for exact in (True, False))
    assert (few.abs().sum(1) <= 1 + 1e-12).all()
    # One optimizer step away from the set, a few steps are exact.
    near = rows / rows.abs().sum(1, keepdim=True) * 1.01
    exact, few = (project_rows_l1(near, radius, exact=exact) for exact in (True, False))
    torch.testing.assert_close(few, exact, rtol=0, atol=2e-3)


def test_zeros_of_earlier_projections_do_not_slow_newton_down() -> None:
    """Otherwise a factor would do what the threshold should, and rows lose their large entries step by step."""
    rows = randn(0, 6, 200)
    rows[:, 20:] = 0
    radius = rows.abs().sum(1) / 1.3
    exact, few = (project_rows_l1(rows, radius, exact=exact) for exact in (True, False))
    torch.testing.assert_close(few, exact, rtol=0, atol=1e-9)


def test_few_newton_steps_suffice_for_small_radii() -> None:
    """A step of Adam moves a row of an LSTM by forty times the radius of its gate."""
    radius = torch.logspace(-2.5, -0.5, 128, dtype=torch.float64)
    rows = project_rows_l1(0.1 * randn(0, 128, 128), radius, exact=True)
    moved = rows + 2e-3 * randn(1, 128, 128).clamp(-1, 1)
    exact, few = (project_rows_l1(moved, radius, exact=exact) for exact in (True, False))
    assert (moved.abs().sum(1) / radius).amax() > 30
    assert (few - exact).norm() < 1e-5 * exact.norm()


@pytest.mark.parametrize("exact", [True, False])
def test_rows_inside_are_untouched_bit_for_bit(exact: bool) -> None:
    rows = randn(0, 4, 5)
    assert torch.equal(project_rows_l1(rows, rows.abs().sum(1) * (1 + 1e-12), exact=exact), rows)


@settings(deadline=None, max_examples=50)
@given(seeds, st.integers(1, 4), scales)
def test_blocks_with_an_image_shrink_as_little_as_needed(seed: int, blocks: int, scale: float) -> None:
    rows, image = scale * randn(seed, 5, blocks, 3), randn(seed + 1, 3, 6)
    coefficients, radius = randn(seed + 2, 5, blocks).exp(), torch.tensor([0.0, 0.1, 1.0, 10.0, 1e9]).double()
    projected = project_rows_image_l1(rows, image, coefficients, radius, exact=True)
    factors = projected.norm(dim=2) / rows.norm(dim=2)
    torch.testing.assert_close(projected, rows * factors[:, :, None])
    sizes = (rows @ image).abs().sum(2)
    assert ((coefficients * factors * sizes).sum(1) <= radius * (1 + 1e-9)).all()
    assert (factors <= 1 + 1e-12).all()  # no block grows: coefficients frozen at larger blocks stay valid
    # No other factors that fit are nearer (projected gradient steps from here do not improve).
    cost = coefficients * sizes
    for other in torch.rand(200, 5, blocks, generator=torch.Generator().manual_seed(seed), dtype=torch.float64):
        fits = other * (radius / (cost * other).sum(1)).clamp(max=1)[:, None]
        distance = ((1 - torch.stack([fits, factors])).square() * rows.norm(dim=2).square()).sum(2)
        assert (distance[1] <= distance[0] * (1 + 1e-9) + 1e-12).all()
    assert torch.equal(projected[4], rows[4])


# Matrices -------------------------------------------------------------------------------------------------------------
@settings(deadline=None, max_examples=50)
@given(seeds, sizes, sizes, st.sampled_from([0.3, 1.0, 3.0]))
def test_clipping_is_the_svd_clamp(seed: int, rows: int, columns: int, bound: float) -> None:
    weight = randn(seed, rows, columns)
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    torch.testing.assert_close(clip_singular_values(weight, bound), (u * s.clamp(max=bound)) @ v, rtol=0, atol=1e-7)


def test_clipping_leaves_a_matrix_inside_untouched_bit_for_bit() -> None:
    for dtype in (torch.float32, torch.float64):
        weight = randn(0, 6, 6).to(dtype)
        bound = torch.linalg.matrix_norm(weight, ord=2).item() * (1 + 1e-5)
        assert torch.equal(clip_singular_values(weight, bound), weight)


@pytest.mark.parametrize("scale", [2.0, 30.0, 1000.0])
def test_clipping_from_far_away_ends_inside_in_float32(scale: float) -> None:
    for seed in range(10):
        weight = scale * randn(seed, 24, 24).float()
        clipped = clip_singular_values(weight, 1.0)
        assert torch.linalg.matrix_norm(clipped.double(), ord=2) <= 1 + 1e-5


@settings(deadline=None, max_examples=50)
@given(seeds, sizes, scales)
def test_projections_on_convex_sets_are_idempotent_and_nonexpansive(seed: int, size: int, scale: float) -> None:
    one, other = scale * randn(seed, size, size), scale * randn(seed + 1, size, size)
    radius = torch.ones(size, dtype=torch.float64)
    for project in (
        lambda w: clip_singular_values(w, 1.0),
        lambda w: project_rows_l1(w, radius, exact=True),
        lambda w: project_rows_weighted_l1(w, radius.cumsum(0), radius, exact=True),
    ):
        once = project(one)
        torch.testing.assert_close(project(once), once, rtol=0, atol=1e-7)
        assert (once - project(other)).norm() <= (one - other).norm() * (1 + 1e-7) + 1e-7
        # The obtuse angle that characterises the nearest point of a convex set.
        assert ((one - once) * (project(other) - once)).sum() <= 1e-6 * scale**2


# Budgets --------------------------------------------------------------------------------------------------------------
amounts = st.one_of(st.just(0.0), st.floats(1e-6, 1e3))


@settings(deadline=None, max_examples=200)
@given(st.lists(amounts, min_size=1, max_size=5), st.lists(st.floats(0.05, 1.0), min_size=5, max_size=5), amounts)
def test_shares_of_a_budget(demands: list[float], shares: list[float], budget: float) -> None:
    demand = torch.tensor(demands, dtype=torch.float64)
    share = torch.tensor(shares[: len(demands)], dtype=torch.float64)
    given_out = share_budget(demand[:, None], share, torch.tensor([budget], dtype=torch.float64))[:, 0]
    slack = 1e-9 * (1 + demand.sum().item() + budget)
    assert (given_out >= 0).all()
    assert (given_out <= demand).all()
    assert given_out.sum() <= budget + slack
    assert (given_out >= torch.minimum(demand, share / share.sum() * budget) - slack).all()
    if demand.sum() <= budget * (1 - 1e-12):
        assert torch.equal(given_out, demand)
    else:
        assert given_out.sum() >= min(budget, demand.sum().item()) - slack  # nothing is left over


def test_budgets_are_shared_unit_by_unit() -> None:
    demand = torch.tensor([[1.0, 9.0], [1.0, 1.0], [4.0, 0.0]])
    shares = share_budget(demand, torch.tensor([0.25, 0.25, 0.5]), torch.tensor([4.0, 100.0]))
    torch.testing.assert_close(shares, torch.tensor([[1.0, 9.0], [1.0, 1.0], [2.0, 0.0]]))
