import pytest
import torch

from lightning_stable import certify, project_
from lightning_stable.recurrence import recurrences_of
from lightning_stable.stability import SupNorm
from tests.nets import GATED_NORMS, net, plain_rate, set_
from tests.stability.adversary import TOLERANCE, worst_ratio

CELLS = ("ugrnn", "intersection")


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("name", CELLS)
def test_the_row_rate_is_its_formula(name: str, scale: float) -> None:
    module, bound = net(name, scale=scale), 2.0
    n_g, n_c = module.weight_hh_l0.detach().abs().sum(1).chunk(2)
    drive_g, drive_c = (module.weight_ih_l0.detach().abs().sum(1) * bound).chunk(2)
    bias_g, bias_c = (module.bias_ih_l0 + module.bias_hh_l0).detach().chunk(2)
    low, high = ((bias_g + sign * (drive_g + n_g)).sigmoid() for sign in (-1, 1))
    pre = torch.stack([bias_c - drive_c - n_c, bias_c + drive_c + n_c])
    slope = 1 / torch.where((pre[0] < 0) & (pre[1] > 0), 0, pre.abs().amin(0)).cosh().square()
    least, largest = (1 - slope).clamp(min=0).sqrt(), pre.tanh().abs().amax(0)
    grid = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
    u, gate = least + (largest - least) * grid, low + (high - low) * grid
    worst = ((1 - u.square()) * n_c + high * (u + 1) * n_g).amax(0)
    # Between closed and open the chord.
    rate = (gate + (1 - gate) * (slope * n_c + gate / high * (worst - slope * n_c))).amax()
    assert plain_rate(module, SupNorm(bound)) == pytest.approx(rate.item(), rel=1e-6)


@pytest.mark.parametrize("name", CELLS)
def test_the_certificate_is_nearly_met(name: str) -> None:
    """A small net close to zero, where nothing saturates, contracts about as little as certified."""
    module = set_(
        net(name, units=2), weight_ih=0.0, bias_ih=0.0, bias_hh=0.0, weight_hh=[[0, 0], [0, 0], [0.5, 0.4], [0.4, 0.5]]
    )
    certificate = certify(module, input_bound=1.0).layers[0]
    measured = worst_ratio(module, certificate, SupNorm(1.0), steps=100)
    assert 0.99 * certificate.rate <= measured <= certificate.rate * (1 + TOLERANCE)
    assert certificate.rate == pytest.approx(0.5 + 0.5 * 0.9)


@pytest.mark.parametrize("name", CELLS)
def test_single_precision_contracts_as_certified(name: str) -> None:
    """The stored float32 weights, run in float32: pairs far enough apart for its rounding."""
    module = net(name, units=8, scale=4, dtype=torch.float32)
    certificate = project_(module, 0.9, input_bound=2.0).layers[0]
    generator = torch.Generator().manual_seed(0)
    x = 4 * torch.rand(1, 5000, 3, generator=generator) - 2
    a, b = (2 * torch.rand(1, 5000, 8, generator=generator) - 1 for _ in range(2))
    before, after = certificate.distance((a,), (b,)), certificate.distance((module(x, a)[1],), (module(x, b)[1],))
    assert (after <= certificate.rate * before * (1 + 1e-5)).all()
    assert (after / before).max() > 0.5 * certificate.rate


def test_sharper_certificates_are_not_larger() -> None:
    for seed in range(20):
        module = net("ugrnn", scale=0.3 + 0.1 * seed, seed=seed)
        row = certify(module, input_bound=2.0).rate
        assert certify(module, input_bound=2.0, norm="tight").rate <= row * (1 + 1e-9)


@pytest.mark.parametrize("norm", GATED_NORMS)
def test_a_saturated_gate_is_not_certified_stable(norm: str) -> None:
    module = set_(net("ugrnn"), bias_hh=torch.tensor([1000.0, 0.0]).repeat_interleave(5))
    assert certify(module, input_bound=2.0, norm=norm).rate >= 1


def test_states_stay_in_the_box_they_start_in() -> None:
    module = net("ugrnn", scale=4)
    (recurrence,) = recurrences_of(module)
    for start in (1.0, 3.0):
        bound = recurrence.output_bound(recurrence.weights(), None, start)
        outputs, _ = module(torch.randn(30, 8, 3, dtype=torch.float64), torch.full((1, 8, 5), start).double())
        assert (outputs.abs().amax((0, 1)) <= bound).all()
        assert bound.tolist() == [start] * 5
