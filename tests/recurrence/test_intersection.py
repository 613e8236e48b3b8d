"""What sets the intersection RNN apart: its output is no state, and depends on the state before the step."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_stable import certify, project_, truncation_profile
from lightning_stable.recurrence import Recurrence, recurrences_of
from lightning_stable.recurrence.intervals import Interval
from lightning_stable.stability import ActiveEntries, Box, InputSet, L2Ball, SupNorm
from lightning_stable.stability.inputs.resolve import walk_layers
from tests.nets import net, set_
from tests.stability.adversary import member

SETS = [SupNorm(2.0), L2Ball(1.0), Box(0.5, 2.0), ActiveEntries(2)]
CASES = {
    "affine": net("intersection", scale=2),
    "identity": net("intersection", units=3, scale=2),
    "no bias": net("intersection", scale=3, bias=False),
    "closed relu": set_(net("intersection", scale=2), bias_iy=torch.tensor([0.0, -9.0]).repeat_interleave(5)),
    "open gate": set_(net("intersection", scale=2), bias_iy=torch.tensor([6.0, 1.0]).repeat_interleave(5)),
}


def parts(module: nn.Module, inputs: InputSet) -> tuple[Recurrence, dict[str, Tensor], Interval]:
    (recurrence,) = recurrences_of(module)
    weights = recurrence.weights()
    drive = inputs.drive(recurrence.driven_rows(weights))
    return recurrence, weights, drive


def ascend(value: Callable[[], Tensor], free: list[Tensor], steps: int = 40) -> float:
    """The largest of ``value()``, in the course of gradient ascent."""
    optimizer, worst = torch.optim.Adam([part.requires_grad_() for part in free], lr=0.05), 0.0
    for _ in range(steps):
        found = value()
        worst = max(worst, found.max().item())
        optimizer.zero_grad()
        (-(found + 1e-9).log().sum()).backward()
        optimizer.step()
    return worst


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1.5


adversarial = pytest.mark.parametrize(
    ("case", "inputs", "state_bound"),
    [(case, inputs, 1.0 + 2 * (index % 2)) for index, (case, inputs) in enumerate(itertools.product(CASES, SETS))],
)


@adversarial
def test_the_output_bound_against_an_adversary(case: str, inputs: InputSet, state_bound: float) -> None:
    module = CASES[case].requires_grad_(False)
    recurrence, weights, drive = parts(module, inputs)
    bound = recurrence.output_bound(weights, drive, state_bound)
    assert bound is not None
    h, x = uniform(64, module.hidden_size), uniform(64, 3, seed=1)

    def share() -> Tensor:
        state = (state_bound * h.clamp(-1, 1), torch.zeros_like(h))
        return recurrence.output(recurrence.step(member(inputs, x), state)).abs() / bound

    assert 0.4 < ascend(share, [h, x]) <= 1 + 1e-9


@adversarial
def test_the_output_comparison_against_an_adversary(case: str, inputs: InputSet, state_bound: float) -> None:
    module = CASES[case].requires_grad_(False)
    recurrence, weights, drive = parts(module, inputs)
    box = recurrence.state_box(weights, drive, state_bound)
    compare = recurrence.output_comparison(weights, drive, state_bound)
    assert box is not None
    assert compare is not None
    free = [uniform(64, module.hidden_size, seed=k) for k in (0, 1)] + [uniform(64, 3, seed=k) for k in (2, 3)]
    # Some pairs differ in the state alone, some in the input alone, some by little.
    states = torch.tensor([1.0, 0.0, 1.0, 1e-3]).double().repeat(16)[:, None]
    driven = torch.tensor([0.0, 1.0, 1.0, 1e-3]).double().repeat(16)[:, None]

    def ratio() -> Tensor:
        a, b = (box[0] * part.clamp(-1, 1) for part in free[:2])
        b = a + states * (b - a)
        x, y = (member(inputs, part) for part in free[2:])
        y = x + driven * (y - x)
        ends = [recurrence.output(recurrence.step(*pair)) for pair in ((x, (a, a)), (y, (b, b)))]
        limit = compare(((a - b).abs(),), (x - y).abs())
        change = (ends[0] - ends[1]).abs()
        assert (change <= limit * (1 + 1e-9) + 1e-13).all()
        return change / (limit + 1e-9)

    assert ascend(ratio, free) > 0.4


def test_outputs_without_inputs_are_unknown() -> None:
    (recurrence,) = recurrences_of(net("intersection"))
    weights = recurrence.weights()
    assert recurrence.output_bound(weights, None, 1.0) is None
    assert recurrence.output_comparison(weights, None, 1.0) is None
    assert certify(net("intersection", num_layers=2)).layers[1].guarantee == "none"


def test_layers_above_see_outputs_that_grow() -> None:
    module = net("intersection", units=3, num_layers=3, scale=3)
    report = certify(module, input_bound=2.0)
    words = [certificate.input_bound for certificate in report.layers]
    assert words == ["|x| <= 2", "the layer below", "the layer below"]
    # The certificate of the second layer is that of the layer alone, for what the first can put out.
    recurrence, weights, drive = parts(CASES["identity"], SupNorm(2.0))
    bound = recurrence.output_bound(weights, drive, 1.0)
    assert bound is not None
    assert bound.max() > 2  # a relu, unlike the state, leaves [-1, 1]


def test_the_cheap_certificate_of_a_stack_is_finite() -> None:
    recurrence, _, drive = parts(CASES["affine"], SupNorm(2.0))
    (layer,) = walk_layers([recurrence], {"": SupNorm(2.0)}, leading_only=True)
    assert layer.drive is not None
    assert torch.equal(layer.drive.high, drive.high)


def test_profiles_measure_outputs() -> None:
    """With a closed gate in time nothing of the state is left, and still the output reads the last one."""
    module = set_(
        net("intersection", scale=0.5), bias_ih=torch.tensor([-50.0, 0.0]).repeat_interleave(5), weight_hh=0.0
    )
    project_(module, 0.9, input_bound=2.0)
    x = torch.rand(20, 4, 3, dtype=torch.float64) * 4 - 2
    profile = truncation_profile(module, x, 4, input_bound=2.0)
    assert profile.max_error[0] > 1e-2  # h before the step is missing
    assert profile.max_error[1:].max() < 1e-12
    assert profile.max_error[0] <= profile.bound[0]
    assert profile.bound[1] < 1e-12
