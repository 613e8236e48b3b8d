import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_stable.recurrence.intervals import (
    Interval,
    saturating,
    sigmoid_slope,
    tanh_least,
    tanh_magnitude,
    tanh_slope,
)

ends = st.tuples(st.floats(-30, 30), st.floats(-30, 30)).map(sorted)
ROUNDING = 1e-12


def interval(pair: list[float]) -> Interval:
    low, high = torch.tensor(pair, dtype=torch.float64)
    return Interval(low, high)


def points(pre: Interval) -> Tensor:
    return torch.cat([torch.linspace(float(pre.low), float(pre.high), 501, dtype=torch.float64), torch.stack(pre)])


@settings(deadline=None, max_examples=100)
@given(ends)
def test_slopes_and_values_over_an_interval_are_attained_bounds(pair: list[float]) -> None:
    pre, x = interval(pair), points(interval(pair))
    x = torch.cat([x, torch.zeros(1, dtype=x.dtype)]) if pre.low <= 0 <= pre.high else x
    for bound, values in (
        (sigmoid_slope(pre), torch.sigmoid(x) * torch.sigmoid(-x)),
        (tanh_slope(pre), 1 / torch.cosh(x).square()),
        (tanh_magnitude(pre), torch.tanh(x).abs()),
    ):
        assert bound.item() == pytest.approx(values.max().item(), rel=ROUNDING)
    assert tanh_least(pre).item() == pytest.approx(torch.tanh(x).abs().min().item(), abs=ROUNDING)


@settings(deadline=None, max_examples=100)
@given(ends, st.floats(0, 10), st.floats(0, 10))
def test_tanh_cannot_be_steep_and_large_at_once(pair: list[float], slope_part: float, value_part: float) -> None:
    pre = interval(pair)
    steep, large = torch.tensor(slope_part, dtype=torch.float64), torch.tensor(value_part, dtype=torch.float64)
    bound = saturating(steep, large, tanh_least(pre), tanh_magnitude(pre))
    x = points(pre)
    values = slope_part / torch.cosh(x).square() + value_part * torch.tanh(x).abs()
    assert values.max() <= bound * (1 + ROUNDING) + ROUNDING
    # Sharper than the two bounds by themselves.
    assert bound <= (tanh_slope(pre) * steep + tanh_magnitude(pre) * large) * (1 + ROUNDING) + ROUNDING


@settings(deadline=None, max_examples=50)
@given(ends, ends)
def test_product_of_intervals(first: list[float], second: list[float]) -> None:
    product = interval(first).times(interval(second))
    values = points(interval(first))[:, None] * points(interval(second))
    assert product.low == pytest.approx(values.min().item(), rel=ROUNDING, abs=ROUNDING)
    assert product.high == pytest.approx(values.max().item(), rel=ROUNDING, abs=ROUNDING)


def test_moving_widening_and_splitting() -> None:
    pre = Interval(torch.tensor([-1.0, 2.0]), torch.tensor([1.0, 3.0]))
    moved = pre.shift(torch.tensor([0.5, -5.0])).widen(torch.tensor([0.5, 0.0]))
    assert moved.low.tolist() == [-1.0, -3.0]
    assert moved.high.tolist() == [2.0, -2.0]
    assert moved.magnitude.tolist() == [2.0, 3.0]
    assert moved.distance_to_zero.tolist() == [0.0, 2.0]
    assert [part.high.tolist() for part in moved.chunk(2)] == [[2.0], [-2.0]]


def test_slopes_far_from_zero_do_not_cancel_to_zero() -> None:
    far = interval([300.0, 301.0])
    assert 0 < tanh_slope(far) < 1e-250
    assert 0 < sigmoid_slope(Interval(-far.high, -far.low)) < 1e-120


def test_an_unknown_pre_activation_has_the_whole_range() -> None:
    line = Interval(torch.tensor(-torch.inf), torch.tensor(torch.inf))
    assert (sigmoid_slope(line), tanh_slope(line), tanh_magnitude(line)) == (0.25, 1.0, 1.0)
