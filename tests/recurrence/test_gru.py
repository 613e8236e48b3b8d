import pytest
import torch
from torch import nn

from lightning_stable import certify
from lightning_stable.recurrence import recurrences_of
from lightning_stable.stability import SupNorm
from tests.nets import GATED_NORMS, net, plain_rate, set_
from tests.stability.adversary import worst_ratio


def published_counterexample() -> nn.Module:
    """The condition published for a reset gate inside the product calls this stable; PyTorch's GRU has b_hn outside."""
    return set_(
        net("gru", inputs=1, units=1),
        weight_ih=0,
        weight_hh=[[1.0], [0.0], [0.3]],
        bias_ih=[0.0, -4.0, -20.0],
        bias_hh=[0.0, 0.0, 40.0],
    )


@pytest.mark.parametrize("norm", GATED_NORMS)
def test_a_published_condition_does_not_transfer(norm: str) -> None:
    module = published_counterexample()
    certificate = certify(module, input_bound=0.0, norm=norm).layers[0]
    assert certificate.rate >= 9.99
    assert not certificate.is_stable
    measured = worst_ratio(module, certificate, SupNorm(0.0))
    assert measured == pytest.approx(9.99, abs=0.1)
    assert measured <= certificate.rate
    # Three attractors: runs from -1, 0 and 1 stay apart.
    start = torch.tensor([[[-1.0], [0.0], [1.0]]], dtype=torch.float64)
    _, end = module(torch.zeros(500, 3, 1, dtype=torch.float64), start)
    assert end.flatten().diff().min() > 0.5


def test_the_row_certificate_of_the_counterexample() -> None:
    assert certify(published_counterexample(), input_bound=0.0).rate == pytest.approx(10.06, abs=0.01)


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_the_row_rate_is_its_formula(scale: float) -> None:
    module, bound = net("gru", scale=scale), 2.0
    n_r, n_z, n_n = module.weight_hh_l0.detach().abs().sum(1).chunk(3)
    drive = (module.weight_ih_l0.detach().abs().sum(1) * bound).chunk(3)
    bias_ih, bias_hh = module.bias_ih_l0.detach().chunk(3), module.bias_hh_l0.detach().chunk(3)
    z = (drive[1] + n_z + bias_ih[1] + bias_hh[1]).sigmoid()
    low, high = ((sign * (drive[0] + n_r) + bias_ih[0] + bias_hh[0]).sigmoid() for sign in (-1, 1))
    q = n_n + bias_hh[2].abs()
    r = low + (high - low) * torch.linspace(0, 1, 20001, dtype=torch.float64)[:, None]
    # The candidate's pre-activation over the corners of r and of W_hn h + b_hn.
    inner = torch.stack([end * (bias_hh[2] + sign * n_n) for end in (low, high) for sign in (-1, 1)])
    pre = torch.stack([bias_ih[2] - drive[2] + inner.amin(0), bias_ih[2] + drive[2] + inner.amax(0)])
    slope = 1 / torch.where((pre[0] < 0) & (pre[1] > 0), 0, pre.abs().amin(0)).cosh().square()
    steep = (r * n_n + r * (1 - r) * q * n_r).amax(0)
    least, largest = (1 - slope).clamp(min=0).sqrt(), pre.tanh().abs().amax(0)
    u = least + (largest - least) * torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
    worst = ((1 - u.square()) * steep + z * (u + 1) * n_z).amax(0)
    # Between closed and open the chord.
    z_low = (-drive[1] - n_z + bias_ih[1] + bias_hh[1]).sigmoid()
    gate = z_low + (z - z_low) * torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
    closed = slope * steep
    rate = (gate + (1 - gate) * (closed + gate / z * (worst - closed))).amax()
    assert plain_rate(module, SupNorm(bound)) == pytest.approx(rate.item(), rel=1e-6)


def test_sharper_certificates_are_not_larger() -> None:
    for seed in range(20):
        module = net("gru", scale=0.3 + 0.1 * seed, seed=seed)
        row = certify(module, input_bound=2.0).rate
        assert certify(module, input_bound=2.0, norm="tight").rate <= row * (1 + 1e-9)


@pytest.mark.parametrize("norm", GATED_NORMS)
def test_a_saturated_update_gate_is_not_certified_stable(norm: str) -> None:
    module = set_(net("gru"), bias_hh=torch.tensor([0.0, 1000.0, 0.0]).repeat_interleave(5))
    assert certify(module, input_bound=2.0, norm=norm).rate >= 1


def test_states_stay_in_the_box_they_start_in() -> None:
    module = net("gru", scale=4)
    (recurrence,) = recurrences_of(module)
    for start in (1.0, 3.0):
        bound = recurrence.output_bound(recurrence.weights(), None, start)
        outputs, _ = module(torch.randn(30, 8, 3, dtype=torch.float64), torch.full((1, 8, 5), start).double())
        assert (outputs.abs().amax((0, 1)) <= bound).all()
        assert bound.tolist() == [start] * 5
