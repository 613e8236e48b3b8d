import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_stable.recurrence import Interval
from lightning_stable.stability import Box, FiniteSet, InputSet, SupNorm
from lightning_stable.stability.projection.gate_bound import GateRows, bound_gate, leave_worst_input
from tests.nets import pairwise

INPUTS = [SupNorm(2.0), Box(-3.0, -1.0), Box(1.0, 3.0)]


def gate(seed: int, scale: float, bias: float | None, units: int = 3) -> GateRows:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    rows = GateRows(scale * randn(units, 4), scale * randn(units, 5), None, None)
    return rows if bias is None else rows._replace(bias_ih=bias + randn(units), bias_hh=randn(units))


def largest(rows: GateRows, inputs: InputSet, image: Tensor | None = None) -> Tensor:
    """Largest pre-activation: the certificate of a gate."""
    hidden = rows.weight_hh if image is None else rows.weight_hh @ image
    bias = 0 if rows.bias_ih is None else rows.bias_ih + rows.bias_hh
    return inputs.drive(rows.weight_ih).high + hidden.abs().sum(1) + bias


def bounded(rows: GateRows, inputs: InputSet, bound: float) -> GateRows:
    return bound_gate(rows, inputs.drive(rows.weight_ih), rows.weight_hh.abs().sum(1), bound)


@settings(deadline=None, max_examples=80)
@given(
    st.integers(0, 10**6),
    st.sampled_from([0.0, 0.3, 3.0, 100.0]),
    st.sampled_from([None, -3.0, 0.0, 5.0, 50.0]),
    st.sampled_from([0.51, 0.8, 0.999]),
    st.sampled_from(INPUTS),
)
def test_the_gate_ends_at_the_bound_or_was_inside(
    seed: int, scale: float, bias: float | None, bound: float, inputs: InputSet
) -> None:
    rows = gate(seed, scale, bias)
    limit, before = math.log(bound / (1 - bound)), largest(rows, inputs)
    inside, rounding = before <= limit, 1e-12 * (1 + before.abs())
    result = bounded(rows, inputs, bound)
    after = largest(result, inputs)
    assert (after <= limit + rounding).all()
    assert (after >= limit - rounding)[~inside].all()  # and no further than needed
    for old, new in zip(rows, result, strict=True):
        if old is not None:
            assert torch.equal(old[inside], new[inside])


@pytest.mark.parametrize(("inputs", "bias", "scale"), pairwise(INPUTS, [None, 0.0, 20.0], [0.2, 3.0]))
def test_the_gate_moves_as_little_as_a_row_factor_and_biases_can(
    inputs: InputSet, scale: float, bias: float | None
) -> None:
    bound = 0.8
    rows = gate(0, scale, bias)
    result = bounded(rows, inputs, bound)

    def distance(new: GateRows) -> Tensor:
        moved = [(a - b).square().reshape(len(a), -1).sum(1) for a, b in zip(rows, new, strict=True) if a is not None]
        return torch.stack(moved).sum(0).sqrt()

    nearest = distance(result)
    limit = math.log(bound / (1 - bound))
    for s in torch.linspace(0, 1, 2001, dtype=torch.float64):
        scaled = rows._replace(weight_ih=s * rows.weight_ih, weight_hh=s * rows.weight_hh)
        if rows.bias_ih is None:
            fits = largest(scaled, inputs) <= limit
        else:
            excess = (largest(scaled, inputs) - limit).clamp(min=0)
            scaled = scaled._replace(bias_ih=rows.bias_ih - excess / 2, bias_hh=rows.bias_hh - excess / 2)
            fits = torch.ones_like(excess, dtype=torch.bool)
        assert (nearest <= distance(scaled) + 1e-9)[fits].all()


def test_a_bound_that_no_row_without_biases_can_have_empties_the_row() -> None:
    rows = gate(0, 1.0, None)
    result = bounded(rows, SupNorm(2.0), 0.4999)
    assert not result.weight_ih.any()
    assert not result.weight_hh.any()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([0.3, 3.0, 30.0]), st.sampled_from([None, 0.0, 5.0]), st.booleans())
def test_leaving_the_worst_input_only_lowers_the_gate(
    seed: int, scale: float, bias: float | None, projected: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs = FiniteSet(torch.randn(6, 4, generator=generator, dtype=torch.float64))
    image = torch.randn(5, 7, generator=generator, dtype=torch.float64) if projected else None
    rows, bound = gate(seed, scale, bias), 0.8

    def at(new: GateRows, x: Tensor) -> Tensor:
        hidden = new.weight_hh if image is None else new.weight_hh @ image
        return (new.weight_ih * x).sum(1) + hidden.abs().sum(1)

    worst = inputs.maximizer(rows.weight_ih)
    result = leave_worst_input(rows, worst, image, 1.0, bound)
    assert (at(result, worst) <= at(rows, worst) + 1e-9).all()
    # Budgets of the recurrent step were made with the row norms from before.
    old, new = (r.weight_hh if image is None else r.weight_hh @ image for r in (rows, result))
    assert (new.abs().sum(1) <= old.abs().sum(1) * (1 + 1e-12)).all()
    inside = largest(rows, inputs, image) <= math.log(bound / (1 - bound))
    assert torch.equal(result.weight_ih[inside], rows.weight_ih[inside])
    assert torch.equal(result.weight_hh[inside], rows.weight_hh[inside])


def test_intervals_without_a_finite_end_are_no_excuse() -> None:
    rows = gate(0, 1.0, 0.0)
    line = Interval(torch.full((3,), -torch.inf).double(), torch.full((3,), 4.0).double())
    result = bound_gate(rows, line, rows.weight_hh.abs().sum(1), 0.8)
    assert all(torch.isfinite(value).all() for value in result if value is not None)
