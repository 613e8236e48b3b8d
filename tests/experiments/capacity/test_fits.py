import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_stable.experiments.capacity.bits import slopes
from lightning_stable.experiments.capacity.fits import fit_line

NUMBERS = st.floats(-100, 100)


@given(NUMBERS, NUMBERS, st.sets(st.integers(-1000, 1000), min_size=2))
def test_a_line_is_found(slope: float, intercept: float, x: set[int]) -> None:
    line = fit_line(sorted(x), [intercept + slope * each for each in sorted(x)])
    assert line is not None
    assert line.slope == pytest.approx(slope, abs=1e-6)
    assert line.intercept == pytest.approx(intercept, abs=1e-4)
    if abs(slope) > 1e-3:
        assert line.r_squared == pytest.approx(1, abs=1e-6)


def test_least_squares() -> None:
    line = fit_line([0, 1, 2], [0, 0, 3])
    assert line is not None
    assert tuple(line) == pytest.approx((1.5, -0.5, 0.75))


def test_no_line_through_one_place() -> None:
    assert fit_line([2, 2], [1, 3]) is None
    assert fit_line([], []) is None
    with pytest.raises(ValueError, match="the same length"):
        fit_line([1, 2], [1])


def test_a_line_for_every_cell_and_depth_and_kind() -> None:
    row = {"cell": "gru", "layers": 1, "stable": False}
    rows = [row | {"parameters": size, "bits": 3 * size} for size in (10, 20)]
    rows += [row | {"stable": True, "parameters": size, "bits": size} for size in (10, 20)]
    rows += [row | {"layers": 2, "parameters": 10, "bits": 7}]
    found = slopes(rows)
    assert list(found) == [("gru", 1), ("gru", 2)]
    assert [line and line.slope for line in found["gru", 1]] == [3, 1]
    assert found["gru", 2] == [None, None]
