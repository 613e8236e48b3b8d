"""Where no window is certified, what a bound rests on, and the windows of a report."""

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_stable import certify, project_
from lightning_stable.recurrence import Recurrence
from lightning_stable.recurrence.gru import GRURecurrence
from lightning_stable.recurrence.lstm import LSTMRecurrence
from lightning_stable.recurrence.rnn import RNNRecurrence
from lightning_stable.stability import InputSet, Recorded, StabilityReport, record_inputs
from lightning_stable.stability.window_bounds import WindowBounds
from tests.nets import net, set_
from tests.stability.windows import B, bounds_of, linear, powers, stable


def windowed(module: nn.Module, x: Tensor, t: int, k: int) -> Tensor:
    """Output at ``t`` of the window form, shape ``(batch, outputs)``."""
    first, last = max(0, t - k + 1), t + k if module.bidirectional else t + 1
    return module(x[first:last])[0][t - first]


def error(module: nn.Module, x: Tensor, k: int, times: list[int]) -> Tensor:
    """Truncation errors at some times, shape ``(times, batch)``."""
    full = module(x)[0]
    return torch.stack([(full[t] - windowed(module, x, t, k)).norm(dim=-1) for t in times])


# Where nothing is certified -------------------------------------------------------------------------------------------
def hopeless() -> dict[str, tuple[nn.Module, InputSet | None, str | None]]:
    loud = set_(net("relu"), weight_hh=torch.eye(5) / 2 + 3 * torch.eye(5).roll(1, 0).tril())
    return {
        "expanding": (net("rnn", scale=10), B, None),
        "expanding gates": (net("lstm", scale=10), B, None),
        "unstable above": (set_(stable("gru", num_layers=2), weight_hh_l1=3.0), B, None),
        "unstable below": (set_(stable("lstm", num_layers=2), weight_hh_l0=3.0), B, None),
        "unknown inputs": (stable("gru"), None, None),
        "unknown inputs of relu": (stable("relu"), None, None),
        "states without a bound": (loud, B, "perron"),
        "an infinite set": (
            stable("lstm"),
            Recorded(torch.tensor(-math.inf), torch.tensor(math.inf), checked=False),
            None,
        ),
    }


@pytest.mark.parametrize("case", hopeless())
def test_nothing_is_certified(case: str) -> None:
    module, inputs, norm = hopeless()[case]
    bounds = bounds_of(module, inputs, norm=norm)
    assert bounds.guarantee == "none"
    assert bounds.errors(4).tolist() == [math.inf] * 4
    assert bounds.required_window(1.0) is None
    assert certify(module, input_bound=inputs, norm=norm).required_window(1.0) is None


def test_a_perron_certificate_without_a_bound_on_the_states_is_stable_all_the_same() -> None:
    module, inputs, norm = hopeless()["states without a bound"]
    assert certify(module, input_bound=inputs, norm=norm).is_stable


def test_a_cell_without_a_comparison_map_has_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RNNRecurrence, "comparison", Recurrence.comparison)
    module = stable("rnn", 0.9, scale=4, bidirectional=True)
    errors, by_rate = bounds_of(module, None).errors(100), 10**0.5 * powers(0.9, 100)
    torch.testing.assert_close(errors[:20], by_rate[:20], rtol=1e-5, atol=0)
    assert (errors <= (1 + 1e-5) * by_rate).all()  # the form of the sharper norm takes over
    assert bounds_of(stable("rnn", 0.9, num_layers=2), None).guarantee == "none"
    monkeypatch.setattr(RNNRecurrence, "state_box", Recurrence.state_box)
    assert bounds_of(module, None).guarantee == "none"


def test_guarantees_say_what_the_bounds_rest_on() -> None:
    seen = Recorded(-torch.ones(3), torch.ones(3))
    assert bounds_of(stable("lstm", num_layers=2)).guarantee == "guaranteed"
    assert bounds_of(stable("lstm", num_layers=2), seen).guarantee == "data"
    # The states of tanh are bounded whatever was seen, those of relu are not.
    assert bounds_of(stable("rnn", num_layers=2), seen).guarantee == "guaranteed"
    assert torch.equal(bounds_of(stable("rnn"), seen).errors(5), bounds_of(stable("rnn"), None).errors(5))
    assert bounds_of(stable("relu", num_layers=2), seen).guarantee == "data"
    assert bounds_of(stable("rnn"), None).guarantee == "guaranteed"


# Reports --------------------------------------------------------------------------------------------------------------
def model() -> nn.ModuleDict:
    parts = {"core": net("lstm", num_layers=2, bidirectional=True), "plain": net("rnn"), "cell": nn.GRUCell(3, 5)}
    result = nn.ModuleDict(parts).double()
    project_(result, 0.8, input_bound=dict.fromkeys(parts, B))
    return result


def report(module: nn.Module | None = None) -> StabilityReport:
    return certify(module or model(), input_bound={"core": B, "cell": B})


def test_a_report_covers_all_modules() -> None:
    found = report()
    assert [bounds.name for bounds in found.bounds] == ["core", "plain", "cell"]
    windows = [bounds.required_window(1e-2) for bounds in found.bounds]
    assert len(set(windows)) == 3
    assert found.required_window(1e-2) == max(windows)
    assert found.required_window(1e-3) > found.required_window(1e-2)
    assert set(found.to_dict()) == {"rate", "is_stable", "guarantee", "version", "layers"}
    assert replace(found, bounds=()).required_window(1.0) is None
    assert replace(found, bounds=()) == found


class _Listed(WindowBounds):
    """Bounds from a list."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def required_window(self, tolerance: float, limit: int = 10_000, *, at_least: int = 1) -> int | None:
        small = (k for k, value in enumerate(self.values, 1) if value <= tolerance and k >= at_least)
        return next(small, None)


def test_a_common_window_suffices_for_every_module() -> None:
    for bounds in (_Listed(0.5, 2, 0.1, 0.1), _Listed(2, 0.5, 2, 0.1)), (_Listed(2, 0.1), _Listed(0.1, 2, 2, 0.1)):
        found = replace(report(), bounds=bounds)
        assert found.required_window(1.0) == (4 if len(bounds[0].values) == 4 else None)


@pytest.mark.parametrize(("tolerance", "error"), [(0, ValueError), (math.inf, ValueError), (None, TypeError)])
def test_a_tolerance_is_positive_and_finite(tolerance: Any, error: type[Exception]) -> None:
    found = report()
    for ask in (found.required_window, replace(found, bounds=()).required_window, found.bounds[0].required_window):
        with pytest.raises(error, match=r"`tolerance` must be a number in \(0, inf\). Got"):
            ask(tolerance)


@pytest.mark.parametrize(("window", "error"), [(0, ValueError), (1.5, TypeError)])
def test_a_window_is_a_positive_integer(window: Any, error: type[Exception]) -> None:
    bounds = bounds_of(net("rnn"))
    with pytest.raises(error, match=r"`max_window` must be a positive integer. Got"):
        bounds.errors(window)
    with pytest.raises(error, match=r"`limit` must be a positive integer. Got"):
        bounds.required_window(0.1, window)
    with pytest.raises(error, match=r"`at_least` must be a positive integer. Got"):
        bounds.required_window(0.1, at_least=window)


def test_certifying_computes_no_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    module, adapters = model(), (RNNRecurrence, LSTMRecurrence, GRURecurrence)
    asked: list[str] = []

    def watch(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any) -> Any:
            asked.append(function.__name__)
            return function(*args)

        return called

    for adapter in adapters:
        for name in ("state_box", "comparison"):
            monkeypatch.setattr(adapter, name, watch(getattr(adapter, name)))
    found = report(module)
    assert not asked
    assert found.required_window(0.1) is not None
    assert asked


def test_windows_belong_to_the_certified_weights() -> None:
    module = model()
    found = report(module)
    expected = report(module).required_window(1e-2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(5)
    assert found.required_window(1e-2) == expected


@pytest.mark.parametrize("make", [copy.deepcopy, lambda found: pickle.loads(pickle.dumps(found))])
def test_copies_carry_the_windows_but_not_the_model(make: Callable[[StabilityReport], StabilityReport]) -> None:
    module = model()
    module["plain"].unpicklable = lambda: None
    found = report(module)
    again = make(found)
    assert again == found
    assert again.required_window(1e-2) == found.required_window(1e-2)


def test_reports_are_the_same_as_window_bounds() -> None:
    module = stable("lstm", num_layers=2, dropout=0.5).eval()
    (mine,) = certify(module, input_bound=B).bounds
    assert torch.equal(mine.errors(20), bounds_of(module).errors(20))
    training = certify(module.train(), input_bound=B).bounds[0].errors(20)
    assert torch.equal(training, bounds_of(module, training=True).errors(20))
    limit = 2 * 5**0.5  # of any two states, where short windows end
    assert ((training > mine.errors(20)) | (training >= limit)).all()
    assert (training > mine.errors(20)).any()
    (far,) = certify(linear(), input_bound=B, state_bound=20.0).bounds
    assert torch.equal(far.errors(9), bounds_of(linear(), state_bound=20.0).errors(9))
    assert (far.errors(9) > bounds_of(linear()).errors(9)).all()


def test_windows_of_recorded_inputs() -> None:
    module, x = stable("gru", scale=2), torch.randn(30, 16, 3).double().clamp(-2, 2) / 4
    with record_inputs(module) as seen:
        module(x)
    bounds = bounds_of(module, seen)  # type: ignore[arg-type]
    assert bounds.guarantee == "data"
    with torch.no_grad():
        for k, certified in enumerate(bounds.errors(10).tolist(), 1):
            assert error(module, x, k, list(range(30))).max() <= certified
