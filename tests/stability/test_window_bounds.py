"""Certified windows against brute force: torch's own layer, restarted from zero at ``t - k``."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_stable import certify, project_
from lightning_stable.recurrence import recurrences_of
from tests.nets import LAYERS, NORMS, net, pairwise, set_
from tests.stability.adversary import member
from tests.stability.windows import CASES, ROUNDING, B, bounds_of, linear, powers, stable


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


# Windows --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "layers", "bidirectional"), pairwise(list(LAYERS), [1, 2, 3], [False, True]))
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


@pytest.mark.parametrize(("case", "layers", "bidirectional"), pairwise(CASES, [1, 2], [False, True]))
def test_errors_are_not_exceeded_by_an_adversary(case: tuple[str, str], layers: int, bidirectional: bool) -> None:
    name, norm = case
    rate = 0.95 if norm == "miller-hardt" else 0.8
    module = stable(name, rate, norm, scale=3, num_layers=layers, bidirectional=bidirectional)
    certified = bounds_of(module, norm=norm).errors(4)
    for k in (1, 4):
        assert attack(module, k, steps=12, batch=12) <= certified[k - 1] * ROUNDING


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
    box = recurrence.state_box(weights, B.drive(recurrence.driven_rows(weights)), 1.0)
    assert box is not None
    if not torch.isfinite(box[0]).all():  # of relu where ||W||_2 is not below 1: nothing bounds the states
        assert name == "relu"
        assert torch.isinf(certified).all()
        return
    constant = certificate.contraction.largest(box)
    matrix = torch.eye(5).double() if name != "proj" else weights["weight_hr"]
    scale = certificate.contraction.scales[0]
    spread = matrix.abs() @ scale if certificate.contraction.order == math.inf else matrix * scale
    gain = torch.linalg.vector_norm(spread) if spread.ndim == 1 else torch.linalg.matrix_norm(spread, ord=2)
    gain = certificate.contraction.gain() if norm == "full" else gain
    assert (certified <= gain * constant * powers(certificate.rate, 60) * ROUNDING).all()
    if norm == "row" and name in ("lstm", "proj"):  # entry by entry it is better than by the norm
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
    ("name", "kwargs"),
    [
        ("rnn", {}),
        ("gru", {"num_layers": 2}),
        ("lstm", {"bidirectional": True}),
        ("rnn", {"num_layers": 2, "bidirectional": True}),
        ("gru", {"num_layers": 2, "bidirectional": True}),
    ],
)
def test_required_windows_are_the_first_small_errors(name: str, kwargs: dict[str, Any]) -> None:
    bounds = bounds_of(stable(name, scale=3, **kwargs))
    certified = bounds.errors(70)
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
    assert one_sided.required_window(first * rate**900) in (901, 902)
    assert one_sided.required_window(first * rate**2000, limit=1000) is None
    assert stacked.required_window(tolerance) is None


@pytest.mark.parametrize("norm", NORMS["rnn"])
@pytest.mark.parametrize("weight", [0.0, 5e-324, 1e-310, 1e-200])
def test_nothing_recurrent_leaves_no_nan(norm: str, weight: float) -> None:
    recurrent = weight * torch.eye(5, dtype=torch.float64)
    module = set_(net("rnn", num_layers=2), weight_hh_l0=recurrent, weight_hh_l1=recurrent)
    errors = bounds_of(module, norm=norm).errors(4)
    assert not errors.isnan().any()
    assert (errors <= 2 * 5**0.5 * ROUNDING).all()
    # Two layers restart one step apart: from the third window on no state is left of the start.
    if weight == 0:
        assert (errors[2:] == 0).all()
    single = set_(net("rnn"), weight_hh=recurrent)
    assert bounds_of(single, None, norm=norm).errors(1).item() >= 0.9 * weight  # no square of it is left
    both = set_(net("rnn", bidirectional=True), weight_hh_l0=recurrent, weight_hh_l0_reverse=recurrent)
    assert bounds_of(both, None, norm=norm).errors(1).item() >= 0.9 * weight


@pytest.mark.parametrize("norm", NORMS["rnn"])
def test_bounds_decay_as_far_as_numbers_reach(norm: str) -> None:
    module = set_(net("rnn"), weight_hh=1e-5 * torch.eye(5))
    errors = bounds_of(module, None, norm=norm).errors(60)
    expected = 5**0.5 * 1e-5 ** torch.arange(1, 61, dtype=torch.float64)
    assert (errors >= expected * 0.999).all()  # squares of numbers below 1e-162 are 0
    assert (errors[:50] <= 10 * expected[:50]).all()


def test_windows_of_an_rnn_are_certified_in_the_sharpest_norm() -> None:
    torch.manual_seed(0)
    module = nn.RNN(4, 16, 2)
    project_(module, 0.99)
    windows = {norm: certify(module, norm=norm).required_window(1e-3) for norm in (None, "diagonal", "full")}
    assert len(set(windows.values())) == 1
    assert windows["full"] is not None
    assert windows["full"] < 60
    assert certify(module).rate > 0.98  # the rate is that of the norm that was asked for
