import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_stable.stability import (
    ActiveEntries,
    Box,
    FiniteSet,
    InputSet,
    L2Ball,
    LayerNormOutput,
    Recorded,
    SupNorm,
)
from lightning_stable.stability.inputs.sets import as_input_set
from tests.stability.adversary import member

N = 4
seeds = st.integers(0, 10**6)


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MAKERS: dict[str, Callable[[int], InputSet]] = {
    "sup": lambda seed: SupNorm(0.7),
    "sup per feature": lambda seed: SupNorm(randn(seed, N).abs()),
    "box": lambda seed: Box(randn(seed, N), randn(seed, N) + randn(seed + 1, N).abs()),
    "box far from zero": lambda seed: Box(1.5, 2.0),
    "l2": lambda seed: L2Ball(1.3),
    "active": lambda seed: ActiveEntries(2, height=1.5),
    "all active": lambda seed: ActiveEntries(9),
    "finite": lambda seed: FiniteSet(randn(seed, 6, N)),
    "finite far from zero": lambda seed: FiniteSet(5 + randn(seed, 6, N)),
    "finite with dropout": lambda seed: FiniteSet(randn(seed, 6, N), 0.3),
    "layer norm": lambda seed: LayerNormOutput(randn(seed, N), randn(seed + 1, N), N),
    "plain layer norm": lambda seed: LayerNormOutput(None, None, N),
    "recorded": lambda seed: Recorded(randn(seed, N).clamp(max=0), randn(seed + 1, N).clamp(min=0)),
}
every_set = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def contains(inputs: InputSet, weight: Tensor, x: Tensor, rounding: float = 1e-9) -> bool:
    low, high = inputs.drive(weight)
    product = x @ weight.mT
    return bool((product <= high + rounding).all() and (product >= low - rounding).all())


@every_set
@settings(deadline=None, max_examples=20)
@given(seed=seeds)
def test_the_drive_contains_every_member_and_is_attained(make: Callable[[int], InputSet], seed: int) -> None:
    inputs, weight = make(seed), randn(seed + 2, 5, N)
    assert contains(inputs, weight, member(inputs, 3 * randn(seed + 3, 500, N)))
    high, low = (sign * (inputs.maximizer(sign * weight) * weight).sum(1) for sign in (1, -1))
    low = -low
    torch.testing.assert_close(torch.stack([low, high]), torch.stack(inputs.drive(weight)), rtol=1e-9, atol=1e-9)


@every_set
@settings(deadline=None, max_examples=20)
@given(seed=seeds)
def test_the_maximizer_is_a_member(make: Callable[[int], InputSet], seed: int) -> None:
    inputs, weight = make(seed), randn(seed + 2, 5, N)
    best = inputs.maximizer(weight)
    assert inputs.excess(best) <= 1e-9
    assert contains(inputs, randn(seed + 4, 50, N), best)


@every_set
@settings(deadline=None, max_examples=20)
@given(seed=seeds, probability=st.sampled_from([0.1, 0.5, 0.9]))
def test_dropout_stays_in_the_dropped_set(make: Callable[[int], InputSet], seed: int, probability: float) -> None:
    inputs, weight = make(seed), randn(seed + 2, 5, N)
    x = member(inputs, 3 * randn(seed + 3, 300, N))
    masks = torch.tensor(list(itertools.product([0.0, 1.0], repeat=N)), dtype=torch.float64)
    dropped = inputs.dropped(probability)
    assert contains(dropped, weight, (x[:, None] * masks / (1 - probability)).flatten(0, 1))
    assert contains(dropped, weight, x), "training covers evaluation"
    again = dropped.dropped(0.5)
    assert contains(again, weight, (x[:, None] * masks / (1 - probability) / 0.5).flatten(0, 1))
    assert dropped.guarantee == inputs.guarantee


@settings(deadline=None, max_examples=20)
@given(seed=seeds, probability=st.sampled_from([0.1, 0.5]))
def test_a_finite_set_with_dropout_is_exact(seed: int, probability: float) -> None:
    points, weight = randn(seed, 3, N), randn(seed + 1, 5, N)
    masks = torch.tensor(list(itertools.product([0.0, 1.0], repeat=N)), dtype=torch.float64)
    products = (points[:, None] * masks / (1 - probability)).flatten(0, 1) @ weight.mT
    drive = FiniteSet(points).dropped(probability).drive(weight)
    torch.testing.assert_close(drive.high, products.amax(0))
    torch.testing.assert_close(drive.low, products.amin(0))


@settings(deadline=None, max_examples=20)
@given(seed=seeds, count=st.integers(1, N))
def test_active_entries_by_brute_force(seed: int, count: int) -> None:
    weight = randn(seed, 5, N)
    members = torch.tensor([m for m in itertools.product([0.0, 2.0], repeat=N) if sum(m) <= 2 * count])
    products = members.double() @ weight.mT
    drive = ActiveEntries(count, height=2.0).drive(weight)
    torch.testing.assert_close(drive.high, products.amax(0))
    torch.testing.assert_close(drive.low, products.amin(0))


@settings(deadline=None, max_examples=20)
@given(seed=seeds, affine=st.booleans(), features=st.integers(1, 7))
def test_layer_norm_outputs_reach_the_bound_and_never_pass_it(seed: int, affine: bool, features: int) -> None:
    norm = nn.LayerNorm(features, elementwise_affine=affine).double()
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    inputs, weight = LayerNormOutput(norm.weight, norm.bias, features), randn(seed, 5, features)
    assert contains(inputs, weight, norm(10.0 ** torch.arange(-4, 5)[:, None, None] * randn(seed, 1, 50, features)))
    # Large inputs in the direction of the row: eps no longer counts.
    gamma = norm.weight if affine else torch.ones(features, dtype=torch.float64)
    best = (norm(1e6 * weight * gamma) * weight).sum(1)
    torch.testing.assert_close(best, inputs.drive(weight).high, rtol=1e-6, atol=1e-6)


def test_sets_of_live_parameters_follow_them() -> None:
    norm, table = nn.LayerNorm(N).double(), nn.Embedding(3, N).double()
    weight = randn(0, 5, N)
    sets = [
        LayerNormOutput(norm.weight, norm.bias, N),
        LayerNormOutput(norm.weight, norm.bias, N).dropped(0.5),
        FiniteSet(table.weight),
        FiniteSet(table.weight).dropped(0.5),
    ]
    before = [inputs.drive(weight).high for inputs in sets]
    with torch.no_grad():
        norm.weight.mul_(3)
        table.weight.mul_(3)
    for inputs, high in zip(sets, before, strict=True):
        torch.testing.assert_close(inputs.drive(weight).high, 3 * high)


def test_a_number_is_not_rounded_down() -> None:
    # The float32 next to 0.7 is smaller than 0.7.
    identity = torch.eye(N, dtype=torch.float64)
    for inputs in (SupNorm(0.7), as_input_set(0.7), Box(-0.7, 0.7)):
        assert (inputs.drive(identity).high >= 0.7).all()


def test_drives_have_the_dtype_of_the_weight() -> None:
    for make in MAKERS.values():
        assert make(0).drive(torch.randn(5, N)).high.dtype == torch.float32


# Excess ---------------------------------------------------------------------------------------------------------------
@every_set
def test_members_have_no_excess(make: Callable[[int], InputSet]) -> None:
    inputs = make(0)
    assert inputs.excess(inputs.maximizer(randn(1, 60, N)).view(3, 20, N)) <= 1e-12


@pytest.mark.parametrize(
    ("inputs", "x", "excess"),
    [
        (SupNorm(2.0), [0.0, 0.0, -2.5, 0.0], 0.5),
        (Box(0.0, 1.0), [0.5, 0.5, 1.25, 0.5], 0.25),
        (L2Ball(5.0), [3.0, 4.0, 0.0, 0.0], 0.0),
        (L2Ball(4.0), [3.0, 4.0, 0.0, 0.0], 1.0),
        (ActiveEntries(2), [1.0, 1.0, 1.0, 0.0], 1.0),
        (ActiveEntries(2), [0.0, 1.5, 0.0, 0.0], 0.5),
        (ActiveEntries(2), [0.0, -0.5, 0.0, 0.0], 0.5),
        (FiniteSet(torch.eye(4)), [0.0, 0.0, 0.0, 3.0], 2.0),
        (FiniteSet(torch.eye(4), 0.5), [0.0, 2.0, 0.0, 0.0], 0.0),
        (LayerNormOutput(None, None, 4), [2.0, -2.0, 2.0, -2.0], 1.0),  # twice as long as an output can be
        (LayerNormOutput(None, None, 4), [0.5, 0.5, 0.5, 0.5], 0.5),  # their mean is 0
        (LayerNormOutput(None, torch.ones(4), 4), [2.0, 0.0, 2.0, 0.0], 0.0),
        (LayerNormOutput(torch.tensor([1.0, 1.0, 0.0, 1.0]), None, 4), [0.0, 0.0, 0.1, 0.0], math.inf),
    ],
)
def test_excess_is_how_far_inputs_lie_outside(inputs: InputSet, x: list[float], excess: float) -> None:
    assert inputs.excess(torch.tensor([[x]])).item() == pytest.approx(excess, abs=1e-5)


# Words and bad arguments ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (SupNorm(2.0), "|x| <= 2"),
        (Box(0.0, 1.5), "0 <= x <= 1.5"),
        (Box(0.0, 1.0, label="pixels"), "pixels"),
        (Box(0.0, 1.0, label="pixels").dropped(0.5), "pixels with dropout"),
        (L2Ball(3.0), "||x||_2 <= 3"),
        (ActiveEntries(8), "at most 8 entries active in [0, 1]"),
        (FiniteSet(torch.eye(4)), "4 points"),
        (FiniteSet(torch.eye(4)).dropped(0.5).dropped(0.5), "4 points, dropout 0.75"),
        (LayerNormOutput(None, None, 4), "LayerNorm output"),
        (LayerNormOutput(None, None, 4).dropped(0.5), "LayerNorm output, dropout 0.5"),
        (Recorded(torch.tensor([-1.0]), torch.tensor([2.0])), "seen in data: -1 <= x <= 2"),
        (Recorded(torch.tensor([-1.0]), torch.tensor([2.0])).dropped(0.5), "seen in data: -2 <= x <= 4"),
    ],
)
def test_descriptions(inputs: InputSet, words: str) -> None:
    assert inputs.describe() == words


@pytest.mark.parametrize("bound", [-1.0, math.nan, math.inf, torch.tensor([1.0, -1.0]), torch.tensor([math.nan])])
def test_a_bound_is_finite_and_nonnegative(bound: float | Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"`(input_bound|bound)` must be (finite and nonnegative|a number in \[-inf, inf\]). Got"
    ):
        as_input_set(bound)


def test_numbers_of_numpy_are_bounds() -> None:
    assert as_input_set(np.float32(2.0)).describe() == "|x| <= 2"


@pytest.mark.parametrize("value", ["2.0", True, None, [1.0], 1j])
def test_other_things_are_no_bounds(value: object) -> None:
    with pytest.raises(TypeError, match="`input_bound` must be a number, an input set"):
        as_input_set(value)


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (-math.inf, 0.0), (0.0, math.nan)])
def test_a_box_has_ordered_finite_ends(low: float, high: float) -> None:
    with pytest.raises(
        ValueError, match=r"`(low|high)` must be (at most `high`, and both finite|a number in \[-inf, inf\]). Got"
    ):
        Box(low, high)
    with pytest.raises(ValueError, match=r"`low` must be at most `high`, and both finite. Got"):
        Box(torch.tensor([low]), torch.tensor([high]))


@pytest.mark.parametrize("radius", [-1.0, math.nan, math.inf])
def test_a_ball_has_a_radius(radius: float) -> None:
    with pytest.raises(ValueError, match=r"`radius` must be a number in \[0, inf\). Got"):
        L2Ball(radius)


@pytest.mark.parametrize(
    ("count", "height", "error"),
    [(0, 1.0, ValueError), (1.5, 1.0, TypeError), (1, 0.0, ValueError), (1, math.inf, ValueError)],
)
def test_active_entries_are_counted(count: int, height: float, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"`(count|height)` must be a"):
        ActiveEntries(count, height)


@pytest.mark.parametrize("shape", [(4,), (0, 4), (2, 3, 4)])
def test_a_finite_set_has_points(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must have shape \(points, features\). Got"):
        FiniteSet(torch.zeros(shape))
    with pytest.raises(TypeError, match=r"`points` must be a tensor"):
        FiniteSet([[1.0]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`drop_probability` must be a number in \[0, 1\). Got 1"):
        FiniteSet(torch.zeros(1, 1), 1)


@pytest.mark.parametrize("make", [SupNorm, as_input_set, lambda x: Box(x, x), lambda x: FiniteSet(x[None])])
@pytest.mark.parametrize(
    "values",
    [
        torch.tensor([1.0, math.nan]),
        torch.tensor([1.0, math.inf]),
        torch.tensor([1.0, 5.0j]),
        torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn),
        torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.quint8),
        torch.tensor([1, 2**53 + 1]),
        torch.tensor([0, torch.iinfo(torch.int64).max]),
        torch.ones(2, device="meta"),
        nn.Parameter(torch.tensor([1.0, math.nan])),
    ],
    ids=str,
)
def test_sets_are_made_of_finite_real_numbers(make: Callable[[Tensor], InputSet], values: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^`(input_bound|bound|low|points)` must be"):
        make(values)


@pytest.mark.parametrize("value", [10**400, 1j, math.nan])
def test_numbers_that_are_no_bounds(value: Any) -> None:
    for make in (as_input_set, SupNorm, L2Ball):
        with pytest.raises((ValueError, TypeError), match="must be"):
            make(value)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int64, torch.bool])
def test_integers_are_exact_and_do_not_wrap_around(dtype: torch.dtype) -> None:
    ones = torch.ones(2, dtype=dtype)
    weight = torch.tensor([[1.0, -3.0]], dtype=torch.float64)
    assert [end.item() for end in SupNorm(ones).drive(weight)] == [-4.0, 4.0]
    assert [end.item() for end in FiniteSet(ones[None]).drive(weight)] == [-2.0, -2.0]
    largest = torch.full((1,), 255 if dtype == torch.uint8 else 1, dtype=dtype)
    assert SupNorm(largest).dropped(0.5).describe() == f"|x| <= {2 * int(largest)}"


def test_a_live_parameter_is_checked_now_and_read_later() -> None:
    points = nn.Parameter(torch.ones(2, 3))
    inputs = FiniteSet(points)
    with torch.no_grad():
        points.fill_(2.0)
    assert inputs.drive(torch.ones(1, 3)).high.item() == 6.0


def test_a_large_ball_is_not_lost_on_small_weights() -> None:
    assert L2Ball(1e200).drive(torch.tensor([[1e-200]], dtype=torch.float64)).high.item() == pytest.approx(1.0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_rounding_is_no_excess(scale: float) -> None:
    """What one rounding does to an entry is taken off, and by each entry's own size: a large one excuses no other."""
    high = torch.tensor([scale, 1e-3 * scale])
    box, rounded = Box(-high, high), high * (1 + 2 * torch.finfo(torch.float32).eps)
    assert (rounded > high).all()
    assert box.excess(rounded) == 0
    assert ActiveEntries(1, scale).excess(rounded * torch.tensor([1.0, 0.0])) == 0
    assert L2Ball(scale).excess(rounded * torch.tensor([1.0, 0.0])) == 0
    outside = high * torch.tensor([1.0, 1 + 1e-5])
    assert box.excess(outside).item() == pytest.approx(1e-8 * scale, rel=0.1)


def test_the_ends_of_a_box_fit_together() -> None:
    with pytest.raises(ValueError, match=r"`low` and `high` must .*Got low of shape \(3,\), high of shape \(4,\)"):
        Box(torch.zeros(3), torch.ones(4))
    assert Box(torch.zeros(3), 1.0).features == 3
