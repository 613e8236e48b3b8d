import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_stable import project_
from lightning_stable.stability import Box, Constraint, FiniteSet
from lightning_stable.stability.inputs.sets import InputSet
from lightning_stable.stability.projection.projector import Projector
from lightning_stable.stability.projection.worst_inputs import WorstInputs

FEATURES = 12


def randn(seed: int, *size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.3]), st.floats(0, 3), st.sampled_from([1.0, 1e-3, 1e3]))
def test_after_a_move_the_largest_products_are_those_of_the_whole_set(
    seed: int, dropout: float, distance: float, scale: float
) -> None:
    inputs = FiniteSet(scale * randn(seed, 200, FEATURES), dropout)
    rows = randn(seed + 1, 6, FEATURES)
    worst = WorstInputs(inputs, rows, reading=True).of(torch.tensor([4, 1, 3]))
    moved = worst.rows + distance * randn(seed + 2, 3, FEATURES)

    highest = worst.highest_after(moved, worst.points())

    torch.testing.assert_close(highest, inputs.highest(moved), rtol=1e-5, atol=1e-5 * scale)


def test_after_a_small_move_few_points_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, looked_at = FiniteSet(randn(0, 500, FEATURES)), []
    worst = WorstInputs(inputs, randn(1, 3, FEATURES), reading=True)
    plain = inputs.products

    def counting(rows: Tensor, chosen: Tensor | None = None) -> Tensor:
        looked_at.append(500 if chosen is None else len(chosen))
        return plain(rows, chosen)

    monkeypatch.setattr(inputs, "products", counting)
    worst.highest_after(worst.rows - 0.01 * worst.points(), worst.points())

    assert max(looked_at) < 25


def test_what_is_not_finite_is_not_left_out() -> None:
    points = randn(0, 50, FEATURES)
    points[7, 2] = torch.nan
    worst = WorstInputs(FiniteSet(points, checked=False), randn(1, 3, FEATURES), reading=True)

    assert worst.highest_after(worst.rows, worst.points()).isnan().all()


@pytest.mark.parametrize("inputs", [Box(-1.0, 2.0), FiniteSet(randn(0, 30, FEATURES))])
def test_other_sets_and_other_devices_ask_the_set(inputs: InputSet) -> None:
    rows, moved = randn(1, 3, FEATURES), randn(2, 3, FEATURES)
    worst = WorstInputs(inputs, rows, reading=False)

    assert worst.products is None
    torch.testing.assert_close(worst.highest(), inputs.highest(rows))
    torch.testing.assert_close(worst.points(), inputs.maximizer(rows))
    torch.testing.assert_close(worst.highest_after(moved, worst.points()), inputs.highest(moved))


def test_none_of_the_rows_may_have_to_move() -> None:
    worst = WorstInputs(FiniteSet(randn(0, 30, FEATURES)), randn(1, 3, FEATURES), reading=True).of(
        torch.tensor([]).long()
    )
    points = worst.points()
    assert points.shape == (0, FEATURES)
    assert worst.highest_after(worst.rows, points).shape == (0,)


@torch.no_grad()
def test_one_direction_leaves_its_bound_and_the_other_does_not() -> None:
    """Both are handled together, over the same table."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(40, 6), nn.LSTM(6, 5, bidirectional=True))
    plain = copy.deepcopy(model)
    for each in (model, plain):
        project_(each, 0.9)
        each.get_parameter("1.bias_ih_l0")[5:10].sub_(1.0)
        each.get_parameter("1.bias_ih_l0_reverse")[5:7].add_(3.0)
    Projector(model, Constraint(0.9)).project(strict=False)
    project_(plain, 0.9, strict=False)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
