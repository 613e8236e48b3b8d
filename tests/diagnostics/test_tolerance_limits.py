"""Tolerance limits against exact binomial sums, published numbers, and simulated draws."""

from fractions import Fraction
from math import comb

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_stable.diagnostics.tolerance_limits import draws_needed, limit_rank


def exact_rank(count: int, coverage: Fraction, confidence: Fraction) -> int:
    total, rank = Fraction(0), 0
    for fewer in range(count + 1):
        total += comb(count, fewer) * (1 - coverage) ** fewer * coverage ** (count - fewer)
        if total > 1 - confidence:
            return rank
        rank += 1
    return rank


@given(st.integers(0, 120), st.integers(1, 99), st.integers(1, 99))
@settings(max_examples=200, deadline=None)
def test_ranks_are_those_of_exact_sums(count: int, coverage: int, confidence: int) -> None:
    shares = Fraction(coverage, 100), Fraction(confidence, 100)
    # One that is met to the last digit may be refused, none may be granted too many.
    found, exact = limit_rank(count, *map(float, shares)), exact_rank(count, *shares)
    assert exact - 1 <= found <= exact
    assert found == exact or exact_rank(count, shares[0], shares[1] + Fraction(1, 10**5)) == found


@pytest.mark.parametrize(
    ("coverage", "confidence", "draws"), [(0.95, 0.95, 59), (0.9, 0.95, 29), (0.99, 0.95, 299), (0.99, 0.99, 459)]
)
def test_published_sample_sizes(coverage: float, confidence: float, draws: int) -> None:
    assert draws_needed(coverage, confidence) == draws
    assert limit_rank(draws, coverage, confidence) == 1
    assert limit_rank(draws - 1, coverage, confidence) == 0


def test_large_samples_do_not_underflow() -> None:
    rank = limit_rank(1_000_000, 0.95, 0.95)
    assert 49_600 < rank < 50_000  # 50,000 less 1.645 standard deviations of 218
    assert 1.6 < (50_000 - rank) / 217.9 < 1.7


def test_limits_cover_what_they_promise_in_simulation() -> None:
    generator, runs = torch.Generator().manual_seed(0), 4000
    for count, coverage, confidence in ((59, 0.95, 0.95), (200, 0.9, 0.8), (45, 0.9, 0.99)):
        draws = torch.rand(runs, count, generator=generator, dtype=torch.float64)
        limits = draws.sort(1, descending=True).values[:, limit_rank(count, coverage, confidence) - 1]
        share = (limits >= coverage).double().mean().item()  # the distribution function of a uniform number is itself
        error = (confidence * (1 - confidence) / runs) ** 0.5
        print(f"n={count} coverage={coverage} confidence={confidence}: held in {share:.4f} of {runs} samples")
        assert share >= confidence - 4 * error
