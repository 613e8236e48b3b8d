"""The experiment on what stability costs."""

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_stable.experiments.cost.cost import chosen, run_cost, tables
from lightning_stable.experiments.cost.options import CostOptions
from lightning_stable.experiments.cost.variants import STUDIES, Variant
from lightning_stable.experiments.small_tasks import SmallTask


def test_every_variant_has_a_name_of_its_own() -> None:
    """Runs are told apart by it; a comma sets the unconstrained ones apart."""
    for variants in STUDIES.values():
        assert len({variant.name for variant in variants}) == len(variants)
        for variant in variants:
            constrained = variant.projection is not None or variant.constrain is not None
            assert (", " in variant.name) == constrained


def test_chosen_by_name() -> None:
    assert [variant.name for variant in chosen(CostOptions(only=("GRU",)))] == ["GRU"]
    both = chosen(CostOptions(studies=("models", "reasons")))
    assert len({variant.name for variant in both}) == len(both)
    with pytest.raises(ValueError, match=r"`--only` must name variants: 'RNN', .* Got 'GRUU'"):
        chosen(CostOptions(only=("GRUU",)))


def test_runs_are_kept_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def train(task: SmallTask, variant: Variant, seed: int, options: CostOptions) -> dict[str, Any]:
        made.append(variant.name)
        test = 4.0 + 0.1 * seed + (0.05 if variant.projection is not None else 0)
        measured = {"parameters": 1000, "validation": 4.0, "test": test, "rate": None, "seconds": 1.0}
        return {"task": task.name, "variant": variant.name, "seed": seed, "units": options.units, **measured}

    monkeypatch.setattr("lightning_stable.experiments.cost.cost.train", train)
    options = CostOptions(tmp_path, tasks=("text",), only=("GRU", "GRU, stable"), seeds=(1, 2))
    assert run_cost(options) == 0
    assert run_cost(options) == 0  # all are there
    assert made == ["GRU", "GRU, stable"] * 2
    rows = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    (table,) = tables(rows, options)
    columns = {column.header: list(column.cells) for column in table.columns}
    assert columns[""] == ["GRU", "GRU, stable"]
    assert columns["above"] == ["+0.0%", "+5.1%"]  # of the perplexity
    assert columns["seeds"] == ["2", "2"]


@pytest.mark.slow
def test_a_small_run(tmp_path: Path) -> None:
    options = CostOptions(
        tmp_path, tasks=("text",), only=("GRU, stable",), seeds=(1,), units=8, text_epochs=1, averaging=0.9
    )
    assert run_cost(options) == 0
    (row,) = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert row["rate"] <= 0.99
    assert len(row["recurrent_norms"]["core.l0"]) == 3
