import pytest
import torch

from lightning_stable import certify, project_
from lightning_stable.recurrence import recurrences_of
from lightning_stable.stability import SupNorm
from tests.nets import net, set_
from tests.stability.adversary import TOLERANCE, worst_ratio


@pytest.mark.parametrize("leak", [0.1, 0.7, 0.98])
def test_one_leak_for_all_units(leak: float) -> None:
    module = set_(net("leaky", units=12, scale=2), leak=torch.tensor(leak).logit())
    weight = module.weight_hh_l0.detach()
    plain = set_(net("rnn", units=12), weight_hh=weight)
    assert certify(module).rate == pytest.approx(leak + (1 - leak) * torch.linalg.matrix_norm(weight, ord=2).item())
    assert certify(module, norm="linf").rate == pytest.approx(leak + (1 - leak) * weight.abs().sum(1).amax().item())
    # A form of the plain network is one here, and there may be better ones.
    full = leak + (1 - leak) * certify(plain, norm="full").rate
    assert certify(module, norm="full").rate <= full * (1 + 1e-3)


@pytest.mark.parametrize("norm", ["l2", "linf", "full"])
@pytest.mark.parametrize("seed", range(8))
def test_no_pair_of_states_does_better(norm: str, seed: int) -> None:
    """Leaks far apart, weights that are neither symmetric nor balanced."""
    module = net("leaky", units=6, scale=1.5, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    set_(module, leak=3 * torch.randn(6, generator=generator))
    certificate = certify(module, norm=norm).layers[0]
    assert worst_ratio(module, certificate, SupNorm(2.0), seed=seed) <= certificate.rate * (1 + TOLERANCE)


def test_the_euclidean_rate_is_nearly_met() -> None:
    module = set_(net("leaky", units=2), weight_ih=0.0, bias_ih=0.0, bias_hh=0.0, leak=[0.5, -0.5])
    set_(module, weight_hh=[[0.5, 0.4], [0.4, 0.5]])
    certificate = certify(module).layers[0]
    measured = worst_ratio(module, certificate, SupNorm(1.0), steps=150)
    assert 0.97 * certificate.rate <= measured <= certificate.rate * (1 + TOLERANCE)


def test_full_is_never_above_l2() -> None:
    for seed in range(10):
        module = set_(net("leaky", units=9, seed=seed), leak=torch.linspace(-4, 4, 9))
        assert certify(module, norm="full").rate <= certify(module).rate * (1 + 1e-9)


def test_a_matrix_of_zeros_leaves_the_leaks() -> None:
    module = set_(net("leaky"), weight_hh=0.0)
    leak = module.leak_l0.detach().sigmoid().amax().item()
    for norm in ("l2", "linf", "full"):
        assert certify(module, norm=norm).rate == pytest.approx(leak)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_projection_meets_the_rate(norm: str) -> None:
    module = set_(net("leaky", units=8, scale=6), leak=torch.linspace(-2, 6, 8))
    project_(module, 0.95, norm=norm)
    assert certify(module, norm=norm).rate == pytest.approx(0.95, rel=1e-6)
    assert module.leak_l0.detach().sigmoid().amax() == pytest.approx(0.95**2, rel=1e-6)
    assert torch.equal(module.leak_l0[:4], torch.linspace(-2, 6, 8).double()[:4])
    project_(module, 0.95, norm=norm, gate_bound=0.5)
    assert module.leak_l0.detach().sigmoid().amax() <= 0.5


def test_nothing_is_asked_about_inputs() -> None:
    module = net("leaky", num_layers=2)
    assert project_(module, 0.9).guarantee == "guaranteed"
    assert not recurrences_of(module)[0].needs_drive
