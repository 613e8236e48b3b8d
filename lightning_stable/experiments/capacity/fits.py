"""Straight lines through what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Line(NamedTuple):
    """``y = intercept + slope x``: a line by least squares.

    Attributes:
        slope: Its slope.
        intercept: Its value at x = 0.
        r_squared: The share of the variance of y that it explains.
    """

    slope: float
    intercept: float
    r_squared: float


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line | None:
    """Return the line of least squares; None through fewer than two different x.

    Raises:
        ValueError: If there are not as many y as x.
    """
    from scipy.stats import linregress

    if len(x) != len(y):
        raise ValueError(f"`x` and `y` must have the same length. Got {len(x)} and {len(y)}.")
    if len(set(x)) < 2:
        return None
    fit = linregress(x, y)
    constant = len(set(y)) == 1  # nothing to explain, and nothing left
    return Line(float(fit.slope), float(fit.intercept), 1.0 if constant else float(fit.rvalue) ** 2)
