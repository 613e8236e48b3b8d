"""Distribution-free tolerance limits: what a sample says about a share of all that it was drawn from.

Of ``n`` exchangeable draws of a number, the ``r``-th largest is at least as large as a share ``coverage`` of the
distribution, with probability ``confidence``, if ``P(Binomial(n, 1 - coverage) < r) <= 1 - confidence``: it is too
small only where fewer than ``r`` draws fall among the largest ``1 - coverage``. Nothing is assumed of the distribution
(S. S. Wilks, Determination of sample sizes for setting tolerance limits, 1941).
"""

from __future__ import annotations

import math

import torch

from lightning_stable import checks

# Rounding of the logarithms below may not lend confidence.
_SLACK = 1e-6


def limit_rank(count: int, coverage: float, confidence: float) -> int:
    """Return the largest ``r`` whose ``r``-th largest draw is a tolerance limit; 0 if the draws are too few.

    Args:
        count: The number of draws.
        coverage: The share of the distribution that the limit covers, in (0, 1).
        confidence: The probability with which it does, in (0, 1).

    Raises:
        TypeError: If an argument is no number.
        ValueError: If one is out of range.
    """
    count = checks.integer("count", count, 0)
    coverage, confidence = _share("coverage", coverage), _share("confidence", confidence)
    below = torch.arange(count + 1, dtype=torch.float64)
    choose = math.lgamma(count + 1) - torch.lgamma(below + 1) - torch.lgamma(count - below + 1)
    terms = choose + below * math.log1p(-coverage) + (count - below) * math.log(coverage)
    # Fewer than r: the distribution function at r - 1.
    return int((terms.logcumsumexp(0) <= math.log1p(-confidence) - _SLACK).sum())


def draws_needed(coverage: float, confidence: float) -> int:
    """Return the least number of draws whose largest is a tolerance limit: 59 for 0.95 and 0.95.

    Args:
        coverage: As in :func:`limit_rank`.
        confidence: As in :func:`limit_rank`.
    """
    coverage, confidence = _share("coverage", coverage), _share("confidence", confidence)
    return math.ceil((math.log1p(-confidence) - _SLACK) / math.log(coverage))


def _share(name: str, value: float) -> float:
    return checks.number(name, value, "(0, 1)")
