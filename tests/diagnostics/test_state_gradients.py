"""Measurements on states are those of products of Jacobians, computed one by one through torch's own modules."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lightning_stable import certify, project_, truncate
from lightning_stable.diagnostics import StateGradients, measure_state_gradients
from lightning_stable.diagnostics.jacobians import gradient_norms, lyapunov_exponents
from tests.nets import CELLS, LAYERS, net, set_
from tests.recurrence.test_registry import LeakyCell
from tests.truncation.brute import each, parts, start_state

T, BATCH = 7, 3
EXACT = {"rtol": 1e-10, "atol": 1e-12, "equal_nan": True}
CONVERGED = {"rtol": 1e-6, "atol": 1e-8}  # the power method


def sequence(time: int = T, batch: int = BATCH, seed: int = 0) -> Tensor:
    return torch.rand(time, batch, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 4 - 2


def pull(module: nn.Module, x: Tensor, g: Tensor, hx: Any) -> Tensor:
    """Norm per sequence of the gradient of ``<g, last output>`` with respect to the state before ``x``."""
    hx = each(hx, lambda part: part.detach().requires_grad_())
    output, _ = module(x, hx)
    found = torch.autograd.grad((output[-1] * g).sum(), parts(hx), allow_unused=True)
    return torch.stack([grad.square().sum((0, 2)) for grad in found if grad is not None]).sum(0).sqrt()


def norms(module: nn.Module, x: Tensor, g: Tensor, max_lag: int, hx: Any = None) -> Tensor:
    """By brute force, without lag 0: every pair of a loss and a state has a run of its own."""
    result = torch.full((max_lag, *x.shape[:2]), torch.nan, dtype=x.dtype)
    for t in range(len(x)):
        for lag in range(1, min(max_lag, t) + 1):
            _, state = module(x[: t - lag + 1], hx)
            result[lag - 1, t] = pull(module, x[t - lag + 1 : t + 1], g[t], state)
    return result


def exponents(module: nn.Module, x: Tensor, hx: Any = None) -> Tensor:
    """From the singular values of the product of the whole Jacobians, step by step."""
    state = start_state(module, x.shape[1]) if hx is None else hx
    state = each(state, torch.zeros_like) if hx is None else state
    sizes = [part.shape for part in parts(state)]

    def step(flat: Tensor, values: Tensor) -> Tensor:
        pieces = flat.split([shape[0] * shape[2] for shape in sizes])
        shaped = [piece.view(shape[0], 1, shape[2]) for piece, shape in zip(pieces, sizes, strict=True)]
        _, after = module(values[None, None], tuple(shaped) if len(shaped) > 1 else shaped[0])
        return torch.cat([part.flatten() for part in parts(after)])

    found = []
    for lane in range(x.shape[1]):
        flat = torch.cat([part[:, lane].flatten() for part in parts(state)])
        product = torch.eye(len(flat), dtype=x.dtype)
        for values in x[:, lane]:
            jacobian = torch.autograd.functional.jacobian(lambda s, v=values: step(s, v), flat)
            product, flat = jacobian @ product, step(flat, values).detach()
        found.append(torch.linalg.matrix_norm(product, ord=2).log() / len(x))
    return torch.stack(found)


def expanding(gain: float = 1.5, scale_inputs: float = 1.0, units: int = 5) -> nn.Module:
    """A tanh network with ``||W||_2 = gain``, all singular values alike."""
    module = net("rnn", units=units)
    generator = torch.Generator().manual_seed(1)
    orthogonal, _ = torch.linalg.qr(torch.randn(units, units, generator=generator, dtype=torch.float64))
    set_(module, weight_hh=gain * orthogonal, bias_ih=0.0, bias_hh=0.0)
    return set_(module, weight_ih=scale_inputs * torch.ones(units, 3, dtype=torch.float64))


# Gradients ------------------------------------------------------------------------------------------------------------
def test_gradients_of_a_linear_recurrence_are_powers_of_its_matrix() -> None:
    module = net("relu")
    generator = torch.Generator().manual_seed(3)
    hidden = torch.rand(5, 5, generator=generator, dtype=torch.float64) * 0.3  # all positive: relu does nothing
    set_(module, weight_hh=hidden, weight_ih=1.0, bias_ih=0.1, bias_hh=0.1)
    g = torch.randn(T, BATCH, 5, generator=generator, dtype=torch.float64)
    found = gradient_norms(module, sequence().abs(), g, T - 1)
    for lag in range(T):
        expected = torch.linalg.vector_norm(g[lag:] @ torch.linalg.matrix_power(hidden, lag), dim=-1)
        torch.testing.assert_close(found[lag, lag:], expected, **EXACT)
        assert found[lag, :lag].isnan().all()
    exact = torch.linalg.matrix_norm(torch.linalg.matrix_power(hidden, T), ord=2).log() / T
    torch.testing.assert_close(lyapunov_exponents(module, sequence().abs()), exact.expand(BATCH), **CONVERGED)


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_those_of_separate_runs(name: str, layers: int, start: bool) -> None:
    module, x = net(name, scale=1.5, num_layers=layers), sequence()
    hx = start_state(module, BATCH) if start else None
    g = torch.randn_like(module(x)[0])
    found = gradient_norms(module, x, g, 10**6, state=hx)  # no lag is longer than the sequences
    assert found.shape == (T, T, BATCH)
    torch.testing.assert_close(found[0], g.norm(dim=-1), **EXACT)
    torch.testing.assert_close(found[1:], norms(module, x, g, T - 1, hx), **EXACT)


def test_a_loss_that_reads_the_final_state() -> None:
    module, x = net("lstm", num_layers=2, batch_first=True), sequence().transpose(0, 1)
    output, final = module(x)
    last = tuple(torch.zeros_like(part) for part in final)
    last[0][1] = 1.0  # h of the upper layer is the last output
    g = torch.zeros_like(output)
    g[:, -1] = 1.0
    found = gradient_norms(module, x, None, 4, state_gradients=last)
    torch.testing.assert_close(found, gradient_norms(module, x, g, 4), **EXACT)
    assert (found[0, -1] > 0).all()
    both = gradient_norms(module, x, g, 4, state_gradients=last)
    torch.testing.assert_close(both[:, -1], 2 * found[:, -1], **EXACT)


def test_the_final_states_of_packed_sequences() -> None:
    module, lengths = net("gru"), [2, 7, 4]
    packed = pack_padded_sequence(sequence(), torch.tensor(lengths), enforce_sorted=False)
    scale = torch.arange(1.0, 4.0, dtype=torch.float64)
    found = gradient_norms(module, packed, None, 2, state_gradients=scale[None, :, None].expand(1, 3, 5))
    expected = torch.zeros(T, BATCH, dtype=torch.float64)
    for row, lane in enumerate(packed.sorted_indices.tolist()):
        expected[lengths[lane] - 1, row] = scale[lane] * math.sqrt(5)
    torch.testing.assert_close(found[0], expected, **EXACT)
    directions = gradient_norms(module, packed, None, 2)[0]
    assert (directions > 0).sum() == sum(lengths)


@pytest.mark.parametrize("name", CELLS)
def test_cells_are_measured_as_layers(name: str) -> None:
    cell, layer = net(name, scale=1.5), net(name.removesuffix("_cell"), scale=1.5)
    layer.load_state_dict({f"{key}_l0": value for key, value in cell.state_dict().items()})
    x, hx = sequence(), start_state(layer, BATCH)
    own, g = each(hx, lambda part: part[0]), torch.randn(T, BATCH, 5, dtype=torch.float64)
    found = gradient_norms(cell, x, g, 4, state=own)
    torch.testing.assert_close(found, gradient_norms(layer, x, g, 4, state=hx), **EXACT)
    found = lyapunov_exponents(cell, x, state=own)
    torch.testing.assert_close(found, lyapunov_exponents(layer, x, state=hx), **CONVERGED)


def test_an_own_cell() -> None:
    torch.manual_seed(0)
    cell = LeakyCell(3, 4).double()
    project_(cell, 0.9)
    found = measure_state_gradients(cell, sequence(20), torch.randn(20, BATCH, 4))
    assert 0 < found.decay <= found.certified_rate
    assert 0 < found.rate <= found.certified_rate < 0.9 + 1e-12
    assert found.guarantee == "guaranteed"


@pytest.mark.parametrize(("name", "lengths"), [("lstm", [7, 5, 2]), ("gru", [2, 7, 4])])
def test_packed_sequences_end_where_they_end(name: str, lengths: list[int]) -> None:
    # Few units: the power method converges the slower, the closer the singular values.
    module, x = net(name, units=2, scale=1.5, num_layers=2), sequence()
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    output, _ = module(packed)
    g = output._replace(data=torch.linspace(-1, 2, output.data.numel()).view_as(output.data).double())
    padded, _ = pad_packed_sequence(g)  # in the order given
    found, rates = gradient_norms(module, packed, g, 4), lyapunov_exponents(module, packed)
    for row, lane in enumerate(packed.sorted_indices.tolist()):
        alone, gradients = x[: lengths[lane], lane : lane + 1], padded[: lengths[lane], lane : lane + 1]
        single = gradient_norms(module, alone, gradients, 4)[..., 0]
        torch.testing.assert_close(found[: len(single), : lengths[lane], row], single, **EXACT)
        assert found[len(single) :, : lengths[lane], row].isnan().all()
        torch.testing.assert_close(rates[row], lyapunov_exponents(module, alone)[0], **CONVERGED)
    # Positions behind the end count nowhere.
    report = measure_state_gradients(module, packed, g, 4)
    assert report.norms.shape == (5, sum(lengths))
    assert report.exponents.shape == (3,)


def test_every_layout_is_read() -> None:
    module, first, x = net("gru", num_layers=2), net("gru", num_layers=2, batch_first=True), sequence()
    g = torch.randn(T, BATCH, 5, dtype=torch.float64)
    expected = gradient_norms(module, x, g, 4)
    torch.testing.assert_close(gradient_norms(first, x.transpose(0, 1), g.transpose(0, 1), 4), expected, **EXACT)
    torch.testing.assert_close(gradient_norms(module, x[:, 1], g[:, 1], 4), expected[..., 1:2], **EXACT)
    torch.testing.assert_close(lyapunov_exponents(module, x[:, 1]), lyapunov_exponents(module, x)[1:2], **CONVERGED)


def test_random_directions_are_unit_vectors_of_the_state() -> None:
    module = net("lstm", num_layers=2)
    found = gradient_norms(module, sequence(), None, 3)
    torch.testing.assert_close(found[0], torch.ones_like(found[0]), **EXACT)
    assert torch.equal(found.nan_to_num(), gradient_norms(module, sequence(), None, 3).nan_to_num())
    assert not torch.equal(found.nan_to_num(), gradient_norms(module, sequence(), None, 3, seed=1).nan_to_num())
    start = start_state(module, BATCH)
    report = measure_state_gradients(module, sequence(), state=start)
    assert report.source == "random"
    assert torch.equal(report.exponents, lyapunov_exponents(module, sequence(), state=start))


# Exponents ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("layers", "start", "scale"), [(1, False, 4.0), (2, True, 1.0)])
@pytest.mark.parametrize("name", ["rnn", "relu", "lstm", "proj", "gru"])
def test_exponents_are_those_of_products_of_jacobians(name: str, layers: int, start: bool, scale: float) -> None:
    module, x = net(name, scale=scale, num_layers=layers, units=4), sequence(12, 2)
    hx = start_state(module, 2) if start else None
    found, expected = lyapunov_exponents(module, x, state=hx), exponents(module, x, hx)
    torch.testing.assert_close(found, expected, **CONVERGED)


@pytest.mark.parametrize(("scale_inputs", "stable"), [(0.0, False), (0.01, False), (3.0, True)])
def test_an_expanding_network_may_be_stable_on_its_data(scale_inputs: float, stable: bool) -> None:
    module, x = expanding(1.5, scale_inputs), sequence(40, 2)
    report = measure_state_gradients(module, x, torch.ones(40, 2, 5))
    expected = exponents(module, x)
    torch.testing.assert_close(report.exponents, expected, **CONVERGED)
    assert report.in_stable_regime is stable
    assert report.in_stable_regime is bool((expected < 0).all())
    assert report.certified_rate == pytest.approx(1.5, rel=1e-6)
    assert not report.is_certified
    assert (report.decay < 1) is stable
    assert ("operates in the stable regime" in str(report)) is stable
    if scale_inputs == 0.0:  # it stays at zero, where it is linear
        assert report.lyapunov == pytest.approx(math.log(1.5), rel=1e-9)
        assert report.decay == pytest.approx(1.5, rel=1e-9)


@pytest.mark.parametrize("gain", [0.01, 20.0])
def test_long_sequences_neither_vanish_nor_overflow(gain: float) -> None:
    module = expanding(gain, 0.0).float()
    # 20 ** 60 is beyond float32.
    assert lyapunov_exponents(module, torch.zeros(60, 1, 3))[0].item() == pytest.approx(math.log(gain), rel=1e-5)


def test_nothing_is_left_where_states_are_forgotten_at_once() -> None:
    module = set_(net("rnn"), weight_hh=0.0)
    report = measure_state_gradients(module, sequence(), torch.ones(T, BATCH, 5))
    assert report.lyapunov == -math.inf
    assert report.rate == 0
    assert report.in_stable_regime
    assert math.isnan(report.decay) or report.decay == 0


# What is certified ----------------------------------------------------------------------------------------------------
@given(seed=st.integers(0, 1000), rate=st.floats(0.3, 0.99), nonlinearity=st.sampled_from(["rnn", "relu"]))
@settings(max_examples=8, deadline=None)
def test_a_certified_network_decays_at_least_as_fast(seed: int, rate: float, nonlinearity: str) -> None:
    module = net(nonlinearity, scale=3.0, seed=seed)
    project_(module, rate)
    x = sequence(30, 2, seed)
    g = torch.randn(30, 2, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    report = measure_state_gradients(module, x, g, 20)
    certified = certify(module).rate
    assert report.certified_rate == certified <= rate
    assert math.isnan(report.decay) or report.decay <= certified + 1e-9
    assert (report.rates <= certified + 1e-9).all()
    lags = report.lags.double()
    assert (
        (report.norms <= report.norms[0] * certified ** lags[:, None] * (1 + 1e-9))
        .logical_or(report.norms.isnan())
        .all()
    )


def test_the_certificate_says_what_it_holds_for() -> None:
    module = net("gru", units=2, scale=0.3)
    assert measure_state_gradients(module, sequence()).guarantee == "data"
    stack = net("gru", units=2, scale=0.3, num_layers=2, dropout=0.5)  # which is off here, and is not in training mode
    assert measure_state_gradients(stack, sequence(), input_bound=0.1).certified_rate == (
        certify(stack.eval(), input_bound=0.1).rate
    )
    known = measure_state_gradients(module, sequence(), input_bound=2.0)
    assert known.guarantee == "guaranteed"
    assert known.certified_rate == certify(module, input_bound=2.0).rate


# The report -----------------------------------------------------------------------------------------------------------
def report(norms: list[list[float]], exponents: list[float], **kwargs: Any) -> StateGradients:
    return StateGradients(
        torch.tensor(norms, dtype=torch.float64), torch.tensor(exponents, dtype=torch.float64), **kwargs
    )


def test_figures_over_positions() -> None:
    # The second position has a history of one step only, and a small loss: leaving it out is no growth.
    found = report([[4.0, 0.04], [2.0, 0.02], [1.0, math.nan]], [-0.5, 0.25])
    assert found.lags.tolist() == [0, 1, 2]
    assert found.max.tolist() == [4.0, 2.0, 1.0]
    assert found.mean.tolist() == pytest.approx([2.02, 1.01, 1.0])
    assert found.decay == pytest.approx(0.5)
    assert found.lyapunov == 0.25
    assert found.rate == pytest.approx(math.exp(0.25))
    assert found.rates.tolist() == pytest.approx([math.exp(-0.5), math.exp(0.25)])
    assert not found.in_stable_regime


def test_the_decay_is_the_slope_of_the_logarithm() -> None:
    values = torch.tensor([1.0, 0.5, 0.4, 0.1, 0.0, 0.0], dtype=torch.float64)
    x = torch.arange(4.0, dtype=torch.float64)  # up to the first that vanished
    slope = torch.linalg.lstsq(torch.stack((x, x * 0 + 1), 1), values[:4].log()[:, None]).solution[0]
    assert report(values[:, None].tolist(), [0.0]).decay == pytest.approx(slope.exp().item(), rel=1e-12)


def test_batches_are_joined() -> None:
    a = report([[1.0], [0.5]], [-1.0], certified_rate=0.5, guarantee="guaranteed")
    b = report([[3.0, 2.0], [1.0, math.nan]], [-0.2], certified_rate=math.inf, guarantee="none")
    both = StateGradients.joined([a, b])
    assert both.max.tolist() == [3.0, 1.0]
    assert both.exponents.tolist() == [-1.0, -0.2]
    assert (both.certified_rate, both.guarantee) == (math.inf, "none")
    c = report([[1.0], [0.5]], [-1.0], certified_rate=0.4, guarantee="data")
    weakest = StateGradients.joined([a, c])  # the rate is that of the other part
    assert (weakest.certified_rate, weakest.guarantee) == (0.5, "data")
    shorter = StateGradients.joined([report([[1.0]], [0.0]), a])  # of sequences that are too short for a lag of 1
    torch.testing.assert_close(shorter.norms, torch.tensor([[1.0, 1.0], [math.nan, 0.5]]).double(), equal_nan=True)
    with pytest.raises(ValueError, match=r"at least one\. Got none"):
        StateGradients.joined([])


def test_no_loss_at_all() -> None:
    module = net("gru")
    found = measure_state_gradients(module, sequence(), torch.zeros(T, BATCH, 5), 3)
    assert found.norms.shape == (4, 0)
    assert math.isnan(found.decay)
    assert found.max.isnan().all()
    found.plot().canvas.draw()


def test_the_plot() -> None:
    module = net("rnn", scale=0.3)
    found = measure_state_gradients(module, sequence(30), torch.randn(30, BATCH, 5), 10, name="core")
    figure = found.plot()
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    assert "core" in axes.get_title()
    lines = {line.get_label(): line for line in axes.get_lines()}
    certified = next(label for label in lines if label.startswith("certified rate"))
    expected = found.max[0] * found.certified_rate**found.lags
    torch.testing.assert_close(torch.tensor(lines[certified].get_ydata(), dtype=torch.float64), expected.double())
    assert lines["largest, measured"].get_ydata() == pytest.approx(found.max.tolist())
    assert lines["mean, measured"].get_ydata() == pytest.approx(found.mean.tolist())
    figure.canvas.draw()
    labels = [line.get_label() for line in measure_state_gradients(expanding(), sequence()).plot().axes[0].get_lines()]
    assert not any(label.startswith("certified") for label in labels)


# Manners --------------------------------------------------------------------------------------------------------------
def test_nothing_is_left_behind() -> None:
    module, x = net("lstm", num_layers=2, dropout=0.5), sequence().requires_grad_()
    before, start = torch.get_rng_state(), start_state(module, BATCH)
    found = gradient_norms(module, x, torch.ones(T, BATCH, 5), state=start)
    assert not found.requires_grad
    assert not lyapunov_exponents(module, x, state=start).requires_grad
    assert torch.equal(torch.get_rng_state(), before)
    assert module.training
    assert all(value.grad is None for value in (*module.parameters(), x))


def test_float32() -> None:
    module, g = net("gru", dtype=torch.float32), torch.ones(T, BATCH, 5)
    found = measure_state_gradients(module, sequence().float(), g)
    expected = measure_state_gradients(net("gru"), sequence(), g)
    assert found.norms.dtype == found.exponents.dtype == torch.float64
    torch.testing.assert_close(found.norms, expected.norms, rtol=1e-4, atol=1e-7, equal_nan=True)
    torch.testing.assert_close(found.exponents, expected.exponents, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gradient_norms(net("gru"), sequence(), max_lag=0), r"`max_lag` must be a positive integer\. Got 0"),
        (lambda: lyapunov_exponents(net("gru"), sequence(), max_iterations=0), r"`max_iterations` .* Got 0"),
        (lambda: gradient_norms(nn.Linear(3, 3), sequence()), "recurren"),
        (
            lambda: gradient_norms(net("gru", bidirectional=True), sequence()),
            r"one direction\. Got a bidirectional GRU",
        ),
        (lambda: lyapunov_exponents(truncate(net("gru"), 2), sequence()), r"one direction\. Got WindowedGRU"),
        (lambda: gradient_norms(net("gru"), sequence()[..., :2]), r"must have 3 features\. Got 2"),
        (lambda: gradient_norms(net("gru"), [1, 2]), r"a tensor or a PackedSequence\. Got \[1, 2\]"),
        (lambda: gradient_norms(net("gru"), sequence()[:0]), r"at least one step\. Got shape \(0, 3, 3\)"),
        (
            lambda: gradient_norms(net("gru"), sequence(), torch.ones(T, BATCH, 4)),
            r"`output_gradients` .* Got \(7, 3, 4",
        ),
        (lambda: gradient_norms(net("gru"), sequence(), [1]), r"`output_gradients` .* Got \[1\]"),
        (lambda: gradient_norms(net("gru_cell"), sequence(), state=torch.ones(2, 5)), r"`state` .* Got \[\(2, 5\)\]"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_a_lag_is_an_integer() -> None:
    with pytest.raises(TypeError, match=r"`max_lag` must be a positive integer\. Got True"):
        gradient_norms(net("gru"), sequence(), max_lag=True)
