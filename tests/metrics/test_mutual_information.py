import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_stable.metrics import MutualInformation, mutual_information

COUNTS = st.integers(0, 5000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))


@given(st.integers(0, 10**9))
def test_all_right_is_a_bit_each_and_so_is_all_wrong(total: int) -> None:
    assert mutual_information(total, total) == mutual_information(0, total) == total


@given(st.integers(0, 10**6))
def test_half_right_is_nothing(half: int) -> None:
    assert mutual_information(half, 2 * half) == 0


@given(COUNTS)
def test_symmetric_and_the_formula_of_the_paper(counts: tuple[int, int]) -> None:
    correct, total = counts
    bits = mutual_information(correct, total)
    assert bits == mutual_information(total - correct, total)
    assert -1e-9 <= bits <= total
    if 0 < correct < total:
        p = correct / total
        formula = total * (1 + p * math.log2(p) + (1 - p) * math.log2(1 - p))
        assert bits == pytest.approx(formula, rel=1e-9, abs=1e-9 * total)


def test_a_closed_form_between() -> None:
    # log2 4 = 2 and log2 (4 / 3) are all there is at three of four.
    assert mutual_information(300, 400) == pytest.approx(400 * (1 - (0.5 + 0.75 * math.log2(4 / 3))), rel=1e-14)


def test_guesses_measure_about_three_quarters_of_a_bit() -> None:
    labels = torch.rand(2, 4000, 1000, generator=torch.Generator().manual_seed(0)) < 0.5
    right = (labels[0] == labels[1]).sum(1).tolist()
    assert sum(mutual_information(count, 1000) for count in right) / 4000 == pytest.approx(0.5 / math.log(2), abs=0.05)


@given(st.lists(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=9), min_size=1, max_size=5))
def test_the_metric_counts_over_batches(batches: list[list[tuple[bool, bool]]]) -> None:
    metric = MutualInformation()
    for batch in batches:
        predicted, labels = torch.tensor(batch).unbind(1)
        metric.update(predicted, labels.float())
    pairs = [pair for batch in batches for pair in batch]
    assert metric.compute().item() == mutual_information(sum(a == b for a, b in pairs), len(pairs))


def test_reset_and_no_labels() -> None:
    metric = MutualInformation()
    metric.update(torch.ones(4), torch.ones(4))
    assert metric.compute() == 4
    metric.reset()
    with pytest.warns(UserWarning, match="before"):
        assert metric.compute() == 0


@pytest.mark.parametrize(("correct", "total"), [(-1, 3), (4, 3)])
def test_impossible_counts(correct: int, total: int) -> None:
    with pytest.raises(ValueError, match=rf"`correct` must be an integer in 0 \.\. 3\. Got {correct}"):
        mutual_information(correct, total)


def test_shapes_must_agree() -> None:
    with pytest.raises(
        ValueError, match=r"`predicted` and `labels` must have the same shape\. Got \(3,\) and \(3, 1\)"
    ):
        MutualInformation().update(torch.ones(3), torch.ones(3, 1))
