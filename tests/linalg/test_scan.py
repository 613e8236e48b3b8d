import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_stable.linalg import composed, linear_scan


def loop(factors: Tensor, terms: Tensor, start: Tensor, reverse: bool) -> Tensor:
    states, state = {}, start
    for position in sorted(range(len(factors)), reverse=reverse):
        state = factors[position] * state + terms[position]
        states[position] = state
    return torch.stack([states[position] for position in range(len(factors))])


def draw(time: int, seed: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    leaks = torch.sigmoid(scale * torch.randn(time, 2, 3, generator=generator, dtype=torch.float64))
    terms, start = (torch.randn(*shape, generator=generator).double() for shape in ((time, 2, 3), (2, 3)))
    return leaks.requires_grad_(), terms.requires_grad_(), start.requires_grad_()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 70), st.integers(0, 10**6), st.sampled_from([1.0, 50.0, 1000.0]), st.booleans())
def test_values_and_gradients_are_those_of_the_loop(time: int, seed: int, scale: float, reverse: bool) -> None:
    sources = draw(time, seed, scale)
    found, expected = linear_scan(*sources, reverse=reverse), loop(*sources, reverse)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    weight = torch.randn_like(found)
    gradients = (torch.autograd.grad((states * weight).sum(), sources) for states in (found, expected))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_have_gradients(reverse: bool) -> None:
    assert torch.autograd.gradgradcheck(lambda *sources: linear_scan(*sources, reverse=reverse), draw(11, 0))


@pytest.mark.parametrize("reverse", [False, True])
def test_composed_maps_are_the_runs_from_any_state(reverse: bool) -> None:
    leaks, terms, start = draw(23, 1)
    scales, shifts = composed(leaks, terms, reverse=reverse)
    torch.testing.assert_close(scales * start + shifts, linear_scan(leaks, terms, start, reverse=reverse))


def test_products_that_underflow_do_no_harm() -> None:
    leaks, terms, _ = (value.detach().float() for value in draw(400, 2))
    states = linear_scan(1e-30 * leaks, terms, torch.full((2, 3), 1e30))
    assert torch.isfinite(states).all()
    torch.testing.assert_close(states[1:], terms[1:])
