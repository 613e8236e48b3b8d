import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_stable import linalg


def random_matrix(seed: int, size: int, sparsity: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return weight * (torch.rand(size, size, generator=generator) >= sparsity)


def perron(weight: Tensor) -> Tensor:
    return linalg.weighted_row_norm(weight, linalg.perron_weights(weight))


def diagonal(weight: Tensor) -> Tensor:
    return linalg.diagonal_norm(weight, linalg.diagonal_weights(weight))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 8), st.sampled_from([0.0, 0.5, 0.9]))
def test_relations_between_the_norms(seed: int, size: int, sparsity: float) -> None:
    weight = random_matrix(seed, size, sparsity)
    radius = torch.linalg.eigvals(weight).abs().max() if weight.any() else torch.zeros(())
    above = 1 + 1e-6
    assert radius <= diagonal(weight) * above
    assert diagonal(weight) <= linalg.spectral_norm(weight) * above
    # The exact relation diagonal <= perron, up to how far the iterations have converged: nearly nilpotent matrices,
    # whose roots are nearly 0, take longest.
    assert diagonal(weight) <= perron(weight) * 1.01 + 5e-3
    assert perron(weight) <= linalg.row_norm(weight) * above
    assert torch.linalg.eigvals(weight.abs()).abs().max() <= perron(weight) * above


def test_perron_weights_find_the_perron_root() -> None:
    weight = random_matrix(0, 20)
    root = torch.linalg.eigvals(weight.abs()).abs().max()
    assert perron(weight) == pytest.approx(root.item(), rel=1e-3)
    assert linalg.perron_weights(weight).amax() == 1


def test_diagonal_weights_undo_a_diagonal_scaling() -> None:
    orthogonal = torch.linalg.qr(random_matrix(1, 6)).Q
    scale = torch.logspace(-1, 1, 6, dtype=torch.float64)
    assert linalg.spectral_norm(scale[:, None] * orthogonal / scale) > 5
    assert diagonal(scale[:, None] * orthogonal / scale) == pytest.approx(1.0, rel=1e-2)


@pytest.mark.parametrize("norm", [linalg.spectral_norm, linalg.row_norm, linalg.column_norm, perron, diagonal])
def test_degenerate_matrices(norm) -> None:  # type: ignore[no-untyped-def]
    zero, one = torch.zeros(3, 3, dtype=torch.float64), torch.full((1, 1), -0.7, dtype=torch.float64)
    assert norm(zero) == 0
    assert norm(one) == pytest.approx(0.7)
    assert norm(1e150 * torch.eye(3, dtype=torch.float64)) == pytest.approx(1e150)
    nilpotent = torch.triu(torch.ones(4, 4, dtype=torch.float64), diagonal=1)
    assert torch.isfinite(norm(nilpotent))


@pytest.mark.parametrize("entry", [torch.inf, torch.nan])
def test_a_matrix_that_is_not_finite_has_an_infinite_norm(entry: float) -> None:
    weight = torch.eye(3, dtype=torch.float64)
    weight[0, 1] = entry
    assert linalg.spectral_norm(weight) == torch.inf


def test_inflation_covers_the_rounding_of_a_norm() -> None:
    # Row sums of entries that float64 cannot add exactly, against integers that it can.
    weight = torch.full((1, 3000), 0.1, dtype=torch.float64)
    exact = 3000 * int(0.1 * 2**60) / 2**60
    assert linalg.row_norm(weight) * linalg.inflation(3000) >= exact
    assert linalg.inflation(3000) < 1 + 1e-11
