import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_stable.stability.projection.clip_newton_schulz import clip_by_products
from lightning_stable.stability.projection.sets import clip_singular_values
from tests.helpers import on_gpu

BOUND = 0.99


def matrix(values: Tensor, seed: int) -> Tensor:
    """Random singular vectors."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(len(values), len(values), generator=generator)).Q for _ in range(2))
    return (left * values) @ right


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**30), st.integers(1, 127), st.floats(-7, 0), st.floats(0, 1))
def test_ends_in_the_set_beside_the_true_projection(seed: int, units: int, above: float, share: float) -> None:
    values = torch.rand(units, generator=torch.Generator().manual_seed(seed))
    values[: round(share * units)] = BOUND * (1 + 10**above)
    weight = matrix(values, seed)[None]
    clipped, true = clip_by_products(weight, BOUND), clip_singular_values(weight.double(), BOUND)
    assert torch.linalg.matrix_norm(clipped.double(), 2).item() <= BOUND * (1 + 1e-5)
    assert (clipped - true).norm() <= 3e-5 * true.norm()


def test_several_at_once_and_none_at_all() -> None:
    weights = torch.stack([torch.zeros(5, 5), 3 * torch.eye(5), torch.ones(5, 5), 0.5 * torch.eye(5)])
    true = clip_singular_values(weights, BOUND)
    torch.testing.assert_close(clip_by_products(weights, BOUND), true, rtol=0, atol=1e-4)


@pytest.mark.parametrize("share", [0.1, 0.4, 0.9])
def test_many_values_at_the_bound_of_a_large_matrix(share: float) -> None:
    """After a step all of them are outside; an earlier form could follow a quarter of them."""
    values = torch.linspace(0, BOUND, 256)
    values[: round(share * 256)] = 1.01 * BOUND
    weight = matrix(values, 0)[None]
    clipped, true = clip_by_products(weight, BOUND), clip_singular_values(weight.double(), BOUND)
    assert torch.linalg.matrix_norm(clipped.double(), 2).item() <= BOUND * (1 + 1e-5)
    assert (clipped - true).norm() <= 1e-5 * true.norm()


@on_gpu
def test_steps_can_be_captured_in_a_cuda_graph() -> None:
    weight = matrix(torch.linspace(0, 1.2, 128), 0)[None].cuda()
    clip_by_products(weight, BOUND)  # loads what is loaded once
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        clipped = clip_by_products(weight, BOUND)
    weight.mul_(1.1)
    graph.replay()
    torch.testing.assert_close(clipped, clip_by_products(weight, BOUND))
