"""What the projection callback logs, and when."""

from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import pytest
from lightning.pytorch.callbacks import (
    EarlyStopping,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from lightning_stable.stability import Box
from lightning_stable.stability.projection import projector as projector_module
from tests.callbacks.loggers import Values
from tests.callbacks.projections import RATE, Manual, Nest, projection
from tests.helpers import (
    AfterStep,
    Recurrent,
    sequences,
    trainer,
    weights,
)


def test_tags(tmp_path: Path) -> None:
    logger = Values("stability/")
    model = Recurrent("lstm", num_layers=2)
    ours = projection()
    trainer(tmp_path, ours, logger=logger, log_every_n_steps=1).fit(model, sequences(2))
    (_, values) = logger.all[0]
    layers = [f"stability/core.l{layer}" for layer in (0, 1)]
    assert values.keys() == {
        "stability/rate",
        "stability/input_excess",
        "stability/projection_distance",
        *(f"{layer}/rate" for layer in layers),
        *(f"{layer}/recurrent_norm/{gate}" for layer in layers for gate in "ifgo"),
        *(f"{layer}/recurrent_norm_kept" for layer in layers),
    }
    _, values = logger.all[1]
    assert values["stability/rate"] == max(values[f"{layer}/rate"] for layer in layers) <= RATE
    first = model.core.weight_hh_l0.double().chunk(4)[0].norm().item()
    assert values[f"{layers[0]}/recurrent_norm/i"] == pytest.approx(first)
    start = Recurrent("lstm", num_layers=2).core.weight_hh_l1.norm().item()
    assert values[f"{layers[1]}/recurrent_norm_kept"] == pytest.approx(model.core.weight_hh_l1.norm().item() / start)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_logged_distance_is_that_of_the_last_projection(every: int, tmp_path: Path) -> None:
    logger, before, after = Values("stability/"), AfterStep(weights), AfterStep(weights)
    ours = projection(every_n_steps=every)
    run = trainer(tmp_path, before, ours, after, logger=logger, log_every_n_steps=4)
    run.fit(Recurrent(Nest("rnn")), sequences(9))
    pairs = zip(before.results, after.results, strict=True)
    moved = [sum((new[name] - old[name]).square().sum() for name in old).sqrt().item() for old, new in pairs]
    last = {4: {1: 4, 2: 4, 3: 3}[every], 8: {1: 8, 2: 8, 3: 6}[every]}
    assert logger.steps == [3, 7]
    for step, values in logger.all:
        assert values["stability/projection_distance"] == pytest.approx(moved[last[step + 1] - 1], rel=1e-4)
        assert values["stability/projection_distance"] > 0


@pytest.mark.parametrize(
    ("model", "interval", "steps"),
    [
        (Recurrent, 3, [2, 5]),
        # Two optimizers make nine steps in six batches, and Lightning's axis are the batches.
        (Manual, 3, [1, 3, 5]),
        (Manual, 2, [1, 2, 3, 5]),
        (lambda: Manual(raw=True), 3, [1, 3, 5]),
    ],
)
def test_interval(model: Any, interval: int, steps: list[int], tmp_path: Path) -> None:
    """Nothing is computed in other steps."""
    logger, ours = Values("stability/"), projection()
    counts: list[int] = []
    with mock.patch.object(projector_module, "certify_recurrences", wraps=projector_module.certify_recurrences) as spy:
        probe = AfterStep(lambda _: counts.append(spy.call_count))
        trainer(tmp_path, ours, probe, logger=logger, log_every_n_steps=interval).fit(model(), sequences(6))
    assert logger.steps == steps
    assert counts[0] == counts[1] == counts[2] == counts[-1] - len(steps[:-1])  # the last one comes after the last step


def test_intervals_none(tmp_path: Path) -> None:
    logger, ours = Values("stability/"), projection()
    trainer(tmp_path, ours, logger=logger, log_every_n_steps=0).fit(Recurrent(), sequences(3), sequences(1))
    assert ours.num_projections == 3
    # Lightning itself logs the values of validations, also with this setting.
    assert len(logger.steps) == 1


def test_values_of_validations(tmp_path: Path) -> None:
    """Not of the sanity check, and those of two callbacks are combined."""
    logger, keys = Values("stability/"), []
    probe = L.pytorch.callbacks.LambdaCallback(on_sanity_check_end=lambda run, _: keys.extend(run.callback_metrics))
    first, second = projection(modules="core.encoder.*", rate=0.9), projection(modules="core.decoder", rate=0.5)
    run = trainer(tmp_path, probe, first, second, logger=logger)
    run.fit(Recurrent(Nest("rnn")), sequences(), sequences(2))
    assert not any(key.startswith("stability/") for key in keys)
    (values,) = (values for _, values in logger.all if values)
    assert values["stability/rate"] == run.callback_metrics["stability/rate"].item() == pytest.approx(0.9, abs=1e-4)
    assert run.callback_metrics["stability/core.decoder.l1_reverse/rate"].item() == pytest.approx(0.5, abs=1e-4)


def test_csv_logger(tmp_path: Path) -> None:
    trainer(tmp_path, projection(), logger=CSVLogger(tmp_path, "log"), log_every_n_steps=1).fit(
        Recurrent(), sequences(3), sequences(1)
    )
    header, *rows = (tmp_path / "log" / "version_0" / "metrics.csv").read_text().splitlines()
    columns = header.split(",")
    values = [dict(zip(columns, row.split(","), strict=True)) for row in rows]
    assert [int(v["step"]) for v in values if v["stability/core.l0/rate"] and not v["val_loss"]] == [0, 1, 2]
    assert all(float(v["stability/rate"]) <= RATE + 1e-6 for v in values if v["stability/rate"])


@pytest.mark.parametrize("validate", [False, True])
def test_the_rate_as_monitored_value(validate: bool, tmp_path: Path) -> None:
    """Fewer steps than the logging interval are no problem."""
    save = ModelCheckpoint(tmp_path, monitor="stability/rate", filename="best")
    stop = EarlyStopping("stability/rate", patience=1, min_delta=1.0)
    run = trainer(tmp_path, save, stop, projection(), max_epochs=9)
    run.fit(Recurrent(), sequences(2), sequences(1) if validate else None)
    assert save.best_model_score.item() == pytest.approx(RATE, abs=1e-4)
    assert run.current_epoch == 2


def test_every_forward_is_looked_at_and_products_where_a_report_follows(tmp_path: Path) -> None:
    class Counting(Box):
        calls = products = 0

        def excess(self, inputs: Tensor) -> Tensor:
            Counting.calls += 1
            return super().excess(inputs)

        def drive_excess(self, inputs: Tensor, weight: Tensor) -> Tensor:
            Counting.products += 1
            return super().drive_excess(inputs, weight)

    ours, calls = projection(input_bound=Counting(-9.0, 9.0)), []
    probe = AfterStep(lambda _: calls.append((Counting.calls, Counting.products)))
    trainer(tmp_path, ours, probe, log_every_n_steps=4).fit(Recurrent("lstm"), sequences(9))
    assert calls == [(step, products) for step, products in enumerate([1, 1, 1, 2, 2, 2, 2, 3, 3], start=1)]
