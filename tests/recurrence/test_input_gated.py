import pytest
import torch
from torch import Tensor, nn

from lightning_stable import certify, project_
from lightning_stable.recurrence import recurrences_of
from lightning_stable.stability import ActiveEntries, FiniteSet, InputSet, L2Ball, SupNorm
from tests.nets import net, set_
from tests.stability.adversary import TOLERANCE, member, worst_ratio

CELLS = ("mingru", "minlstm")
SETS = [
    SupNorm(2.0),
    L2Ball(3.0),
    ActiveEntries(2),
    FiniteSet(torch.randn(9, 3, generator=torch.Generator().manual_seed(0))),
]


def leaks(module: nn.Module, x: Tensor) -> Tensor:
    """The leaks as in the papers."""
    gates = (x @ module.weight_ih_l0.mT + getattr(module, "bias_ih_l0", 0)).sigmoid()
    if len(module.weight_ih_l0) == 2 * module.hidden_size:
        return 1 - gates.chunk(2, -1)[0]
    forget, enter, _ = gates.chunk(3, -1)
    return forget / (forget + enter)


def largest_leak(module: nn.Module, inputs: InputSet) -> float:
    """By ascent over the inputs, many starts for every unit; over all points of a finite set."""
    if isinstance(inputs, FiniteSet):
        return leaks(module, inputs.points.double()).max().item()
    torch.manual_seed(0)
    free = (3 * torch.randn(60 * module.hidden_size, 3, dtype=torch.float64)).requires_grad_()
    optimizer, best = torch.optim.Adam([free], lr=0.1), 0.0
    for _ in range(150):
        values = leaks(module, member(inputs, free)).view(-1, module.hidden_size, module.hidden_size)
        own = values.diagonal(dim1=1, dim2=2)
        best = max(best, own.max().item())
        optimizer.zero_grad()
        (-own.sum()).backward()
        optimizer.step()
    return best


@pytest.mark.parametrize("inputs", SETS, ids=lambda inputs: type(inputs).__name__)
@pytest.mark.parametrize("scale", [0.5, 2.0])
@pytest.mark.parametrize("name", CELLS)
def test_the_rate_is_the_largest_leak(name: str, scale: float, inputs: InputSet) -> None:
    module = net(name, scale=scale)
    rate, found = certify(module, input_bound=inputs).rate, largest_leak(module.requires_grad_(False), inputs)
    assert found <= rate * (1 + TOLERANCE)
    # Of a linear function the maximum is exact, and so is that over the points of a finite set.
    exact = name == "mingru" or isinstance(inputs, FiniteSet)
    assert rate <= found * (1 + 1e-3 if exact else 1.15)


@pytest.mark.parametrize("norm", ["row", "tight", "l2"])
@pytest.mark.parametrize("name", CELLS)
def test_no_pair_of_states_does_better(name: str, norm: str) -> None:
    module, inputs = net(name, scale=2), SupNorm(2.0)
    certificate = certify(module, input_bound=inputs, norm=norm).layers[0]
    assert worst_ratio(module, certificate, inputs) <= certificate.rate * (1 + TOLERANCE)


def test_gates_that_are_both_closed() -> None:
    module = set_(
        net("minlstm", dtype=torch.float32),
        weight_ih=0.0,
        bias_ih=torch.tensor([-200.0, -199.0, 1.0]).repeat_interleave(5),
    )
    output = module(torch.zeros(3, 1, 3))[0]
    assert torch.isfinite(output).all()
    assert certify(module, input_bound=1.0).rate == pytest.approx(1 / (1 + torch.tensor(1.0).exp().item()), rel=1e-5)


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.6, 0.99])
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", CELLS)
def test_the_projection_stops_where_the_leak_is_at_its_bound(name: str, strict: bool, rate: float) -> None:
    module = net(name, scale=30, dtype=torch.float32)
    before = {key: value.detach().clone() for key, value in module.named_parameters()}
    assert certify(module, input_bound=2.0).rate > rate
    project_(module, rate, input_bound=2.0, strict=strict)
    (recurrence,) = recurrences_of(module)
    weights = recurrence.weights()
    reached = recurrence.leak_maximum(weights, SupNorm(2.0).drive(recurrence.driven_rows(weights)), 1.0)
    assert certify(module, input_bound=2.0).rate <= rate
    assert reached.amax() >= 0.9 * rate
    # The candidate stays, and so does a unit that is inside.
    gates = 2 if name == "mingru" else 3
    for key, value in module.named_parameters():
        assert torch.equal(value.chunk(gates)[-1], before[key].chunk(gates)[-1])


def test_there_is_no_recurrent_matrix() -> None:
    for name in CELLS:
        module = net(name, num_layers=2, bidirectional=True)
        assert not any("hh" in key for key, _ in module.named_parameters())
        assert recurrences_of(module)[0].recurrent_roles == ()
