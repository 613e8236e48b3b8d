import itertools

import pytest
import torch
from torch import nn

from lightning_stable import certify
from lightning_stable.recurrence import GatedRecurrence, recurrences_of
from lightning_stable.stability import SupNorm
from lightning_stable.stability.inputs.resolve import walk_layers
from lightning_stable.stability.projection.recurrence import Target, shrink
from tests.nets import NORMS, net, set_

B = SupNorm(2.0)
GATED = ["lstm", "proj", "gru"]


def with_closed_leak(name: str, leak_bound: float, scale: float) -> nn.Module:
    """A net whose leak gate is at most ``leak_bound``, through its bias."""
    module = net(name, scale=scale)
    (recurrence,) = recurrences_of(module)
    weights = recurrence.weights()
    index = recurrence.gates.index(recurrence.leak)
    high = recurrence.pre_activation(weights, B.drive(weights["weight_ih"]), 1.0)[index].high
    excess = high - torch.logit(torch.tensor(leak_bound, dtype=torch.float64))
    with torch.no_grad():
        module.bias_ih_l0.chunk(len(recurrence.gates))[index].sub_(excess)
    return module


@pytest.mark.parametrize("norm", ["row", "l2"])
@pytest.mark.parametrize("name", GATED)
def test_a_budget_that_is_met_implies_the_rate(name: str, norm: str) -> None:
    for rate, leak_bound, scale in itertools.product([0.5, 0.9, 0.99], [0.1, 0.45], [0.5, 2.0, 8.0]):
        module = with_closed_leak(name, leak_bound, scale)
        (recurrence,) = recurrences_of(module)
        assert isinstance(recurrence, GatedRecurrence)
        weights = recurrence.weights()
        drive = B.drive(weights["weight_ih"])
        budget = recurrence.budget(weights, drive, rate, norm=norm, state_bound=1.0, leak_bound=leak_bound)
        if norm == "row":
            sizes = recurrence.row_norms(weights)
        else:
            blocks = recurrence.recurrent_matrix(weights).chunk(len(recurrence.gates))
            sizes = torch.stack([torch.linalg.matrix_norm(block, ord=2) for block in blocks])[:, None]
        # Gates of any proportions, every unit exactly at its limit.
        factors = torch.rand(sizes.shape, dtype=torch.float64)
        factors = factors * budget.limit / (budget.coefficients * sizes * factors).sum(0)
        inside = factors.amax(0) <= 1  # frozen coefficients are for weights that shrink
        factors = torch.where(inside, factors, 0).expand(-1, 5).flatten()
        set_(module, weight_hh=factors[:, None] * weights["weight_hh"])
        assert certify(module, input_bound=B, norm=norm).rate <= rate * (1 + 1e-8)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", NORMS)
def test_shrinking_writes_to_nothing(name: str, exact: bool) -> None:
    module = net(name, scale=4)
    (recurrence,) = recurrences_of(module)
    weights = recurrence.weights()
    before = {role: value.clone() for role, value in weights.items()}
    target = Target(0.9, recurrence.norms[0], recurrence.methods[0], gate_bound=0.8, exact=exact)
    (layer,) = walk_layers([recurrence], {"": B}, weights=lambda _: weights)
    changed = shrink(layer, target)
    assert ("weight_ih" if name in ("mingru", "minlstm") else "weight_hh") in changed
    assert all(torch.equal(weights[role], value) for role, value in before.items())
    assert all(torch.equal(value, before[role]) for role, value in recurrence.weights().items())


@pytest.mark.parametrize("method", ["shares", "euclidean", "rescale"])
@pytest.mark.parametrize("name", GATED)
def test_recurrent_rows_never_grow(name: str, method: str) -> None:
    # Gate maxima are frozen at the old rows, which is safe because new ones are smaller.
    for seed in range(10):
        module = net(name, scale=4, seed=seed)
        (recurrence,) = recurrences_of(module)
        weights = recurrence.weights()
        (layer,) = walk_layers([recurrence], {"": B})
        changed = shrink(layer, Target(0.9, "row", method, gate_bound=0.8))
        assert (recurrence.row_norms(weights | changed) <= recurrence.row_norms(weights) * (1 + 1e-12)).all()


def test_the_three_methods_differ_as_documented() -> None:
    module = net("lstm", units=16, scale=4)
    (recurrence,) = recurrences_of(module)
    (layer,), weights, moved = walk_layers([recurrence], {"": B}), recurrence.weights(), {}
    for method in ("shares", "euclidean", "rescale"):
        changed = shrink(layer, Target(0.9, "row", method, gate_bound=0.8))["weight_hh"]
        moved[method] = (changed - weights["weight_hh"]).norm()
        if method == "rescale":  # one factor per unit, for all gates but the one the gate step changes
            factors = (changed / weights["weight_hh"]).view(4, 16, 16)[[0, 2, 3]]
            torch.testing.assert_close(factors, factors[:1, :, :1].expand_as(factors))
    assert moved["euclidean"] <= min(moved.values()) * (1 + 1e-9)
