"""No further than needed: a strict projection of a gated recurrence ends at its target."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_stable import certify, project_
from lightning_stable.recurrence import GatedRecurrence, recurrences_of
from lightning_stable.stability import SupNorm
from lightning_stable.stability.inputs.resolve import walk_layers
from tests.nets import net, pairwise

B = 1.0
GATED = ["lstm", "proj", "gru", "ugrnn", "intersection"]


def outside(name: str, scale: float, seed: int = 0, leak_bias: float = 0.0, units: int = 6) -> nn.Module:
    module = net(name, units=units, scale=scale, seed=seed)
    (recurrence,) = recurrences_of(module)
    with torch.no_grad():
        index = recurrence.gates.index(recurrence.leak)
        module.bias_ih_l0.chunk(len(recurrence.gates))[index].add_(leak_bias)
    return module


def moved(module: nn.Module, rate: float, **kwargs: float) -> float:
    before = [parameter.detach().clone() for parameter in module.parameters()]
    assert project_(module, rate, input_bound=B, **kwargs).rate <= rate
    parts = [(now - old).square().sum() for now, old in zip(module.parameters(), before, strict=True)]
    return float(torch.stack(parts).sum().sqrt().detach())


def largest_leak(module: nn.Module) -> Tensor:
    (recurrence,) = recurrences_of(module)
    assert isinstance(recurrence, GatedRecurrence)
    weights = recurrence.weights()
    drive = weights["weight_ih"].abs().sum(1)
    top = drive + recurrence.recurrent_matrix(weights).abs().sum(1) + recurrence.bias(weights)
    return top.chunk(len(recurrence.gates))[recurrence.gates.index(recurrence.leak)].sigmoid().detach()


@pytest.mark.parametrize(
    ("name", "method", "norm", "rate"),
    pairwise(GATED, ["shares", "euclidean", "rescale"], ["row", "tight", "l2"], [0.8, 0.99]),
)
def test_whatever_had_to_move_ends_at_the_target(name: str, method: str, norm: str, rate: float) -> None:
    method = "shares" if norm == "l2" and method == "euclidean" else method
    for scale in (1.5, 6.0):
        module = outside(name, scale, leak_bias=-2.0)
        report = project_(module, rate, input_bound=B, norm=norm, method=method)
        assert rate - 1e-3 <= report.rate <= rate


def test_every_unit_ends_at_the_target() -> None:
    module = outside("lstm", 4.0, leak_bias=1.0)
    project_(module, 0.95, input_bound=B)
    (recurrence,) = recurrences_of(module)
    weights = recurrence.weights()
    (layer,) = walk_layers([recurrence], {"": SupNorm(B)})
    rates = recurrence.unit_rates(weights, layer.drive)
    assert rates is not None
    assert ((rates > 0.949) & (rates <= 0.95)).all()


@pytest.mark.parametrize("method", ["shares", "euclidean", "rescale"])
@pytest.mark.parametrize("name", GATED)
def test_a_leak_gate_at_its_bound_stays_there_and_the_other_gates_go_back(name: str, method: str) -> None:
    module = outside(name, 3.0, leak_bias=4.0)
    report = project_(module, 0.95, input_bound=B, gate_bound=0.8, method=method)
    assert report.rate >= 0.949
    leak = largest_leak(module)
    assert leak.max() <= 0.8
    assert leak.max() >= 0.799


def test_units_inside_stay_bit_for_bit() -> None:
    module = outside("lstm", 0.2, leak_bias=-1.0)
    with torch.no_grad():
        module.weight_hh_l0[1::6] = 2.0  # all gates of one unit
    before = module.weight_hh_l0.detach().clone()
    project_(module, 0.9, input_bound=B)
    same = (module.weight_hh_l0 == before).all(1).view(4, 6).all(0)
    assert same.tolist() == [True, False, True, True, True, True]


def test_torchs_initial_lstm_keeps_its_gates() -> None:
    torch.manual_seed(0)
    module = nn.LSTM(8, 64)
    report = project_(module, 0.99, input_bound=B)
    assert report.rate >= 0.989
    norms = report.layers[0].recurrent_norm
    assert min(norms[gate] for gate in "ifg") >= 0.25, norms


def test_the_conditions_of_miller_and_hardt_are_not_given_back() -> None:
    module = outside("lstm", 2.0)
    project_(module, 0.95, input_bound=B, method="miller-hardt")
    assert certify(module, input_bound=B, norm="miller-hardt").rate < 1


@settings(deadline=None, max_examples=12)
@given(
    st.sampled_from(GATED),
    st.tuples(st.floats(0.6, 0.995), st.floats(0.6, 0.995)).map(sorted),
    st.floats(-1, 1.5).map(lambda x: 10**x),
    st.floats(-3, 3),
    st.integers(0, 10**6),
    st.sampled_from(["shares", "euclidean", "rescale"]),
    st.sampled_from([None, 0.55]),
)
def test_a_looser_target_moves_no_further(
    name: str, rates: list[float], scale: float, leak_bias: float, seed: int, method: str, gate_bound: float | None
) -> None:
    close, loose = (
        moved(outside(name, scale, seed, leak_bias), rate, gate_bound=gate_bound, method=method)  # type: ignore[arg-type]
        for rate in rates
    )
    assert loose <= close * (1 + 1e-6) + 1e-6
