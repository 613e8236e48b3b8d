"""Windows certified for their inputs: no run from another state leaves the tube, and simple tubes are exact."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_stable import certify_windows, project_, register_recurrence, truncation_profile
from lightning_stable.recurrence import Recurrence, around, recurrences_of
from lightning_stable.recurrence.around import Around, Ball, euclidean
from lightning_stable.recurrence.base import State, Weights
from lightning_stable.recurrence.enclosed import Enclosed, Premises, drive
from lightning_stable.recurrence.gru import GRURecurrence
from lightning_stable.recurrence.intervals import Interval, tanh_slope
from lightning_stable.recurrence.rnn import RNNRecurrence
from lightning_stable.recurrence.tubes import Arounds, Metric, NormTube, packed, unpacked
from lightning_stable.stability import FiniteSet, L2Ball
from lightning_stable.stability.inputs.resolve import resolve_sources, walk_layers
from lightning_stable.stability.inputs.sets import SupNorm
from lightning_stable.stability.tube import enclose, tube_bounds
from lightning_stable.stability.window_bounds import window_bounds
from tests.nets import CELLS, LAYERS, net, set_
from tests.recurrence.test_registry import LeakyCell
from tests.stability.attack import attack
from tests.stability.windows import linear

B = 2.0
SHAPES = [(1, False), (2, False), (1, True), (2, True)]


def uniform(*shape: int, seed: int = 0, size: float = B) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return size * (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1)


def stable(name: str, **kwargs: Any) -> nn.Module:
    module = net(name, **kwargs)
    project_(module, 0.95, input_bound=B)
    return module


# The bound ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("layers", "bidirectional"), SHAPES)
@pytest.mark.parametrize("name", LAYERS)
def test_no_run_leaves_the_tube(name: str, layers: int, bidirectional: bool) -> None:
    module = stable(name, units=4, num_layers=layers, bidirectional=bidirectional)
    ratio, _ = attack(module, B, window=3, pairs=32, steps=12)
    assert 1e-4 < ratio <= 1


@pytest.mark.parametrize("name", ["rnn", "relu", "lstm", "gru", "ugrnn", "intersection"])
def test_a_unit_alone(name: str) -> None:
    """Without recurrent weights the tube of one step is exact, where every part of the formula is seen."""
    module = net(name, inputs=1, units=1, scale=2.0, seed=3)
    set_(module, weight_hh=0.0, **({"weight_hy": 0.0} if name == "intersection" else {}))
    if name == "lstm":
        set_(module, bias_ih=[-3.0, 0.0, 0.0, 0.0])  # no c grows beyond those that runs start from
    ratio, _ = attack(module, 1.0, window=1, pairs=64, steps=60)
    assert (0.999 if name in ("lstm", "gru", "ugrnn") else 0) <= ratio <= 1  # what has no state has no error


@pytest.mark.parametrize("name", ["lstm", "gru", "ugrnn", "rnn"])
def test_gates_are_bounded_on_their_whole_interval(name: str) -> None:
    """With one unit that sees itself, the first step is attained up to what independent gates lose."""
    module = net(name, inputs=1, units=1, scale=3.0, seed=1)
    ratio, _ = attack(module, 1.0, window=1, pairs=64, steps=60)
    assert 0.3 < ratio <= 1


@pytest.mark.parametrize("layers", [1, 2])
def test_a_linear_net_attains_it(layers: int) -> None:
    module, x = linear(0.5, num_layers=layers), torch.ones(6, 2, 1, dtype=torch.float64)
    bounds = certify_windows(module, x, input_bound=1.0)
    # All states of the box are reached, nearly, by runs from the largest states of all layers.
    first = certify_windows(module, x[:1], input_bound=1.0)
    if layers == 1:
        torch.testing.assert_close(bounds, first * 0.5**5, rtol=1e-9, atol=0)
    assert (bounds < first).all()
    ratio, _ = attack(module, 1.0, window=6, pairs=16, steps=10)
    assert ratio <= 1


def scan(tubes: Sequence[Enclosed], x: Tensor) -> tuple[Tensor, State]:
    """Return the outputs of the last tube at all steps, and its last state."""
    values = drive(tubes[:1], x)
    for tube in tubes:
        state, outputs = tube.initial_state(values[0]), []
        for value in values:
            state = tube.step(value, state)
            outputs.append(tube.output(state))
        values = torch.stack(outputs)
    return values, state


@pytest.mark.parametrize("name", LAYERS)
def test_the_run_in_the_middle_is_the_truncated_one(name: str) -> None:
    module, x = stable(name, num_layers=2), uniform(5, 4, 3)
    recurrences = recurrences_of(module)
    layers = list(walk_layers(recurrences, resolve_sources(module, recurrences, SupNorm(B)), training=False))
    tubes = enclose(layers)
    values, _ = scan(tubes, x)
    torch.testing.assert_close(values[..., 0, :], module(x)[0], rtol=0, atol=1e-14)
    assert (values[..., 1, :] <= values[..., 0, :]).all()
    assert (values[..., 0, :] <= values[..., 2, :]).all()


class PlainRNNTube(NormTube):
    """The RNN's tube with intervals in place of radii: a tanh and a slope at both ends."""

    relu = False

    def __init__(self, weights: Weights, metric: Metric) -> None:
        super().__init__(weights, metric)
        self.entries = self.grown * weights["weight_hh"].new_tensor(metric.entries)

    def begin(self, state: Arounds) -> tuple[Tensor, ...]:
        return *packed(state), self.size(state[0].radius)

    def arounds(self, state: tuple[Tensor, ...]) -> Arounds:
        return unpacked(state[:-1])

    def step(self, driven: Ball, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (hidden,), distance, recurrent = self.arounds(state), state[-1], self.maps["weight_hh"]
        own, rounding = recurrent(hidden), recurrent.rounding(hidden.value)
        pre = driven + Ball(own.value, torch.minimum(own.radius, self.reach * distance + rounding))
        far = self.rate * distance + self.size((driven.radius + rounding).expand_as(hidden.value))
        if self.relu:
            after = pre.map(torch.relu)
        else:
            slopes = tanh_slope(Interval(pre.around.low, pre.around.high))
            far = far * slopes.amax(-1, keepdim=True)
            after = pre.map(torch.tanh)
        after = after.within(far * self.entries)
        return *packed((after,)), torch.minimum(far, self.size(after.radius))

    def size(self, radius: Tensor) -> Tensor:
        return euclidean(radius * self.shrink)[..., None]

    def spread(self, output: Around, state: tuple[Tensor, ...]) -> Tensor:
        return torch.minimum(super().spread(output, state), self.gain * state[-1][..., 0])


class PlainReLUTube(PlainRNNTube):
    relu = True


@pytest.mark.parametrize("name", LAYERS)
def test_fast_forms_equal_plain_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Radii in place of intervals, sigmoids in place of tanhs, and inputs that are read a step at a time."""
    module, x = stable(name, units=6, num_layers=2, scale=2.0), uniform(12, 20, 3)
    if name in ("rnn", "relu"):  # entry by entry these grow
        for weight in (module.weight_hh_l0, module.weight_hh_l1):
            q, _ = torch.linalg.qr(weight.detach())
            weight.data = 0.9 * q
    x = x * torch.logspace(-2, 0, 20, dtype=torch.float64)[:, None]  # closed units, and those with slope 1
    recurrences = recurrences_of(module)
    layers = list(walk_layers(recurrences, resolve_sources(module, recurrences, SupNorm(B)), training=False))
    fast = [tube_bounds(enclose(layers), x[:window]) for window in (1, 4, 12)]
    monkeypatch.setattr(around, "_tanh", torch.tanh)
    plain = PlainReLUTube if name == "relu" else PlainRNNTube
    monkeypatch.setattr(RNNRecurrence, "tube", lambda self, weights, metric: plain(weights, metric))
    tubes = enclose(layers)
    for window, bounds in zip((1, 4, 12), fast, strict=True):
        _, state = scan(tubes, x[:window])
        torch.testing.assert_close(bounds, tubes[-1].spread(state), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends_of_a_tanh_are_as_exact_as_bounds_ask(dtype: torch.dtype) -> None:
    x = torch.cat((torch.linspace(-30, 30, 200_001, dtype=dtype), torch.linspace(-3, 3, 200_001, dtype=dtype)))
    exact = np.tanh(x.numpy().astype(np.longdouble))
    assert np.abs(around._tanh(x).numpy() - exact).max() <= 9 * torch.finfo(dtype).eps


def test_a_norm_is_carried_where_entries_would_grow() -> None:
    module = nn.RNN(3, 32).double()
    q, _ = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    set_(module, weight_hh=0.9 * q)
    x = uniform(80, 2, 3)
    bounds = certify_windows(module, x)
    start = 32**0.5  # the norm of the box
    assert (bounds <= start * 0.9**80 + 1e-9).all()


@given(state_bound=st.floats(0.0, 3.0), more=st.floats(0.0, 2.0), before=st.floats(B, 4.0))
@settings(max_examples=15, deadline=None)
def test_more_that_may_come_before_never_lowers_it(state_bound: float, more: float, before: float) -> None:
    module, x = stable("lstm"), uniform(4, 3, 3)
    small = certify_windows(module, x, state_bound=state_bound, input_bound=B)
    large = certify_windows(module, x, state_bound=state_bound + more, input_bound=before)
    assert (small <= large * (1 + 1e-12)).all()


def test_less_than_the_worst_case() -> None:
    module, x = stable("lstm", units=8), uniform(30, 5, 3)
    recurrences = recurrences_of(module)
    (worst,) = window_bounds(recurrences, resolve_sources(module, recurrences, SupNorm(B)))
    assert (certify_windows(module, x, input_bound=B) < worst.errors(30)[-1]).all()


# Rounding -------------------------------------------------------------------------------------------------------------
def half_cancelled(module: nn.Module, units: int) -> Tensor:
    """Make inputs whose products nearly cancel: in float32 the pre-activations are off by some 1e-3."""
    with torch.no_grad():
        weight = module.weight_ih_l0
        weight[:, units:] = -weight[:, :units] + 1e-4 * weight[:, units:]
    x = uniform(25, 16, units, size=3000.0).float()
    return torch.cat((x, x), dim=-1)


@pytest.mark.parametrize("name", LAYERS)
def test_float32_is_inside(name: str) -> None:
    """The exact run, in float64, is in the tube around the float32 run, however much rounding moves them apart."""
    module = net(name, inputs=40, units=6, dtype=torch.float32, **({"bias": False} if name == "relu" else {}))
    x = half_cancelled(module, 20)
    exact = net(name, inputs=40, units=6, **({"bias": False} if name == "relu" else {}))
    exact.load_state_dict(module.state_dict())
    recurrences = recurrences_of(module)
    (layer,) = walk_layers(recurrences, resolve_sources(module, recurrences, SupNorm(1.0)), training=False)
    (tube,) = enclose([layer])
    nothing = Premises(tuple((0.0,) * len(part) for part in tube.premises.box), tube.premises.metric)
    tube = Enclosed(layer.recurrence, {role: value.float() for role, value in layer.weights.items()}, nothing)
    values, state = drive([tube], x), tube.initial_state(x[0])
    for value in values:
        state = tube.step(value, state)
    apart = (tube.output(state)[..., 0, :].double() - exact(x.double())[0][-1]).norm(dim=-1)
    assert apart.max() > 1e-5
    assert (apart <= tube.spread(state).double()).all()


# What it is given -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_layouts(name: str) -> None:
    module, x = stable(name), uniform(5, 4, 3)
    batch_first = net(name, batch_first=True)
    batch_first.load_state_dict(module.state_dict())
    expected = certify_windows(module, x, input_bound=B)
    assert expected.shape == (4,)
    assert expected.dtype == torch.float64
    torch.testing.assert_close(certify_windows(batch_first, x.transpose(0, 1), input_bound=B), expected)
    torch.testing.assert_close(certify_windows(module, x[:, 1], input_bound=B), expected[1])
    torch.testing.assert_close(certify_windows(module.float(), x, input_bound=B), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", CELLS)
def test_cells(name: str) -> None:
    cell, x = net(name, scale=0.8), uniform(5, 4, 3)
    layer = net(name.removesuffix("_cell"))
    layer.load_state_dict({f"{key}_l0": value for key, value in cell.state_dict().items()})
    torch.testing.assert_close(certify_windows(cell, x, input_bound=B), certify_windows(layer, x, input_bound=B))


def test_many_windows_are_blocks() -> None:
    module, x = stable("gru"), uniform(3, 300, 3)
    bounds = certify_windows(module, x, input_bound=B)
    torch.testing.assert_close(bounds[290:], certify_windows(module, x[:, 290:], input_bound=B))


def test_bounded_states_need_no_inputs_before() -> None:
    for name in ("rnn", "gru", "ugrnn"):
        assert certify_windows(net(name), uniform(5, 2, 3)).isfinite().all()


class PlainGRUCell(nn.GRUCell):
    """A cell whose adapter has a comparison map and no tube."""


@register_recurrence(PlainGRUCell)
class PlainGRURecurrence(GRURecurrence):
    tube = Recurrence.tube


def test_a_cell_without_a_tube_has_the_worst_case() -> None:
    cell, x = PlainGRUCell(3, 4).double(), uniform(5, 2, 3)
    project_(cell, 0.9, input_bound=B)
    recurrences = recurrences_of(cell)
    (worst,) = window_bounds(recurrences, resolve_sources(cell, recurrences, SupNorm(B)))
    assert certify_windows(cell, x, input_bound=B).tolist() == [worst.errors(5)[-1].item()] * 2


@pytest.mark.parametrize(
    ("module", "inputs", "kwargs", "error", "message"),
    [
        (net("lstm"), uniform(5, 2, 3), {}, ValueError, "declare `input_bound`"),
        (
            net("lstm"),
            uniform(5, 2, 3),
            {"input_bound": 1.0},
            ValueError,
            r"declared set, \|x\| <= 1\. Got some",
        ),
        (net("lstm"), uniform(5, 2, 3), {"input_bound": L2Ball(0.5)}, ValueError, "of the declared set"),
        (net("lstm"), uniform(5, 2, 3), {"input_bound": FiniteSet(torch.ones(2, 3))}, ValueError, "declared set"),
        (net("lstm"), uniform(5, 2, 4), {"input_bound": B}, ValueError, r"shape \(window, batch, 3\).*Got \(5, 2, 4\)"),
        (
            net("lstm", batch_first=True),
            uniform(3),
            {"input_bound": B},
            ValueError,
            r"\(batch, window, 3\).*\(3,\)",
        ),
        (net("lstm"), [1.0], {"input_bound": B}, TypeError, r"`inputs` must be a tensor\. Got \[1\.0\]"),
        (net("gru"), uniform(5, 2, 3) * torch.nan, {}, ValueError, "`inputs` must be finite"),
        (net("gru"), uniform(5, 2, 3), {"state_bound": -1.0}, ValueError, "`state_bound`"),
        (net("gru", bidirectional=True), uniform(4, 2, 3), {}, ValueError, "windows of 2 k - 1 inputs.*Got 4"),
        (net("relu", scale=9.0), uniform(5, 2, 3), {"input_bound": B}, ValueError, "grow without limit"),
        (nn.Linear(3, 3), uniform(5, 2, 3), {}, ValueError, "No recurrence is registered"),
        (
            LeakyCell(3, 4),
            uniform(5, 2, 3),
            {},
            ValueError,
            "`tube`, or `comparison` and `state_box`",
        ),
    ],
)
def test_bad_input(module: nn.Module, inputs: Any, kwargs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        certify_windows(module, inputs, **kwargs)


def test_the_module_is_left_alone() -> None:
    module, x = stable("lstm").train(), uniform(4, 2, 3)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    certify_windows(module, x, input_bound=B)
    assert module.training
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_bounds_of_tubes_need_no_module() -> None:
    module, x = stable("gru"), uniform(4, 3, 3)
    recurrences = recurrences_of(module)
    layers = list(walk_layers(recurrences, {}, training=False))
    torch.testing.assert_close(tube_bounds(enclose(layers), x), certify_windows(module, x))


# The attack -----------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize(("layers", "bidirectional"), SHAPES)
@pytest.mark.parametrize("name", LAYERS)
def test_attack(name: str, layers: int, bidirectional: bool, record_property: Any) -> None:
    """At least 16,000 evaluations a case, 450,000 in all."""
    worst, count = 0.0, 0
    for seed, (window, scale) in enumerate([(1, 1.0), (3, 1.5), (8, 1.0)]):
        module = net(name, units=5, scale=scale, seed=seed, num_layers=layers, bidirectional=bidirectional)
        project_(module, 0.95, input_bound=B)
        ratio, evaluations = attack(module, B, window=window, pairs=128, steps=42, seed=seed)
        worst, count = max(worst, ratio), count + evaluations
    record_property("tightest", worst)
    print(
        f"\n{name}, {layers} layers, {'both directions' if bidirectional else 'forward'}: {count} evaluations, "
        f"tightest {worst:.3f}"
    )
    assert count >= 16_000
    assert worst <= 1


@pytest.mark.parametrize("name", ["rnn", "gru", "ugrnn"])
def test_an_overflow_bounds_nothing(name: str) -> None:
    module, x = net(name), torch.randn(60, 5, 3, dtype=torch.float64)
    with torch.no_grad():
        for value in module.parameters():
            value *= 1e200
    x[:, 1:] = 0  # and hides behind no other sequence
    bounds = certify_windows(module, x, input_bound=9.0)
    assert not bounds.isnan().any()
    tube = truncation_profile(module, x, 4, input_bound=9.0).tube
    assert (tube >= bounds[0].clamp(max=1.0)).all()
