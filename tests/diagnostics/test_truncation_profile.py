"""Profiles are the errors of separate truncated runs, below what is certified."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence, pad_sequence

from lightning_stable import certify_windows, project_, truncation_profile
from lightning_stable.diagnostics import TruncationProfile
from lightning_stable.diagnostics.truncation_profile import windows_needed
from lightning_stable.stability import SupNorm
from lightning_stable.truncation import truncate
from lightning_stable.truncation.exact.layout import Layout
from tests.nets import CELLS, LAYERS, net, set_
from tests.recurrence.test_registry import LeakyCell
from tests.truncation.brute import restarted, restarted_cell

T, BATCH = 9, 3
EXACT = {"rtol": 0, "atol": 1e-12}


def sequence(time: int = T, batch: int = BATCH) -> Tensor:
    return torch.rand(time, batch, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4 - 2


def norms(module: nn.Module, x: Tensor, windows: int) -> Tensor:
    """Norms of the differences of every output, shape ``(windows, time, batch)``."""
    whole, _ = module(x)
    return torch.stack([(restarted(module, x, k)[0] - whole).norm(dim=-1) for k in range(1, windows + 1)]).detach()


# The errors -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_errors_are_those_of_truncated_runs(name: str, layers: int, bidirectional: bool) -> None:
    module = net(name, scale=1.3, num_layers=layers, bidirectional=bidirectional)
    found = truncation_profile(module, sequence(), 10**6)  # no window is longer than the sequences
    errors = norms(module, sequence(), T)
    assert found.windows.tolist() == list(range(1, T + 1))
    torch.testing.assert_close(found.max_error, errors.amax((1, 2)), **EXACT)
    torch.testing.assert_close(found.mean_error, errors.mean((1, 2)), **EXACT)
    assert found.max_error[T - 1 :].max() < 1e-12
    assert found.max_error[T - 2] > 1e-9 or name == "relu"
    assert found.output_norm == pytest.approx(module(sequence())[0].norm(dim=-1).mean().item(), rel=1e-12)


@pytest.mark.parametrize("name", CELLS)
def test_errors_of_cells(name: str) -> None:
    cell, x = net(name, scale=1.3), sequence()
    found = truncation_profile(cell, x, T)

    def outputs(window: int) -> Tensor:
        states = restarted_cell(cell, x, window)
        return torch.stack([state[0] if isinstance(state, tuple) else state for state in states]).detach()

    errors = torch.stack([(outputs(k) - outputs(T)).norm(dim=-1) for k in range(1, T + 1)])
    torch.testing.assert_close(found.max_error, errors.amax((1, 2)), **EXACT)
    torch.testing.assert_close(found.mean_error, errors.mean((1, 2)), **EXACT)


def test_errors_of_an_own_cell() -> None:
    torch.manual_seed(0)
    cell, x = LeakyCell(3, 4).double(), sequence()
    found = truncation_profile(cell, x, 3)
    twin = truncate(cell, 2)
    states, mine, own = [], torch.zeros(BATCH, 4, dtype=torch.float64), torch.zeros(BATCH, 4, dtype=torch.float64)
    for values in x:
        mine, own = twin(values, mine), cell(values, own)
        states.append((mine - own).norm(dim=-1))
    assert found.max_error[1].item() == pytest.approx(torch.stack(states).max().item(), rel=1e-9)
    assert found.guarantee in ("none", "guaranteed", "data")


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("lengths", [[9, 5, 2], [2, 9, 6]])
def test_padding_is_ignored(layers: int, bidirectional: bool, lengths: list[int]) -> None:
    # Zeros, which a packed sequence is padded with, are not in the range of the inputs.
    module, x = net("lstm", scale=0.2, num_layers=layers, bidirectional=bidirectional), sequence().abs() + 0.5
    for lane, length in enumerate(lengths):
        x[length:, lane] = 1e6
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    found = truncation_profile(module, packed, 4)
    errors = torch.cat(
        [norms(module, x[:length, lane : lane + 1], 4).flatten(1) for lane, length in enumerate(lengths)], dim=1
    )
    torch.testing.assert_close(found.max_error, errors.amax(1), **EXACT)
    torch.testing.assert_close(found.mean_error, errors.mean(1), **EXACT)
    outputs, _ = pad_packed_sequence(module(packed)[0])
    size = sum(outputs[:length, lane].norm(dim=-1).sum().item() for lane, length in enumerate(lengths)) / sum(lengths)
    assert found.output_norm == pytest.approx(size, rel=1e-9)
    # The bound for data speaks of the inputs and not of the padding.
    assert found.guarantee == "data"
    seen = torch.cat([x[:length, lane] for lane, length in enumerate(lengths)])[:, None]
    torch.testing.assert_close(found.bound, truncation_profile(module, seen, 4).bound, rtol=1e-12, atol=0)


def test_every_layout_is_read() -> None:
    module, x = net("gru", num_layers=2), sequence()
    first = net("gru", num_layers=2, batch_first=True)
    expected = truncation_profile(module, x, 4)
    for other, inputs in ((first, x.transpose(0, 1)), (module, pack_padded_sequence(x, torch.tensor([T] * BATCH)))):
        torch.testing.assert_close(truncation_profile(other, inputs, 4).max_error, expected.max_error, **EXACT)
    alone = truncation_profile(module, x[:, :1], 4)
    for other in (module, first):
        torch.testing.assert_close(truncation_profile(other, x[:, 0], 4).max_error, alone.max_error, **EXACT)


def test_a_windowed_layer_has_the_profile_of_the_layer() -> None:
    for name in ("lstm", "gru_cell"):
        module = net(name, scale=0.2)
        expected, twin = truncation_profile(module, sequence(), 5), truncate(module, 2)
        found = truncation_profile(twin, sequence(), 5)
        assert torch.equal(found.max_error, expected.max_error)
        assert torch.equal(found.bound, expected.bound)
        # and it still is windowed
        if name == "lstm":
            assert not torch.equal(twin(sequence())[0], module(sequence())[0])


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_left_behind(training: bool) -> None:
    module = net("gru", num_layers=2, dropout=0.5).train(training)
    before = torch.get_rng_state()
    found = truncation_profile(module, sequence().requires_grad_(), 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert module.training is training
    assert all(value.grad is None for value in module.parameters())
    assert not found.max_error.requires_grad
    # Dropout is off.
    torch.testing.assert_close(found.max_error, norms(module.eval(), sequence(), 3).amax((1, 2)), **EXACT)


def test_the_mode_comes_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    twin = truncate(net("gru"), 2)
    expected = twin(sequence())[0]
    monkeypatch.setattr(Layout, "valid", property(lambda layout: layout.missing))
    with pytest.raises(AttributeError, match="missing"):
        truncation_profile(twin, sequence(), 3)
    assert twin.training
    assert torch.equal(twin(sequence())[0], expected)


def test_float32_outputs_have_a_profile() -> None:
    module = net("lstm", dtype=torch.float32)
    found = truncation_profile(module, sequence().float(), 5)
    assert found.max_error.dtype == torch.float64
    torch.testing.assert_close(found.max_error, norms(net("lstm"), sequence(), 5).amax((1, 2)), rtol=1e-4, atol=1e-6)


# The bound ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_certified_errors_are_below_the_bound(name: str, layers: int, bidirectional: bool) -> None:
    module = net(name, scale=2, num_layers=layers, bidirectional=bidirectional)
    project_(module, 0.8, input_bound=SupNorm(2.0))
    found = truncation_profile(module, sequence(14), 12, input_bound=SupNorm(2.0))
    assert found.guarantee == "guaranteed"
    assert found.bound.isfinite().all()
    assert (found.max_error <= found.bound * (1 + 1e-9)).all()
    # What is known from these inputs alone.
    observed = truncation_profile(module, 0.1 * sequence(14), 12)
    assert (observed.max_error <= observed.bound * (1 + 1e-9)).all()
    if observed.guarantee == "data":
        assert (observed.bound <= found.bound * (1 + 1e-9)).all()


@pytest.mark.parametrize("name", CELLS)
def test_certified_cells_are_below_the_bound(name: str) -> None:
    cell = net(name, scale=2)
    project_(cell, 0.8, input_bound=SupNorm(2.0))
    found = truncation_profile(cell, sequence(14), 12, input_bound=SupNorm(2.0))
    assert found.guarantee == "guaranteed"
    assert (found.max_error <= found.bound * (1 + 1e-9)).all()


def test_the_guarantee_says_what_is_known() -> None:
    stable, unstable = net("rnn", scale=0.3), net("rnn", scale=30)
    assert truncation_profile(stable, sequence(), 3).guarantee == "guaranteed"  # tanh is bounded whatever comes
    none = truncation_profile(unstable, sequence(), 3)
    assert none.guarantee == "none"
    assert none.bound.isnan().all()
    gru = net("gru", scale=0.3)
    assert truncation_profile(gru, sequence(), 3).guarantee == "data"
    assert truncation_profile(gru, sequence(), 3, input_bound=2.0).guarantee == "guaranteed"


# Rate -----------------------------------------------------------------------------------------------------------------
def linear(decay: float) -> nn.Module:
    """``h' = relu(decay h + x)``: linear for positive inputs."""
    module = net("relu", inputs=1, units=1)
    return set_(module, weight_ih=1.0, weight_hh=decay, bias_ih=0.0, bias_hh=0.0)


@given(decay=st.floats(0.1, 0.9), time=st.integers(40, 60))
@settings(max_examples=20, deadline=None)
def test_the_rate_of_a_known_decay(decay: float, time: int) -> None:
    # An impulse: exactly decay^t is left of it, and a window that does not reach it has none.
    x = torch.zeros(time, 1, 1, dtype=torch.float64)
    x[0] = 1
    module = linear(decay)
    found = truncation_profile(module, x, 10)
    torch.testing.assert_close(found.max_error, decay ** torch.arange(1, 11, dtype=torch.float64), **EXACT)
    left = torch.stack([decay ** torch.arange(k, time, dtype=torch.float64) for k in (1,)]).sum()
    assert found.mean_error[0].item() == pytest.approx(left.item() / time, rel=1e-9)
    assert found.rate == pytest.approx(decay, rel=1e-6 if decay < 0.5 else 0.05)
    assert (found.max_error <= found.bound).all()


def test_the_rate_is_the_slope_of_the_mean_errors() -> None:
    module = net("gru", num_layers=2)
    found = truncation_profile(module, sequence(40), 12)
    k = torch.arange(12.0, dtype=torch.float64)
    slope = torch.linalg.lstsq(torch.stack((k, k * 0 + 1), 1), found.mean_error.log()[:, None]).solution[0]
    assert found.rate == pytest.approx(slope.exp().item(), rel=1e-9)


def test_rounding_has_no_rate() -> None:
    vanishing = net("rnn", scale=0.1)
    found, short = (truncation_profile(vanishing, sequence(60), windows) for windows in (55, 6))
    assert found.rate == pytest.approx(short.rate, rel=0.3)
    x = torch.zeros(100, 1, 1, dtype=torch.float64)
    x[0] = 1
    decay = truncation_profile(linear(0.01), x, 90).rate
    assert decay == pytest.approx(0.01, rel=1e-2)
    assert math.isnan(truncation_profile(linear(0.0), x, 5).rate)  # forgets everything at once
    assert math.isnan(truncation_profile(linear(0.5), x, 1).rate)  # one point has no slope


# Required window ------------------------------------------------------------------------------------------------------
def profile(errors: list[float], **kwargs: Any) -> TruncationProfile:
    values = torch.tensor(errors, dtype=torch.float64)
    defaults: dict[str, Any] = {
        "rate": 0.5,
        "bound": 2 * values,
        "guarantee": "guaranteed",
        "output_norm": 1.0,
        "mean_error": values / 2,
        "sequence_error": values[:, None],
        "tube": torch.full_like(values, torch.nan),
    }
    return TruncationProfile(torch.arange(1, len(errors) + 1), max_error=values, **defaults | kwargs)


@pytest.mark.parametrize(
    ("errors", "tolerance", "window"),
    [
        ([4.0, 2.0, 1.0], 2.0, 2),
        ([4.0, 2.0, 1.0], 1.99, 3),
        ([4.0, 2.0, 1.0], 4.0, 1),
        ([4.0, 2.0, 1.0], 0.5, None),
        ([4.0, 1.0, 2.0, 1.0], 1.5, 4),  # it has to stay below
        ([1.0, 1.0, 2.0], 1.5, None),
        ([1.0, math.nan, 1.0], 1.5, 3),
        ([1.0, math.nan], 1.5, None),
        ([0.0], 1e-300, 1),
    ],
)
def test_required_window(errors: list[float], tolerance: float, window: int | None) -> None:
    assert profile(errors).required_window(tolerance) == window


@given(st.lists(st.floats(0, 10), min_size=1, max_size=8), st.floats(0.01, 10))
def test_the_required_window_is_the_smallest(errors: list[float], tolerance: float) -> None:
    suffices = [k for k in range(1, len(errors) + 1) if max(errors[k - 1 :]) <= tolerance]
    assert profile(errors).required_window(tolerance) == (min(suffices) if suffices else None)


@pytest.mark.parametrize(
    ("tolerance", "error"),
    [*((value, ValueError) for value in (0, -1.0, math.nan, math.inf)), *((value, TypeError) for value in ("1", True))],
)
def test_tolerances_are_positive_numbers(tolerance: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"`tolerance` must be a number in \(0, inf\)\. Got"):
        profile([1.0]).required_window(tolerance)


def test_a_measured_window_suffices() -> None:
    module, x = net("lstm"), sequence(20)
    window = truncation_profile(module, x, 20).required_window(1e-3)
    assert window is not None
    assert window > 1
    whole, _ = module(x)
    errors = [(truncate(module, k)(x)[0] - whole).norm(dim=-1).max().item() for k in (window - 1, window, window + 1)]
    assert errors[0] > 1e-3 >= errors[1] >= errors[2]


def test_errors_of_every_sequence() -> None:
    module, x = net("lstm"), sequence(8, 3)
    packed = pack_padded_sequence(x, [3, 8, 5], enforce_sorted=False)
    together = truncation_profile(module, packed, 6).sequence_error
    assert together.shape == (6, 3)
    for index, length in enumerate([3, 8, 5]):
        alone = truncation_profile(module, x[:length, index : index + 1], 6)
        torch.testing.assert_close(together[: min(length, 6), index], alone.max_error, **EXACT)
        assert together[length:, index].max().item() < 1e-12 if length < 6 else True


# Statistical window ---------------------------------------------------------------------------------------------------
def needing(windows: list[int], longest: int = 9) -> TruncationProfile:
    """A profile of sequences that need these windows."""
    above = torch.arange(1, longest + 1)[:, None] < torch.tensor(windows)
    errors = above.double()
    return profile(errors.amax(1).tolist(), sequence_error=errors)


def test_the_statistical_window_is_the_one_of_wilks() -> None:
    windows = [*range(1, 10)] * 10
    found = needing(windows)
    assert found.required_window(0.5) == 9
    for count, rank in ((59, 1), (92, 1), (93, 2), (124, 3)):
        few = needing([9, 7, 5] + [2] * (count - 3))
        assert few.required_window(0.5, coverage=0.95) == [9, 7, 5][rank - 1], count
    assert needing([9] + [2] * 298).required_window(0.5, coverage=0.99, confidence=0.95) == 9
    assert needing([10] + [2] * 70).required_window(0.5, coverage=0.95) is None  # the longest is not enough


def test_too_few_sequences_are_told_how_many_would_do() -> None:
    with pytest.raises(ValueError, match=r"coverage=0\.95 with confidence=0\.95 needs at least 59 sequences\. Got 58"):
        needing([3] * 58).required_window(0.5, coverage=0.95)
    needing([3] * 59).required_window(0.5, coverage=0.95)


def test_the_statistical_window_covers_what_it_promises() -> None:
    torch.manual_seed(0)
    module, lengths = nn.LSTM(3, 8), torch.randint(5, 40, (3000,))
    with torch.no_grad():
        module.bias_ih_l0[8:16] += 2
        source = pack_padded_sequence(torch.randn(40, 3000, 3), lengths, enforce_sorted=False)
        all_of_them = truncation_profile(module, source, 40)
    needed = windows_needed(all_of_them.sequence_error, 1e-2)
    for count, coverage, confidence in ((59, 0.95, 0.95), (150, 0.9, 0.8)):
        held, samples = 0, 1000
        for _ in range(samples):
            drawn = torch.randint(3000, (count,))
            found = replace(all_of_them, sequence_error=all_of_them.sequence_error[:, drawn])
            window = found.required_window(1e-2, coverage=coverage, confidence=confidence)
            assert window is not None
            held += int((needed <= window).double().mean() >= coverage)
        print(f"{count} sequences, coverage {coverage}: held in {held / samples:.3f} of samples, promised {confidence}")
        assert held / samples >= confidence - 4 * (confidence * (1 - confidence) / samples) ** 0.5


@pytest.mark.parametrize("name", ["coverage", "confidence"])
@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (1.0, ValueError), (math.nan, ValueError), ("1", TypeError)]
)
def test_shares_are_inside_0_and_1(name: str, value: Any, error: type[Exception]) -> None:
    arguments: dict[str, Any] = {"coverage": 0.9} | {name: value}
    with pytest.raises(error, match=rf"`{name}` must be a number in \(0, 1\)\. Got"):
        needing([3] * 99).required_window(0.5, **arguments)


# What cannot be profiled ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("window", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("3", TypeError)])
def test_windows_are_positive_integers(window: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"`max_window` must be a positive integer\. Got "):
        truncation_profile(net("gru"), sequence(), window)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: truncation_profile(nn.Linear(3, 3), sequence()), "recurren"),
        (lambda: truncation_profile(net("gru"), sequence()[..., :2]), r"must have 3 features\. Got 2"),
        (lambda: truncation_profile(net("gru"), sequence()[0, 0]), r"2 or 3 dimensions\. Got \(3,\)"),
        (lambda: truncation_profile(net("gru"), [1, 2]), r"`inputs` must be a tensor or a PackedSequence\. Got"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call()


# Plot -----------------------------------------------------------------------------------------------------------------
def test_the_plot_shows_errors_and_bound() -> None:
    found = truncation_profile(net("gru", scale=0.3), sequence(20), 6, name="core")
    figure = found.plot()
    (axes,) = figure.axes
    assert type(figure).__name__ == "Figure"
    assert axes.get_yscale() == "log"
    assert axes.get_xlabel() == "window (inputs seen)"
    assert axes.get_title() == f"Truncation of core: measured rate {found.rate:.3g} per step"
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines) == [
        "certified bound (range of this data)",
        "certified for these inputs",
        "largest error",
        "mean error",
        "mean norm of the outputs",
    ]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(lines)
    assert lines["largest error"].get_ydata().tolist() == found.max_error.tolist()
    assert lines["mean error"].get_ydata().tolist() == found.mean_error.tolist()
    assert lines["certified bound (range of this data)"].get_ydata().tolist() == found.bound.tolist()
    assert lines["largest error"].get_xdata().tolist() == list(range(1, 7))
    low, high = axes.get_ylim()
    assert low < found.mean_error.min() < found.max_error.max() < high
    figure.canvas.draw()


def test_plots_without_a_bound_or_a_rate() -> None:
    labels = [line.get_label() for line in profile([1.0, 0.5]).plot().axes[0].get_lines()]
    assert labels[0] == "certified bound"
    bare = profile([0.0, 0.0], bound=torch.full((2,), torch.nan), guarantee="none", rate=math.nan).plot()
    (axes,) = bare.axes
    assert next(line.get_label() for line in axes.get_lines()) == "largest error"
    assert axes.get_title() == "Truncation of the recurrence"
    bare.canvas.draw()


def test_packed_inputs_are_packed() -> None:
    packed = pack_padded_sequence(sequence(), torch.tensor([T, 4, 2]))
    assert isinstance(packed, PackedSequence)
    assert truncation_profile(net("rnn"), packed, 1).windows.tolist() == [1]


@pytest.mark.parametrize("shape", [(T, 0, 3), (0, BATCH, 3)])
def test_no_inputs_are_no_measurement(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"`inputs` must hold a sequence, with at least one step. Got shape"):
        truncation_profile(net("gru"), torch.zeros(shape, dtype=torch.float64))


# The tube -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (2, False), (1, True), (2, True)])
@pytest.mark.parametrize("name", LAYERS)
def test_the_tube_is_the_largest_of_all_whole_windows(name: str, layers: int, bidirectional: bool) -> None:
    module = net(name, num_layers=layers, bidirectional=bidirectional)
    project_(module, 0.9, input_bound=2.0)
    x = sequence()
    found = truncation_profile(module, x, T + 1, input_bound=2.0)
    for window, tube in enumerate(found.tube, 1):
        places = 2 * window - 1 if bidirectional else window
        if places > T:
            assert tube.isnan()
            continue
        windows = x.unfold(0, places, 1).permute(3, 0, 1, 2).flatten(1, 2)
        expected = certify_windows(module, windows, input_bound=2.0).max()
        torch.testing.assert_close(tube, expected, rtol=1e-9, atol=0)


def test_padding_is_in_no_tube() -> None:
    module, lengths = net("gru"), torch.tensor([4, T, 6])
    packed = pack_padded_sequence(sequence(), lengths, enforce_sorted=False)
    found = truncation_profile(module, packed, T)
    alone = [truncation_profile(module, sequence()[:n, i : i + 1], T, input_bound=2.0) for i, n in enumerate(lengths)]
    expected = pad_sequence([profile.tube.nan_to_num(0.0) for profile in alone], batch_first=True).amax(0)
    torch.testing.assert_close(found.tube, expected, rtol=1e-9, atol=0)


def test_errors_after_any_history_are_below_the_tube() -> None:
    module, x = net("lstm"), sequence(24)
    project_(module, 0.9, input_bound=2.0)
    found = truncation_profile(module, x, 12, input_bound=2.0)
    history = 2 * torch.ones(30, BATCH, 3, dtype=torch.float64)
    whole = module(torch.cat((history, x)))[0][30:]
    for window, tube in enumerate(found.tube, 1):
        apart = (restarted(module, x, window)[0] - whole)[window - 1 :].norm(dim=-1)
        assert apart.max() <= tube


def test_windows_of_the_tube() -> None:
    found = replace(truncation_profile(net("gru"), sequence(), 5), tube=torch.tensor([3.0, 1.0, 2.0, 0.5, torch.nan]))
    assert [found.tube_window(tolerance) for tolerance in (4.0, 1.0, 0.5, 0.1)] == [1, 4, 4, None]
    assert replace(found, tube=torch.full((5,), torch.nan)).tube_window(1.0) is None
    with pytest.raises(ValueError, match="`tolerance`"):
        found.tube_window(0.0)
    assert "certified for these inputs" in [line.get_label() for line in found.plot().axes[0].lines]


def test_cells_without_a_tube_have_none() -> None:
    assert truncation_profile(LeakyCell(3, 4).double(), sequence(), 3).tube.isnan().all()
