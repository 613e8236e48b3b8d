"""Certified windows against brute force: torch's own layer, restarted from zero at ``t - k``."""

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_stable import certify, project_
from lightning_stable.recurrence import Recurrence, find_recurrences, recurrences_of
from lightning_stable.recurrence.gru import GRURecurrence
from lightning_stable.recurrence.lstm import LSTMRecurrence
from lightning_stable.recurrence.rnn import RNNRecurrence
from lightning_stable.stability import InputSet, L2Ball, Recorded, StabilityReport, SupNorm, record_inputs
from lightning_stable.stability.inputs.resolve import resolve_sources
from lightning_stable.stability.window_bounds import WindowBounds, window_bounds
from tests.nets import LAYERS, NORMS, net, set_
from tests.stability.adversary import member, torch_step, unprojected

B = SupNorm(2.0)
ROUNDING = 1 + 1e-9
CASES = [(name, norm) for name, norms in NORMS.items() for norm in norms]


def stable(name: str, rate: float = 0.9, norm: str | None = None, **kwargs: Any) -> nn.Module:
    module = net(name, **kwargs)
    project_(module, rate, input_bound=B, norm=norm)
    return module


def bounds_of(module: nn.Module, inputs: InputSet | None = B, **kwargs: Any) -> WindowBounds:
    recurrences = find_recurrences(module)
    (bounds,) = window_bounds(recurrences, resolve_sources(module, recurrences, inputs), **kwargs)
    return bounds


def powers(rate: float, count: int) -> Tensor:
    return rate ** torch.arange(1, count + 1, dtype=torch.float64)


def windowed(module: nn.Module, x: Tensor, t: int, k: int) -> Tensor:
    """Output at ``t`` of the window form, shape ``(batch, outputs)``."""
    first, last = max(0, t - k + 1), t + k if module.bidirectional else t + 1
    return module(x[first:last])[0][t - first]


def error(module: nn.Module, x: Tensor, k: int, times: list[int]) -> Tensor:
    """Truncation errors at some times, shape ``(times, batch)``."""
    full = module(x)[0]
    return torch.stack([(full[t] - windowed(module, x, t, k)).norm(dim=-1) for t in times])


def attack(module: nn.Module, k: int, *, steps: int = 30, batch: int = 24, lead: int = 12) -> float:
    """The largest error found by gradient ascent over inputs; half of them start at constant extremes."""
    module = module.requires_grad_(False)
    length = 2 * lead + 2 * k if module.bidirectional else lead + k
    t = lead + k - 1
    generator = torch.Generator().manual_seed(k)
    x = torch.rand(length, batch, module.input_size, generator=generator, dtype=torch.float64) * 4 - 2
    x[:, ::2] = x[:1, ::2].sign()
    x.requires_grad_()
    optimizer, worst = torch.optim.Adam([x], lr=0.1), 0.0
    for _ in range(steps):
        found = error(module, member(B, x.flatten(0, 1)).view_as(x), k, [t])
        worst = max(worst, found.max().item())
        optimizer.zero_grad()
        (-(found + 1e-12).log().sum()).backward()
        optimizer.step()
    return worst


# One step -------------------------------------------------------------------------------------------------------------
def step_ratio(
    module: nn.Module, inputs: InputSet, state_bound: float, *, steps: int, seed: int, pairs: int = 32
) -> Tensor:
    """Per pair the largest ``|phi(a, x) - phi(b, y)|_j / T(|a - b|, |x - y|)_j`` met by an ascent."""
    (recurrence,) = recurrences_of(module)
    weights = recurrence.weights()
    drive = inputs.drive(weights["weight_ih"])
    box = recurrence.state_box(weights, drive, state_bound)
    comparison = recurrence.comparison(weights, drive, state_bound)
    assert box is not None
    assert comparison is not None
    plain = unprojected(module).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)

    def uniform(size: int) -> Tensor:
        return (torch.rand(pairs, size, generator=generator, dtype=torch.float64) * 2 - 1) * 1.5

    free = [uniform(len(part)) for part in (*box, *box)] + [uniform(recurrence.input_size) for _ in range(2)]
    free = [value.requires_grad_() for value in free]
    # From near to far, in states and inputs; some pairs differ in one of the two only.
    near, far = torch.logspace(-3, 0, pairs // 4).double(), torch.ones(pairs // 4).double()
    zero = torch.zeros(pairs // 4).double()
    apart, driven = torch.cat((near, far, far, zero))[:, None], torch.cat((near, far, zero, far))[:, None]
    optimizer, worst = torch.optim.Adam(free, lr=0.05), torch.zeros(pairs, dtype=torch.float64)
    for _ in range(steps):
        ends = [value.clamp(-1, 1) for value in free]
        a = tuple(size * end for size, end in zip(box, ends, strict=False))
        b = tuple(p + apart * (size * end - p) for p, size, end in zip(a, box, ends[len(box) :], strict=False))
        x = member(inputs, ends[-2])
        y = x + driven * (member(inputs, ends[-1]) - x)
        after = zip(torch_step(plain, x, a), torch_step(plain, y, b), strict=True)
        change = torch.cat([(p - q).abs() for p, q in after], dim=1)
        limit = torch.cat(comparison(tuple((p - q).abs() for p, q in zip(a, b, strict=True)), (x - y).abs()), dim=1)
        assert (change <= limit * ROUNDING + 1e-13).all()
        ratio = change / (limit + 1e-9)
        worst = worst.maximum(ratio.detach().amax(1))
        optimizer.zero_grad()
        (-(ratio + 1e-9).log().sum()).backward()
        optimizer.step()
    return worst


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(sorted(LAYERS)),
    scale=st.floats(0.1, 4),
    bias=st.booleans(),
    seed=st.integers(0, 10**6),
    inputs=st.sampled_from([B, SupNorm(0.1), L2Ball(1.0), Recorded(torch.tensor(0.5), torch.tensor(1.0))]),
    state_bound=st.sampled_from([1.0, 3.0]),
)
def test_the_comparison_map_bounds_a_step(
    name: str, scale: float, bias: bool, seed: int, inputs: InputSet, state_bound: float
) -> None:
    module = net(name, scale=scale, bias=bias, seed=seed)
    if name == "relu":  # its states are bounded where it contracts
        project_(module, 0.9)
    step_ratio(module, inputs, state_bound, steps=1, seed=seed)


def corners() -> dict[str, nn.Module]:
    def gates(*values: float) -> Tensor:
        return torch.tensor(values).repeat_interleave(5)

    one = {"inputs": 1, "units": 1}
    return {
        "tanh": net("rnn", scale=2),
        "relu": stable("relu", scale=2),
        "far from zero": set_(net("rnn"), bias_hh=4.0),
        "lstm": net("lstm", scale=2),
        "lstm without bias": net("lstm", scale=2, bias=False),
        "lstm with moving gates": set_(net("lstm", scale=3), weight_ih=0.1, bias_ih=gates(0, 1, 1, 0)),
        "candidate far from zero": set_(
            net("lstm", **one), weight_ih=0.1, weight_hh=[[1.2], [0], [1], [0]], bias_ih=[1.2, -9, 2.47, 9], bias_hh=0
        ),
        "only the output gate": set_(
            net("lstm", **one), weight_ih=[[0], [0], [0], [0.3]], weight_hh=0, bias_ih=[3, 1, 3, 0], bias_hh=0
        ),
        "projection": net("proj", scale=2),
        "gru": net("gru", scale=2),
        "gru without bias": net("gru", scale=2, bias=False),
        "large b_hn": set_(net("gru", scale=2), bias_hh=gates(0, -4, 9), bias_ih=gates(0, 0, -6)),
        "closed update gate": set_(net("gru", scale=3), bias_hh=gates(0, -6, 0)),
        "strong reset": set_(
            net("gru", **one), weight_hh=[[4.0], [0.0], [0.3]], bias_ih=[0, -4, -3], bias_hh=[0, 0, 3]
        ),
        "ugrnn": net("ugrnn", scale=2),
        "ugrnn without bias": net("ugrnn", scale=2, bias=False),
        "ugrnn with closed gate": set_(net("ugrnn", scale=3), bias_hh=gates(-6, 0)),
        "intersection": net("intersection", scale=2),
        "strong update": set_(net("gru", **one), weight_hh=[[0.0], [3.0], [0.3]], weight_ih=0.1, bias_ih=0, bias_hh=0),
    }


@pytest.mark.parametrize("state_bound", [1.0, 3.0])
@pytest.mark.parametrize("case", corners())
def test_the_comparison_map_against_an_adversary(case: str, state_bound: float) -> None:
    worst = step_ratio(corners()[case], B, state_bound, steps=80, seed=0)
    # The adversary is no straw man, in states, in inputs, and in both.
    assert worst.max() > 0.35


@pytest.mark.parametrize("name", LAYERS)
def test_the_comparison_map_is_monotone(name: str) -> None:
    (recurrence,) = recurrences_of(net(name, scale=2))
    weights = recurrence.weights()
    drive = B.drive(weights["weight_ih"])
    comparison, box = recurrence.comparison(weights, drive, 1.0), recurrence.state_box(weights, drive, 1.0)
    assert comparison is not None
    assert box is not None
    for _ in range(20):
        small = [2 * torch.rand(64, len(part)).double() ** 4 for part in box]
        large = [part + torch.rand_like(part) ** 8 for part in small]
        before, after = torch.rand(64, 3).double() ** 4, torch.rand(64, 3).double() ** 4
        pairs = zip(comparison(tuple(small), before), comparison(tuple(large), before + after), strict=True)
        assert all((p <= q * ROUNDING).all() for p, q in pairs)
        none, zero = comparison(tuple(small), None), comparison(tuple(small), 0 * before)
        assert all(torch.equal(p, q) for p, q in zip(none, zero, strict=True))


# Boxes ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("state_bound", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("scale", [0.5, 2.0])
@pytest.mark.parametrize("name", LAYERS)
def test_runs_stay_in_the_box(name: str, scale: float, state_bound: float) -> None:
    module = stable(name, scale=scale) if name == "relu" else net(name, scale=scale)
    (recurrence,) = recurrences_of(module)
    weights = recurrence.weights()
    box = recurrence.state_box(weights, B.drive(weights["weight_ih"]), state_bound)
    assert box is not None
    plain = unprojected(module).requires_grad_(False)
    torch.manual_seed(0)
    signs = torch.cat([weights["weight_ih"].sign(), -weights["weight_ih"].sign()])
    held = signs[torch.randint(len(signs), (40, 96))]
    x = torch.cat([signs.expand(40, -1, -1), torch.randn(40, 32, 3).double(), held, held[:1].expand(40, -1, -1)], 1)
    x.requires_grad_()
    sizes = [part.clamp(max=state_bound) for part in box]  # with `proj_size`, `m` is bounded after every step
    start = tuple((2 * torch.rand(x.shape[1], len(size)).double() - 1).sign() * size for size in sizes)
    optimizer = torch.optim.Adam([x], lr=0.05)
    for _ in range(12):
        state = start
        largest = []
        for inputs in member(B, x.flatten(0, 1)).view_as(x):
            assert all((part.abs() <= size * ROUNDING + 1e-12).all() for part, size in zip(state, box, strict=True))
            largest.append(torch.stack([(part.abs() / size).amax() for part, size in zip(state, box, strict=True)]))
            state = torch_step(plain, inputs, state)
        optimizer.zero_grad()
        (-torch.cat([part.abs() / size for part, size in zip(state, box, strict=True)], 1).sum()).backward()
        optimizer.step()
    assert torch.stack(largest).amax() > 0.1


@pytest.mark.parametrize(("name", "file"), [("rnn", "rnn"), ("lstm", "lstm"), ("gru", "leaky"), ("ugrnn", "leaky")])
def test_boxes_are_narrowed_by_their_own_bounds(name: str, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (recurrence,) = recurrences_of(net(name, scale=1.0))
    weights = recurrence.weights()
    drive = SupNorm(0.1).drive(weights["weight_ih"])
    box, known = recurrence.state_box(weights, drive, 0.0), recurrence.output_bound(weights, drive, 0.0)
    assert box is not None
    assert known is not None
    assert (box[0] < 0.99 * known).all()
    monkeypatch.setattr(f"lightning_stable.recurrence.{file}.BOX_ROUNDS", 0)
    wide = recurrence.state_box(weights, drive, 0.0)
    assert wide is not None
    assert (box[0] < 0.99 * wide[0]).all()
    for state_bound in (1.0, 3.0):
        from_there = recurrence.state_box(weights, drive, state_bound)
        assert from_there is not None
        assert from_there[0].tolist() == [state_bound] * 5


def test_runs_of_relu_from_zero_are_as_small_as_their_drive() -> None:
    (recurrence,) = recurrences_of(stable("relu", bias=False))
    weights = recurrence.weights()
    box = recurrence.state_box(weights, SupNorm(1e-3).drive(weights["weight_ih"]), 0.0)
    assert box is not None
    assert (box[0] < 0.1).all()


@pytest.mark.parametrize(("name", "known"), [("rnn", True), ("relu", False), ("lstm", False), ("gru", False)])
def test_boxes_without_inputs(name: str, known: bool) -> None:
    (recurrence,) = recurrences_of(net(name))
    assert (recurrence.state_box(recurrence.weights(), None, 1.0) is not None) == known
    assert (recurrence.comparison(recurrence.weights(), None, 1.0) is not None) == (name in ("rnn", "relu"))


# Windows --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_errors_are_never_exceeded(name: str, layers: int, bidirectional: bool) -> None:
    module = stable(name, scale=3, num_layers=layers, bidirectional=bidirectional)
    certified = bounds_of(module).errors(8)
    assert certified.dtype == torch.float64
    torch.manual_seed(0)
    x = 4 * torch.rand(24, 48, 3, dtype=torch.float64) - 2
    x[:, 16:] = 2 * x[:, 16:].sign()
    x[:, 32:] = x[:1, 32:]
    with torch.no_grad():
        for k in range(1, 9):
            assert (error(module, x, k, list(range(24))) <= certified[k - 1] * ROUNDING).all()


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("name", "norm"), CASES)
def test_errors_are_not_exceeded_by_an_adversary(name: str, norm: str, layers: int, bidirectional: bool) -> None:
    rate = 0.95 if norm == "miller-hardt" else 0.8
    module = stable(name, rate, norm, scale=3, num_layers=layers, bidirectional=bidirectional)
    certified = bounds_of(module, norm=norm).errors(4)
    for k in (1, 4):
        assert attack(module, k, steps=12, batch=12) <= certified[k - 1] * ROUNDING


def linear(weight: float = 0.6, **kwargs: Any) -> nn.Module:
    """A relu network of single positive units is linear on positive inputs, and its bounds are attained."""
    module = net("relu", inputs=1, units=1, **kwargs)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            backward = 0.8 if name.endswith("reverse") else 1.0
            parameter.fill_({"weight_hh": weight, "weight_ih": 0.7}.get(name[:9], 0.1) * backward)
            if name.startswith("weight_ih"):
                parameter[:, 1:] /= 3  # the two directions of the layer below are not alike
    return module


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_bounds_are_attained_by_linear_networks(layers: int, bidirectional: bool) -> None:
    module = linear(num_layers=layers, bidirectional=bidirectional)
    certified = bounds_of(module).errors(40)
    x = torch.full((241, 1, 1), 2.0, dtype=torch.float64)
    with torch.no_grad():
        for k in (1, 2, 5, 20, 33, 40):
            measured = error(module, x, k, [120]).item()
            assert measured == pytest.approx(certified[k - 1].item(), rel=1e-7)


@pytest.mark.parametrize("name", LAYERS)
def test_runs_from_a_users_state(name: str) -> None:
    module = net(name, num_layers=2, scale=2)
    project_(module, 0.9, input_bound=B, state_bound=3.0)
    certified = bounds_of(module, state_bound=3.0).errors(5)
    x = 4 * torch.rand(5, 64, 3, dtype=torch.float64) - 2
    _, zero = module(x)
    sizes = [part.shape for part in zero] if isinstance(zero, tuple) else [zero.shape]
    start = [3 * torch.randn(size, dtype=torch.float64).sign() for size in sizes]
    if name == "proj":  # admissible are h = W_hr m
        matrices = [module.weight_hr_l0, module.weight_hr_l1]
        start[0] = torch.stack([3 * torch.randn(64, 5).double().sign() @ matrix.mT for matrix in matrices])
    with torch.no_grad():
        full = module(x, tuple(start) if isinstance(zero, tuple) else start[0])[0]
        for k in range(1, 6):
            found = (full[k - 1] - module(x[:k])[0][-1]).norm(dim=-1)
            assert (found <= certified[k - 1] * ROUNDING).all()


def test_bounds_from_a_users_state_are_attained_by_a_linear_network() -> None:
    module, x = linear(), torch.full((9, 1, 1), 2.0, dtype=torch.float64)
    with torch.no_grad():
        found = module(x, torch.full((1, 1, 1), 20.0, dtype=torch.float64))[0] - module(x)[0]
    torch.testing.assert_close(found.flatten(), bounds_of(module, state_bound=20.0).errors(9), rtol=1e-9, atol=0)


@pytest.mark.parametrize("norm", NORMS["proj"])
def test_the_output_is_read_through_the_projection(norm: str) -> None:
    module = stable("proj", 0.95, norm)
    larger = copy.deepcopy(module)
    with torch.no_grad():
        larger.weight_hr_l0.mul_(8)  # of m, with the same recurrence
        larger.weight_hh_l0.div_(8)
    expected = bounds_of(module, norm=norm, state_bound=0.0).errors(30)
    torch.testing.assert_close(bounds_of(larger, norm=norm, state_bound=0.0).errors(30), 8 * expected)
    readout, signs = module.weight_hr_l0.detach(), torch.tensor([[-1.0, 1, 1, 1, 1]]).double()
    first = bounds_of(module, norm=norm, state_bound=0.0).layers[0][0]
    torch.testing.assert_close(first._replace(readout=readout * signs).run(None, 30), first.run(None, 30))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_dropout_between_layers_scales_the_error(bidirectional: bool) -> None:
    kwargs = {"num_layers": 2, "bidirectional": bidirectional}
    dropped, plain = linear(dropout=0.5, **kwargs), linear(**kwargs)
    twice = copy.deepcopy(plain)
    with torch.no_grad():
        for name, parameter in twice.named_parameters():
            if name.startswith("weight_ih_l1"):
                parameter.mul_(2)

    def errors(module: nn.Module, training: bool | None = False) -> Tensor:
        return bounds_of(module, training=training).errors(10)

    torch.testing.assert_close(errors(dropped), errors(plain))
    torch.testing.assert_close(errors(dropped, True), errors(twice))
    torch.testing.assert_close(errors(dropped, None), errors(twice))
    torch.testing.assert_close(errors(dropped.eval(), None), errors(plain))
    assert (errors(twice) > errors(plain)).all()


# Shape of the bounds --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "norm"), [case for case in CASES if case[0] != "intersection"])  # reads other states
def test_never_worse_than_the_rate_of_the_same_certificate(name: str, norm: str) -> None:
    module = stable(name, 0.95 if norm == "miller-hardt" else 0.9, norm, scale=3)
    certificate, certified = (
        certify(module, input_bound=B, norm=norm).layers[0],
        bounds_of(module, norm=norm).errors(60),
    )
    (recurrence,) = recurrences_of(module)
    weights = recurrence.weights()
    box = recurrence.state_box(weights, B.drive(weights["weight_ih"]), 1.0)
    assert box is not None
    constant = certificate.distance(box, tuple(torch.zeros_like(part) for part in box))
    matrix = torch.eye(5).double() if name != "proj" else weights["weight_hr"]
    scale = certificate.contraction.scales[0]
    spread = matrix.abs() @ scale if certificate.contraction.order == math.inf else matrix * scale
    gain = torch.linalg.vector_norm(spread) if spread.ndim == 1 else torch.linalg.matrix_norm(spread, ord=2)
    assert (certified <= gain * constant * powers(certificate.rate, 60) * ROUNDING).all()
    if norm == "row" and name != "ugrnn":  # entry by entry it is better than by the norm
        assert certified[-1] < 0.9 * gain * constant * certificate.rate**60


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_spectral_certificate_needs_no_small_entries(bidirectional: bool) -> None:
    module = stable("rnn", 0.9, units=32, scale=8, bidirectional=bidirectional)
    assert certify(module, norm="perron").rate > 2
    certified = bounds_of(module).errors(200)
    assert (certified <= (64 if bidirectional else 32) ** 0.5 * powers(0.9, 200) * ROUNDING).all()
    assert bounds_of(stable("rnn", 0.9, units=32, scale=8, num_layers=2)).errors(400)[-1] < 1e-10


def test_entries_and_norm_narrow_each_other() -> None:
    # 48 units forget at once, which the rate does not know; for the others |W| = 1.8 in every norm, but ||W||_2 = 0.9.
    signs = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]).double()
    module = set_(net("rnn", units=52), weight_hh=torch.block_diag(torch.zeros(48, 48).double(), 0.45 * signs))
    certified = bounds_of(module, None).errors(50)
    torch.testing.assert_close(certified, 3.6 * powers(0.9, 50) / 0.9, rtol=1e-9, atol=0)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_bounds_of_stable_networks_vanish(name: str, bidirectional: bool) -> None:
    certified = bounds_of(stable(name, 0.7, num_layers=2, bidirectional=bidirectional)).errors(120)
    assert certified[-1] < 1e-8 * certified[0]


@pytest.mark.parametrize(
    "kwargs", [{}, {"num_layers": 2}, {"bidirectional": True}, {"num_layers": 2, "bidirectional": True}]
)
@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_required_windows_are_the_first_small_errors(name: str, kwargs: dict[str, Any]) -> None:
    bounds = bounds_of(stable(name, scale=3, **kwargs))
    certified = bounds.errors(100)
    torch.testing.assert_close(certified[:40], bounds.errors(40), rtol=1e-12, atol=0)
    assert bounds.errors(1).shape == (1,)
    for tolerance in (1e3, 0.5, 0.1, 0.02):
        small = (certified <= tolerance).nonzero()
        if len(small):
            expected = int(small[0]) + 1
            assert bounds.required_window(tolerance) == expected
            assert bounds.required_window(tolerance, limit=expected) == expected
            assert expected == 1 or bounds.required_window(tolerance, limit=expected - 1) is None
            assert bounds.required_window(tolerance, at_least=expected + 3) >= expected + 3


def test_long_windows_end_at_the_limit() -> None:
    rate, tolerance = 0.999, 2.0  # single units start at 1000 times their drive and are slow to forget it
    one_sided, stacked = (
        bounds_of(linear(rate, **kwargs)) for kwargs in ({}, {"num_layers": 2, "bidirectional": True})
    )
    first = one_sided.errors(1).item()
    assert one_sided.required_window(first * rate**5000) in (5001, 5002)
    assert one_sided.required_window(first * rate**11_000) is None
    assert stacked.required_window(tolerance) is None


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
    torch.testing.assert_close(bounds_of(module, None).errors(100), 10**0.5 * powers(0.9, 100), rtol=1e-5, atol=0)
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
    assert set(found.to_dict()) == {"rate", "is_stable", "version", "layers"}
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
    assert (training > mine.errors(20)).all()
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
