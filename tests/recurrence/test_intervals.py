import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_stable.recurrence.intervals import (
    Interval,
    product_maximum,
    saturating,
    sigmoid_maximum,
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


parts = st.one_of(st.just(0.0), st.floats(-3, 3).map(lambda x: 10**x))
unit = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted)


@settings(deadline=None, max_examples=200)
@given(unit, parts, parts, st.sampled_from([1.0, -1.0]))
def test_a_gate_cannot_be_steep_and_open_at_once(pair: list[float], value: float, slope: float, sign: float) -> None:
    gate = interval(pair)
    value_part, slope_part = sign * torch.tensor(value).double(), torch.tensor(slope).double()
    bound = sigmoid_maximum(value_part, slope_part, gate, 1 - gate.high)
    s = points(gate)
    largest = (s * value_part + s * (1 - s) * slope_part).max()
    assert largest <= bound + ROUNDING * (value + slope)
    assert bound <= largest + 1e-5 * (value + slope)  # attained, but for the grid


@settings(deadline=None, max_examples=300)
@given(unit, unit, parts, parts)
def test_a_product_cannot_be_steep_in_all_at_once(
    gate: list[float], tanh: list[float], slope: float, value: float
) -> None:
    s, u = points(interval(gate))[:, None], points(interval(tanh))
    slope_part, value_part = torch.tensor(slope).double(), torch.tensor(value).double()
    bound = product_maximum(slope_part, value_part, interval(gate), interval(tanh))
    largest = (s * (1 - u.square()) * slope_part + s * (1 - s) * u * value_part).max()
    assert largest <= bound + ROUNDING * (slope + value)
    assert bound <= largest + 1e-4 * (slope + value)


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.25, 0.251, 0.26, 0.28, 0.288, 0.2887, 0.3, 1.0])
def test_the_product_of_a_free_gate_and_tanh(ratio: float) -> None:
    """``max(P, Q / 4)``; between 1/4 and 12^-1/2 there is a maximum inside, which must not be larger."""
    free = interval([0.0, 1.0])
    bound = product_maximum(torch.tensor(ratio, dtype=torch.float64), torch.tensor(1.0).double(), free, free)
    assert bound.item() == pytest.approx(max(ratio, 0.25), rel=1e-12)


def test_the_maximum_of_a_product_may_lie_inside() -> None:
    # At P / Q = .27: the larger root of 3 x u^2 - u + x = 0, and an s of 1 - 2 x u; no edge of the box reaches it.
    x = 0.27
    u = (1 + (1 - 12 * x * x) ** 0.5) / (6 * x)
    s = 1 - 2 * x * u
    box = interval([s - 0.05, s + 0.05]), interval([u - 0.05, u + 0.05])
    bound = product_maximum(torch.tensor(x, dtype=torch.float64), torch.tensor(1.0).double(), *box)
    assert bound.item() == pytest.approx(s * (1 - u * u) * x + s * (1 - s) * u, rel=1e-12)


def test_extreme_parts_are_no_nan() -> None:
    free, zero, one = interval([0.0, 1.0]), torch.tensor(0.0).double(), torch.tensor(1.0).double()
    assert product_maximum(one, zero, free, free) == 1
    assert product_maximum(zero, one, free, free) == 0.25
    assert product_maximum(zero, zero, free, free) == 0
    assert sigmoid_maximum(zero, zero, free) == 0
