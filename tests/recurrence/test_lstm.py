import pytest
import torch
from torch import Tensor, nn

from lightning_stable import certify, project_
from lightning_stable.recurrence import recurrences_of
from lightning_stable.recurrence.lstm import miller_hardt_forget_bound, miller_hardt_radii
from lightning_stable.stability import SupNorm
from tests.nets import net, plain_rate, set_
from tests.stability.adversary import state_box, unprojected

B = 2.0


def grid(low: Tensor, high: Tensor, points: int = 201) -> Tensor:
    return low + (high - low) * torch.linspace(0, 1, points, dtype=torch.float64)[:, None]


def best_rate(module: nn.Module) -> Tensor:
    """``min over w of max(X / w, Y)`` of the row certificate, every maximum over a grid, and nothing else."""
    weights, bias = module.weight_hh_l0.detach(), (module.bias_ih_l0 + module.bias_hh_l0).detach()
    norms = weights.abs().sum(1)
    radius = module.weight_ih_l0.detach().abs().sum(1) * B + norms
    low, high = bias - radius, bias + radius
    gates = [grid(*ends) for ends in zip(low.sigmoid().chunk(4), high.sigmoid().chunk(4), strict=True)]
    g = grid(low.chunk(4)[2], high.chunk(4)[2]).tanh().abs()
    i, f, o = gates[0], gates[1], gates[3]
    n_i, n_f, n_g, n_o = norms.chunk(4)
    cell = i.amax(0) * g.amax(0) / (-high.chunk(4)[1]).sigmoid()
    cell = cell.clamp(min=1)  # states of the user
    after = f.amax(0) * cell + i.amax(0) * g.amax(0)
    t = grid(torch.zeros_like(cell), after.tanh())

    def product(s: Tensor, u: Tensor, p: Tensor, q: Tensor) -> Tensor:
        s = s[:, None]
        return (s * (1 - u.square()) * p + s * (1 - s) * u * q).amax((0, 1))

    def rate(w: Tensor) -> tuple[Tensor, Tensor]:
        x = (f * w + f * (1 - f) * cell * n_f).amax(0) + driven
        return x / w, product(o, t, x, n_o)

    driven = product(i, g, n_g, n_i)
    left, right = torch.full_like(cell, 1e-9).log(), torch.full_like(cell, 1e9).log()
    for _ in range(60):
        middle = (left + right) / 2
        falls = torch.gt(*rate(middle.exp()))
        left, right = torch.where(falls, middle, left), torch.where(falls, right, middle)
    return torch.maximum(*rate(right.exp()))


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("bias", [0.0, 2.0, -2.0])
def test_the_row_rate_is_its_formula(scale: float, bias: float) -> None:
    module = set_(net("lstm", scale=scale), bias_hh=torch.tensor([bias, -bias, 0, bias]).repeat_interleave(5))
    # A grid misses a little of every maximum.
    assert 0 <= plain_rate(module, SupNorm(B)) / best_rate(module).amax().item() - 1 < 1e-3


def test_the_largest_forget_gate_is_the_worst_up_to_a_rate_of_1_only() -> None:
    # One unit, i = g = 1/2 and f in (0, high): inside, where a gate moves most, it is worse, but only beyond 1.
    def rate(hidden: float) -> float:
        module = net("lstm", units=1)
        set_(
            module, weight_ih=0, weight_hh=[[0], [hidden], [0], [0]], bias_hh=0, bias_ih=[20.0, 3.0 - hidden, 20.0, 0.0]
        )
        return certify(module, input_bound=B).rate

    f = torch.tensor(3.0, dtype=torch.float64).sigmoid().item()
    for hidden in (0.1, 1.0, 8.0, 30.0):
        w_and_o = f * hidden / 2  # b = C f (1 - f) n_f, C (1 - f) = 1, o = 1/2
        closed = 0.5 * (f + w_and_o + ((f + w_and_o) ** 2) ** 0.5)
        at_the_end = closed if closed <= 1 else 1.0
        assert rate(hidden) >= at_the_end * (1 - 1e-9)
        assert (rate(hidden) <= 1) == (closed <= 1)


def test_the_rate_survives_equal_eigenvalues_and_closed_gates() -> None:
    # With f = e and almost no loop, (f + e)^2 - 4 f e would cancel; with o = 0 there is no loop at all.
    module = set_(net("lstm", units=1), weight_ih=0, weight_hh=0, bias_ih=0, bias_hh=[0, 0, 1, -40])
    certificate = certify(module, input_bound=B).layers[0]
    assert certificate.rate == pytest.approx(0.5, rel=1e-8)
    assert all(torch.isfinite(scale).all() for scale in certificate.contraction.scales)


@pytest.mark.parametrize("norm", ["row", "tight", "l2"])
@pytest.mark.parametrize("forget_bias", [40.0, 1000.0])
def test_a_saturated_forget_gate_is_not_certified_stable(norm: str, forget_bias: float) -> None:
    for hidden in (0.0, 1.0):
        module = set_(net("lstm"), weight_hh=hidden, bias_hh=torch.tensor([0, forget_bias, 0, 0]).repeat_interleave(5))
        report = certify(module, input_bound=B, norm=norm)
        assert report.rate >= 1  # not NaN
        assert not report.is_stable


def test_sharper_certificates_are_not_larger() -> None:
    for seed in range(20):
        module = net("lstm", scale=0.3 + 0.1 * seed, seed=seed)
        row = certify(module, input_bound=B).rate
        assert certify(module, input_bound=B, norm="tight").rate <= row * (1 + 1e-9)


def test_miller_hardts_conditions_imply_the_row_certificate() -> None:
    certified = 0
    for seed in range(40):
        module = net("lstm", scale=1 + seed % 3, seed=seed)
        project_(module, 0.95, input_bound=B, method="miller-hardt")
        theirs = certify(module, input_bound=B, norm="miller-hardt").rate
        certified += theirs < 1
        assert theirs >= certify(module, input_bound=B).rate
    assert certified >= 10


def test_miller_hardts_conditions_are_strict() -> None:
    radii = miller_hardt_radii(torch.tensor(0.5, dtype=torch.float64))
    assert radii.tolist() == [0.5, 0.25, 0.125, 0.5]
    hidden = torch.cat([radius * torch.eye(5) for radius in radii])

    def module(factor: float) -> nn.Module:
        bias = torch.zeros(20)
        bias[5:10] = -radii[1]  # the forget gate is at most 1/2 with this and the recurrent row
        return set_(net("lstm"), weight_ih=0, weight_hh=factor * hidden, bias_ih=bias, bias_hh=0)

    assert certify(module(0.999), input_bound=B, norm="miller-hardt").rate < 1
    assert certify(module(1.001), input_bound=B, norm="miller-hardt").rate == torch.inf


@pytest.mark.parametrize("rate", [0.94, 0.95, 0.99])
def test_the_forget_bound_of_a_miller_hardt_rate(rate: float) -> None:
    f = miller_hardt_forget_bound(rate)
    assert 0.5 <= f < 1
    assert (1 + (1 - f * (1 - f)) ** 0.5) / 2 == pytest.approx(rate)


def test_out_of_miller_hardts_reach() -> None:
    assert miller_hardt_forget_bound(0.9) == 0.5


def test_proj_size_is_a_recurrence_of_m() -> None:
    # h = W_hr m: torch's LSTM with proj_size and one without it whose recurrent matrix is W_hh W_hr.
    module, inputs = net("proj", scale=2), torch.randn(9, 4, 3, dtype=torch.float64)
    hidden, (_, cell) = module(inputs)
    m, (_, same_cell) = unprojected(module)(inputs)
    torch.testing.assert_close(hidden, m @ module.weight_hr_l0.mT, rtol=0, atol=1e-12)
    torch.testing.assert_close(cell, same_cell, rtol=0, atol=1e-12)
    for norm in ("row", "tight", "l2"):
        mine, plain = (certify(m, input_bound=B, norm=norm).rate for m in (module, unprojected(module)))
        assert mine == pytest.approx(plain, rel=1e-9)


@pytest.mark.parametrize("state_bound", [1.0, 3.0])
@pytest.mark.parametrize("name", ["lstm", "proj"])
def test_runs_stay_in_the_box(name: str, state_bound: float) -> None:
    module = unprojected(net(name))
    box = state_box(module, SupNorm(B), state_bound)[1]
    signs = torch.cat([module.weight_ih_l0.sign(), -module.weight_ih_l0.sign()]).detach()
    start = tuple(state_bound * torch.ones(1, len(signs), 5, dtype=torch.float64) for _ in range(2))
    for steps in range(1, 30):
        _, (_, cell) = module(B * signs.expand(steps, -1, -1), start if state_bound > 1 else None)
        assert (cell.abs() <= box * (1 + 1e-9)).all()


def test_the_box_is_attained_where_one_input_opens_all_gates() -> None:
    module = set_(net("lstm"), weight_ih=0.3, weight_hh=0, bias_ih=0, bias_hh=0)
    _, (_, cell) = module(torch.full((200, 1, 3), B, dtype=torch.float64))
    torch.testing.assert_close(cell[0, 0], state_box(module, SupNorm(B), 1.0)[1], rtol=1e-9, atol=0)


def test_outputs_are_bounded_by_one_and_by_the_projection() -> None:
    for name, expected in (("lstm", 1.0), ("proj", None)):
        module = net(name, scale=4)
        (recurrence,) = recurrences_of(module)
        bound = recurrence.output_bound(recurrence.weights(), None, 1.0)
        expected = module.weight_hr_l0.abs().sum(1) if expected is None else torch.ones(5, dtype=torch.float64)
        torch.testing.assert_close(bound, expected.detach())
