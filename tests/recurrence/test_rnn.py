import pytest
import torch

from lightning_stable import certify, linalg
from lightning_stable.recurrence import recurrences_of
from lightning_stable.recurrence.rnn import form_of, slope_factor
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


@pytest.mark.parametrize("norm", ["l2", "diagonal", "full"])
def test_the_factor_of_a_step_with_smaller_slopes(norm: str) -> None:
    module = net("rnn", units=8)
    weight = module.weight_hh_l0.detach()
    contraction = certify(module, norm=norm).layers[0].contraction
    generator = torch.Generator().manual_seed(0)
    slopes = torch.rand(4, 6, 8, generator=generator, dtype=torch.float64)
    factors = slope_factor(weight, contraction, slopes)
    assert factors.shape == (4, 6)
    # Differences under any slopes below these, in the direction that grows most.
    left, right, _, _ = linalg.quadratic_factors(form_of(contraction))
    exact = torch.linalg.matrix_norm((left * slopes[..., None, :]) @ weight @ right, ord=2)
    assert (factors >= exact.minimum(contraction.rate * slopes.amax(-1)) * (1 - 1e-12)).all()
    assert (factors <= exact * 8 ** (2.0**-7) * (1 + 1e-9)).all()
    apart = torch.randn(4, 6, 8, generator=generator, dtype=torch.float64)
    used = slopes * (torch.rand(4, 6, 8, generator=generator, dtype=torch.float64) > 0.3)
    after, zero = used * (apart @ weight.mT), torch.zeros_like(apart)
    ratio = contraction.distance((after,), (zero,)) / contraction.distance((apart,), (zero,))
    assert (ratio <= factors * (1 + 1e-9)).all()
    ones = slope_factor(weight, contraction, torch.ones(8, dtype=torch.float64))
    assert ones == pytest.approx(contraction.rate.item(), rel=1e-9)


def test_the_factor_of_a_step_is_one_of_quadratic_norms() -> None:
    contraction = certify(net("rnn"), norm="perron").layers[0].contraction
    with pytest.raises(
        ValueError, match=r"`contraction` must be of an l2, diagonal or full norm. Got one of order inf"
    ):
        slope_factor(torch.eye(5).double(), contraction, torch.ones(5).double())


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
