"""Comparison maps and boxes of the states against an adversary, and against runs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_stable import project_
from lightning_stable.recurrence import recurrences_of
from lightning_stable.stability import InputSet, L2Ball, Recorded, SupNorm
from tests.nets import LAYERS, net, set_
from tests.stability.adversary import member, torch_step, unprojected
from tests.stability.windows import ROUNDING, B, stable


# One step -------------------------------------------------------------------------------------------------------------
def step_ratio(
    module: nn.Module, inputs: InputSet, state_bound: float, *, steps: int, seed: int, pairs: int = 32
) -> Tensor:
    """Per pair the largest ``|phi(a, x) - phi(b, y)|_j / T(|a - b|, |x - y|)_j`` met by an ascent."""
    (recurrence,) = recurrences_of(module)
    weights = recurrence.weights()
    drive = inputs.drive(recurrence.driven_rows(weights))
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
        "leaky": net("leaky", scale=2),
        "leaky without bias": net("leaky", scale=2, bias=False),
        "mingru": net("mingru", scale=2),
        "minlstm": net("minlstm", scale=2),
        "minlstm with closed gates": set_(
            net("minlstm", scale=2), bias_ih=torch.tensor([-6.0, -5.0, 0.0]).repeat_interleave(5)
        ),
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
    drive = B.drive(recurrence.driven_rows(weights))
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
    box = recurrence.state_box(weights, B.drive(recurrence.driven_rows(weights)), state_bound)
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
