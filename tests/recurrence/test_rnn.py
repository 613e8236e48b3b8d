import pytest
import torch

from lightning_stable import certify
from lightning_stable.recurrence import recurrences_of
from lightning_stable.stability import L2Ball, SupNorm
from tests.nets import RNN_NORMS, net, set_
from tests.stability.adversary import TOLERANCE, member, worst_ratio


@pytest.mark.parametrize("name", ["rnn", "relu"])
def test_rates_are_norms_of_the_recurrent_matrix(name: str) -> None:
    module = net(name, units=4, scale=3)
    weight = module.weight_hh_l0.detach()
    rates = {norm: certify(module, norm=norm).rate for norm in RNN_NORMS}
    for norm, order in (("l2", 2), ("linf", torch.inf), ("l1", 1)):
        assert rates[norm] == pytest.approx(torch.linalg.matrix_norm(weight, ord=order).item(), rel=1e-12)
    assert rates["perron"] == pytest.approx(torch.linalg.eigvals(weight.abs()).abs().max().item(), rel=1e-3)
    assert torch.linalg.eigvals(weight).abs().max() <= rates["diagonal"] <= min(rates["l2"], rates["perron"]) * 1.001


@pytest.mark.parametrize("name", ["rnn", "relu"])
def test_no_input_bound_is_needed(name: str) -> None:
    certificate = certify(net(name)).layers[0]
    assert certificate.guarantee == "guaranteed"
    assert certificate.input_bound is None


@pytest.mark.parametrize("inputs", [SupNorm(2.0), L2Ball(1.5)])
@pytest.mark.parametrize("name", ["rnn", "relu"])
def test_outputs_of_runs_from_zero_stay_in_the_output_bound(name: str, inputs: SupNorm) -> None:
    module = net(name, scale=0.8)
    (recurrence,) = recurrences_of(module)
    weights = recurrence.weights()
    bound = recurrence.output_bound(weights, inputs.drive(weights["weight_ih"]), 1.0)
    assert torch.isfinite(bound).all()
    # Runs in which every input pushes one unit as far as it goes.
    x = member(inputs, 10 * torch.cat([weights["weight_ih"], -weights["weight_ih"]]))
    outputs, _ = module(x.expand(60, -1, -1))
    assert (outputs.abs().amax((0, 1)) <= bound * (1 + 1e-9)).all()


def test_output_bounds_without_inputs() -> None:
    for name, expected in (("rnn", True), ("relu", False)):
        (recurrence,) = recurrences_of(net(name))
        bound = recurrence.output_bound(recurrence.weights(), None, 1.0)
        assert (bound is not None) == expected


def test_an_expanding_relu_network_has_no_output_bound() -> None:
    (recurrence,) = recurrences_of(set_(net("relu"), weight_hh=2 * torch.eye(5)))
    weights = recurrence.weights()
    bound = recurrence.output_bound(weights, SupNorm(1.0).drive(weights["weight_ih"]), 1.0)
    assert torch.isinf(bound).all()


def test_unknown_norm() -> None:
    (recurrence,) = recurrences_of(net("rnn"))
    with pytest.raises(ValueError, match=r"`norm` must be one of .* for the rnn recurrence"):
        recurrence.contraction(recurrence.weights(), None, norm="row")


@pytest.mark.parametrize("name", ["rnn", "relu"])
@pytest.mark.parametrize(
    "units", [4, pytest.param(16, marks=pytest.mark.slow), pytest.param(24, marks=pytest.mark.slow)]
)
def test_no_search_finds_more_than_the_full_norm(name: str, units: int) -> None:
    """In the slow suite 230,400 evaluations; the tightest ratio is printed."""
    tightest = 0.0
    for seed, scale in enumerate([0.5, 1.0, 3.0]):
        module = net(name, units=units, scale=scale, seed=seed)
        (certificate,) = certify(module, norm="full").layers
        measured = worst_ratio(module, certificate, None, pairs=384, steps=50 if units > 4 else 5, seed=seed)
        tightest = max(tightest, measured / certificate.rate)
    print(f"{name}, {units} units: at most {tightest:.4f} of the certified rate")
    assert tightest <= 1 + TOLERANCE
    assert tightest > 0.8 or units == 4
