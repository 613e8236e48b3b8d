"""`state_bound` means what it says: for every part of a start state, in one step and over windows."""

import pytest
import torch
from torch import Tensor, nn

from lightning_stable import certify, project_
from lightning_stable.stability import Box, InputSet, L2Ball, SupNorm
from tests.nets import net
from tests.stability.adversary import member, state_box, worst_ratio

B = SupNorm(1.0)


def unit(weight_hh: list[float], bias_ih: list[float]) -> nn.LSTM:
    """An LSTM with one unit whose candidate alone reads the input."""
    layer = nn.LSTM(1, 1, dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.weight_ih_l0.copy_(torch.tensor([0.0, 0.0, 1.0, 0.0])[:, None])
        layer.weight_hh_l0.copy_(torch.tensor(weight_hh)[:, None])
        layer.bias_ih_l0.copy_(torch.tensor(bias_ih))
    return layer


def test_a_cell_state_outside_the_box_of_runs_from_zero() -> None:
    """From ``h = +-.1, c = 1`` one step expands by 1.169; from zero ``c`` stays below .005."""
    layer = unit([0.0, 2.0, 0.0, 9.0], [-6.0, 0.0, 0.0, 0.0])
    report = certify(layer, input_bound=B)
    (certificate,) = report.layers
    states = [(torch.tensor([[h]]).double(), torch.tensor([[1.0]]).double()) for h in (0.1, -0.1)]
    after = [layer(torch.zeros(1, 1, 1).double(), (h[None], c[None]))[1] for h, c in states]
    before = certificate.distance(*states)
    ratio = certificate.distance(*((h[0], c[0]) for h, c in after)) / before
    assert ratio.item() <= report.rate
    assert certify(layer, input_bound=B, state_bound=0).rate < 0.9  # a smaller promise, for runs from zero


def test_windows_of_runs_that_start_at_one() -> None:
    """The cell forgets its start slowly, and nothing comes in: the error of a window is what is left of the start."""
    layer = unit([0.0, 0.3, 0.0, 0.5], [-6.0, 3.0, 0.0, 0.0])
    start = (torch.ones(1, 1, 1).double(), torch.ones(1, 1, 1).double())
    inputs = torch.zeros(40, 1, 1).double()
    errors = (layer(inputs, start)[0] - layer(inputs)[0]).abs().flatten()
    assert errors[14] > 0.2
    bounds = certify(layer, input_bound=B).bounds[0].errors(40)
    assert (errors <= bounds * (1 + 1e-9)).all()
    assert certify(layer, input_bound=B, state_bound=0).bounds[0].errors(40)[14] < 0.01


NAMES = ["rnn", "relu", "lstm", "proj", "gru", "ugrnn", "intersection"]
SETS = [B, SupNorm(0.1), Box(1.5, 2.0), L2Ball(0.5)]


def quiet(name: str, seed: int) -> nn.Module:
    """A layer whose own boxes are small: its gates are nearly closed, so that start states stand out."""
    layer = net(name, units=4, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in layer.named_parameters():
            if key.startswith("bias"):
                value.copy_(3 * torch.randn(value.shape, generator=generator))
            elif key.startswith("weight_hh"):
                value.mul_(4 * torch.rand((), generator=generator))
    return layer


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(s, marks=pytest.mark.slow) for s in range(3, 16))])
@pytest.mark.parametrize("state_bound", [0.0, 0.3, 1.0, 2.5])
@pytest.mark.parametrize("name", ["lstm", "gru", "ugrnn"])
def test_one_step_contracts(name: str, state_bound: float, seed: int) -> None:
    layer, inputs = quiet(name, seed), SETS[seed % len(SETS)]
    for norm in ("row", "tight", "l2"):
        (certificate,) = certify(layer, input_bound=inputs, norm=norm, state_bound=state_bound).layers
        found = worst_ratio(layer, certificate, inputs, state_bound=state_bound, pairs=64, steps=30, seed=seed)
        assert found <= certificate.rate * (1 + 1e-8) + 1e-9


def window_errors(layer: nn.Module, inputs: InputSet, state_bound: float, steps: int, runs: int, seed: int) -> Tensor:
    """The largest errors found after 1 .. ``steps`` steps between a run from a start state and one from zero.

    With ``proj_size`` the run makes one step more: its start ``h_0`` is no state of the certificate, which speaks of
    ``m``, and a window that reaches over the beginning has the run's own start.
    """
    early = int(bool(getattr(layer, "proj_size", 0)))
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1

    layer.requires_grad_(False)
    sizes = [layer.proj_size or layer.hidden_size] if isinstance(layer, nn.LSTM) else [layer.hidden_size]
    sizes += [layer.hidden_size] if isinstance(layer, nn.LSTM) else []
    free = [uniform(runs, size).sign() for size in sizes] + [2 * uniform((early + steps) * runs, layer.input_size)]
    free = [value.requires_grad_() for value in free]
    optimizer, worst = torch.optim.Adam(free, lr=0.1), torch.zeros(steps, dtype=torch.float64)
    for _ in range(12):
        start = tuple(state_bound * value.clamp(-1, 1)[None] for value in free[:-1])
        x = member(inputs, free[-1]).view(early + steps, runs, -1)
        apart = layer(x, start if len(start) > 1 else start[0])[0][early:] - layer(x[early:])[0]
        error = torch.linalg.vector_norm(apart, dim=-1)
        worst = torch.maximum(worst, error.detach().amax(1))
        optimizer.zero_grad()
        (-(error + 1e-12).log().sum()).backward()
        optimizer.step()
    return worst


@pytest.mark.parametrize("seed", [*range(2), *(pytest.param(s, marks=pytest.mark.slow) for s in range(2, 40))])
@pytest.mark.parametrize("state_bound", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", NAMES)
def test_windows_cover_start_states(name: str, state_bound: float, seed: int) -> None:
    """In the slow suite some 300,000 steps of runs, driven by gradient ascent away from the run from zero."""
    layer, inputs = quiet(name, seed), SETS[seed % len(SETS)]
    report = project_(layer, 0.9, input_bound=inputs, state_bound=state_bound)
    errors = report.bounds[0].errors(12)
    found = window_errors(layer, inputs, state_bound, 12, 32, seed)
    assert (found <= errors * (1 + 1e-8) + 1e-9).all()


def test_the_box_of_the_adversary_holds_start_states() -> None:
    for state_bound in (0.0, 1.0, 3.0):
        assert all((part >= state_bound).all() for part in state_box(net("lstm"), B, state_bound))
