"""The runs of a model with several seeds as one row: means, and how far the seeds are apart."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from lightning_stable.experiments.results import Row

_MEANS = ("recurrent_norm", "seconds", "epochs")


def summarized(rows: Sequence[Row]) -> list[Row]:
    """Return a row per model, in the order of the first run of each.

    ``validation`` and ``test`` are means, ``validation_spread`` and ``test_spread`` sample standard deviations, None
    for a single seed. The certified rate is the largest one, and None if a run has none; so are the gates' norms.
    """
    models: dict[tuple[str, bool, int | None], list[Row]] = {}
    for row in rows:
        models.setdefault((row["core"], row["stable"], row["window"]), []).append(row)
    return [_summary(runs) for runs in models.values()]


def _summary(runs: list[Row]) -> Row:
    first = {key: value for key, value in runs[0].items() if key not in ("seed", "published")}
    rates = [run["rate"] for run in runs]
    figures: Row = {}
    for name in ("validation", "test"):
        values = [run[name] for run in runs]
        figures[name] = statistics.fmean(values)
        figures[f"{name}_spread"] = statistics.stdev(values) if len(values) > 1 else None
    return {
        **first,
        **figures,
        **{name: None if first[name] is None else statistics.fmean(run[name] for run in runs) for name in _MEANS},
        "rate": None if None in rates else max(rates),
        "gates": {gate: max(run["gates"][gate] for run in runs) for gate in first["gates"]},
        "seeds": [run["seed"] for run in runs],
        "published": runs[0]["published"],
    }
