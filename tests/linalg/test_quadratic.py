import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_stable import linalg
from tests.linalg.test_norms import diagonal, random_matrix

ABOVE = 1 + 1e-9


def full(weight: Tensor) -> Tensor:
    return linalg.quadratic_norm(weight, linalg.quadratic_form(weight))


def some_form(seed: int, size: int) -> linalg.QuadraticForm:
    """Any valid witness, far from the best one."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    values = 0.1 + 1.8 * torch.rand(size, generator=generator, dtype=torch.float64)
    form = basis * values @ basis.mT
    scale = (2 * torch.rand(size, generator=generator, dtype=torch.float64) - 1).exp()
    return linalg.QuadraticForm(scale, (form + form.mT) / 2)


def numerical_radius(matrix: Tensor) -> float:
    phases = torch.exp(1j * torch.linspace(0, math.pi, 721, dtype=torch.float64))[:, None, None]
    return torch.linalg.eigvalsh((phases * matrix + phases.conj() * matrix.mT) / 2).amax().item()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 7))
def test_it_is_the_formula(seed: int, size: int) -> None:
    weight, witness = random_matrix(seed, size), some_form(seed, size)
    t = witness.scale.square().diag()
    p = witness.scale[:, None] * witness.form * witness.scale
    values, vectors = torch.linalg.eigh(p)
    root = vectors / values.sqrt() @ vectors.mT
    squared = root @ weight.mT @ t @ torch.linalg.inv(2 * t - p) @ t @ weight @ root
    assert linalg.quadratic_norm(weight, witness) == pytest.approx(torch.linalg.eigvalsh(squared)[-1].sqrt().item())


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 7), st.booleans())
def test_no_slopes_grow_a_difference_by_more(seed: int, size: int, best: bool) -> None:
    weight = random_matrix(seed, size)
    witness = linalg.quadratic_form(weight) if best else some_form(seed, size)
    p = witness.scale[:, None] * witness.form * witness.scale
    # What D W e is for slopes 0 and 1, where a convex function of the slopes is largest.
    slopes = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * size).view(-1, size)
    apart = random_matrix(seed + 1, 200)[:, :size]
    after = slopes[:, None] * (apart @ weight.mT)
    before, norms = (torch.einsum("...i,ij,...j->...", v, p, v).sqrt() for v in (apart, after))
    assert (norms <= linalg.quadratic_norm(weight, witness) * before * ABOVE).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 9), st.sampled_from([0.0, 0.5, 0.9]))
def test_between_the_spectral_radius_and_the_other_norms(seed: int, size: int, sparsity: float) -> None:
    weight = random_matrix(seed, size, sparsity)
    rate = full(weight)
    assert torch.linalg.eigvals(weight).abs().max() <= rate * ABOVE
    assert rate <= linalg.spectral_norm(weight) * ABOVE
    # Nearly nilpotent matrices ask for scales far apart, which neither search finds to the end.
    assert sparsity == 0.9 or rate <= diagonal(weight) * 1.03 + 5e-3


@pytest.mark.parametrize("size", [2, 16, 64, 130])
def test_the_form_reaches_the_numerical_radius(size: int) -> None:
    weight = random_matrix(3, size)
    witness = linalg.quadratic_form(weight)
    radius = numerical_radius(witness.scale[:, None] * weight / witness.scale)
    assert radius <= linalg.quadratic_norm(weight, witness) <= radius * 1.005
    assert radius < numerical_radius(weight) * (0.99 if size > 2 else 1.001)  # the scales are worth something


def test_a_random_matrix_is_far_below_its_spectral_norm() -> None:
    weight = random_matrix(0, 64) / 64**0.5 / 3**0.5
    assert full(weight) < 0.75 * linalg.spectral_norm(weight)


def test_a_normal_matrix_has_its_spectral_norm() -> None:
    rotation = 0.9 * torch.linalg.qr(random_matrix(1, 12)).Q
    assert full(rotation) == pytest.approx(0.9, rel=1e-9)


@pytest.mark.parametrize("exponent", [-320, -200, 0, 200])
def test_degenerate_matrices(exponent: int) -> None:
    size = 10.0**exponent
    assert full(torch.zeros(3, 3, dtype=torch.float64)) == 0
    assert full(torch.full((1, 1), -0.7 * size, dtype=torch.float64)) == pytest.approx(0.7 * size)
    nilpotent = size * torch.triu(torch.ones(4, 4, dtype=torch.float64), diagonal=1)
    assert full(nilpotent) <= 0.05 * size  # there is no best scale, and any small rate has one


def test_what_is_no_witness_proves_nothing() -> None:
    weight = random_matrix(0, 4)
    witness = some_form(0, 4)
    broken = [
        witness._replace(form=2 * witness.form),  # 2 T > P
        witness._replace(form=witness.form - 0.5 * torch.eye(4)),  # P > 0
        witness._replace(form=witness.form + torch.triu(witness.form, 1)),
        witness._replace(form=witness.form * torch.nan),
        witness._replace(scale=witness.scale * torch.tensor([1.0, 1.0, -1.0, 1.0])),
        witness._replace(scale=witness.scale * torch.tensor([1.0, 1.0, 0.0, 1.0])),
    ]
    assert torch.isfinite(linalg.quadratic_norm(weight, witness))
    assert all(linalg.quadratic_norm(weight, one) == torch.inf for one in broken)


def test_room_goes_into_a_rounder_form() -> None:
    weight = random_matrix(0, 16) / 10

    def condition(rate: float) -> float:
        values = torch.linalg.eigvalsh(linalg.quadratic_form(weight, rate).form)
        return (values[-1] / values[0]).item()

    smallest = full(weight).item()
    assert condition(3 * smallest) < condition(1.3 * smallest) < condition(0.0)
    for rate in (1.3 * smallest, 3 * smallest):
        assert linalg.quadratic_norm(weight, linalg.quadratic_form(weight, rate)) <= rate


def test_the_search_leaves_the_random_state_and_asks_for_no_default_dtype() -> None:
    weight, state = random_matrix(5, 8), torch.get_rng_state()
    found = linalg.quadratic_form(weight)
    assert torch.equal(torch.get_rng_state(), state)
    linalg.quadratic_form(random_matrix(6, 8))
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        linalg.quadratic._balanced.cache_clear()
        again = linalg.quadratic_form(weight)
    finally:
        torch.set_default_dtype(default)
    assert torch.equal(found.form, again.form)
    assert linalg.quadratic_form(weight.float()).form.dtype == torch.float32


def test_factors() -> None:
    weight, witness = random_matrix(2, 6), some_form(2, 6)
    left, right, left_inverse, right_inverse = linalg.quadratic_factors(witness)
    torch.testing.assert_close(left_inverse @ left, torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(right @ right_inverse, torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(linalg.spectral_norm(left @ weight @ right), linalg.quadratic_norm(weight, witness))


def test_largest_entries_and_norms_in_a_form() -> None:
    form = some_form(4, 5).form
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(100_000, 5, generator=generator, dtype=torch.float64)
    z = torch.cat((z, torch.linalg.inv(form), torch.linalg.eigh(form).eigenvectors.mT))  # where they are attained
    norm = torch.einsum("ni,ij,nj->n", z, form, z).sqrt()
    entries, stretch = linalg.form_bounds(form)
    torch.testing.assert_close((z.abs() / norm[:, None]).amax(0), entries, rtol=1e-9, atol=0)
    torch.testing.assert_close((norm / z.norm(dim=1)).amax(), stretch, rtol=1e-9, atol=0)
    matrix = random_matrix(1, 5)[:3]
    measured = ((z @ matrix.mT).norm(dim=1) / norm).amax()
    assert measured * 0.999 <= measured <= linalg.dual_norm(matrix, form) <= measured * 1.05


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 7))
def test_inputs_move_a_state_by_no_more(seed: int, size: int) -> None:
    weight, form = random_matrix(seed, size)[:, : 1 + size // 2], some_form(seed, size).form
    slopes = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * size).view(-1, size)
    x = random_matrix(seed + 1, 100)[:, : weight.shape[1]]
    after = slopes[:, None] * (x @ weight.mT)
    norms = torch.einsum("...i,ij,...j->...", after, form, after).sqrt()
    assert (norms <= linalg.input_norm(weight, form) * x.norm(dim=1) * ABOVE).all()


def test_norms_of_rows_are_attained() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, root = (torch.randn(size, 5, generator=generator, dtype=torch.float64) for size in (4, 5))
    form = root @ root.mT + torch.eye(5, dtype=torch.float64)
    form = (form + form.mT) / 2
    best = torch.linalg.solve(form, rows.mT).mT  # of all vectors of one norm, these have the largest products
    attained = (rows * best).sum(1) / ((best @ form) * best).sum(1).sqrt()
    torch.testing.assert_close(linalg.dual_row_norms(rows, form), attained, rtol=1e-10, atol=0)
    assert (linalg.dual_row_norms(rows, form) >= attained * (1 - 1e-15)).all()
