"""What the callbacks leave for TensorBoard, and that everything works without it."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from torch import Tensor, nn

from lightning_stable.callbacks import (
    FeedForwardShadowCallback,
    StabilityProjectionCallback,
    StateGradientCallback,
    TruncationProfileCallback,
)
from tests.helpers import Recurrent, sequences, sgd, trainer


def fit(path: Path, *callbacks: Callback, cell: str = "rnn", logger: Any = None, **kwargs: Any) -> Path:
    logger = TensorBoardLogger(path, name="", version="run") if logger is None else logger
    run = trainer(path, *callbacks, logger=logger, log_every_n_steps=1, **{"max_epochs": 2} | kwargs)
    run.fit(Recurrent(cell), sequences(), sequences(seed=1))
    return path / "run"


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"tensors": 0, "histograms": 0, "images": 0}).Reload()


def series(folder: Path, tag: str) -> dict[int, float]:
    return {event.step: event.value for event in events(folder).Scalars(tag)}


def charts(folder: Path) -> dict[str, list[str]]:
    last = events(folder / "theory").Tensors("custom_scalars__config__")[-1]
    (page,) = Layout.FromString(last.tensor_proto.string_val[0]).category
    assert page.title == "Stability"
    return {chart.title: list(chart.multiline.tag) for chart in page.chart}


def all_four() -> list[Callback]:
    return [
        FeedForwardShadowCallback(2),
        StabilityProjectionCallback(0.9),
        TruncationProfileCallback(4, tolerance=0.5),
        StateGradientCallback(2),
    ]


@pytest.mark.parametrize("reverse", [False, True])
def test_every_line_of_the_page_has_finite_values(reverse: bool, tmp_path: Path) -> None:
    run = fit(tmp_path, *(all_four()[::-1] if reverse else all_four()))
    shown = charts(run)
    assert len(shown) == 7
    # The rate lies at its target whatever happens: such a line needs no chart.
    assert not any("rate" in pattern for patterns in shown.values() for pattern in patterns)
    runs = [events(folder) for folder in (run, run / "shadow", run / "theory")]
    for pattern in (pattern for patterns in shown.values() for pattern in patterns):
        found = [
            event.value
            for read in runs
            for tag in read.Tags()["scalars"]
            if re.match(pattern, tag)
            for event in read.Scalars(tag)
        ]
        assert found
        assert all(map(math.isfinite, found))
    assert {"truncation/core", "state_gradient/core"} <= set(runs[0].Tags()["images"])


def test_the_twin_and_the_theory_beside_the_model(tmp_path: Path) -> None:
    projection, shadow = StabilityProjectionCallback(0.9), FeedForwardShadowCallback(2)
    run = fit(tmp_path, projection, shadow)
    model, twin, theory = run, run / "shadow", run / "theory"
    assert series(twin, "shadow/compared/loss") == series(model, "shadow/loss")
    gap = series(model, "shadow/loss_gap")
    for step, loss in series(model, "shadow/compared/loss").items():
        assert loss == pytest.approx(series(model, "shadow/loss")[step] - gap[step], rel=1e-6)
    # Under its own name, what the model logs and the twin logs.
    assert series(model, "shadow/compared/val_loss") == pytest.approx(series(model, "val_loss"), rel=1e-6)
    assert series(twin, "val_loss") == pytest.approx(series(twin, "shadow/compared/val_loss"))
    assert series(twin, "val_loss").keys() == series(model, "val_loss").keys()
    assert series(twin, "val_loss") != series(model, "val_loss")
    assert series(twin, "shadow/compared/weight_distance") == series(model, "shadow/weight_distance_relative")
    rates = series(model, "stability/rate")
    for step, level in series(theory, "shadow/compared/weight_distance").items():
        assert level == pytest.approx(rates[step] ** 2, rel=1e-5)
    assert list(series(theory, "stability/target").values()) == pytest.approx([0.9] * len(rates))


def test_several_twins_have_runs_of_their_own_under_one_tag(tmp_path: Path) -> None:
    run = fit(tmp_path, StabilityProjectionCallback(0.9), FeedForwardShadowCallback(1), FeedForwardShadowCallback(3))
    for window in (1, 3):
        distance = series(run / "shadow" / f"k={window}", "shadow/compared/weight_distance")
        assert distance == series(run, f"shadow/k={window}/weight_distance_relative")
        assert series(run / "theory" / f"k={window}", "shadow/compared/weight_distance").keys() == distance.keys()
    assert len(charts(run)) == 6


def test_no_level_without_a_certificate(tmp_path: Path) -> None:
    run = fit(tmp_path, FeedForwardShadowCallback(2))
    assert "shadow/compared/weight_distance" in events(run / "shadow").Tags()["scalars"]
    assert events(run / "theory").Tags()["scalars"] == []


@pytest.mark.parametrize(("cell", "tag"), [("rnn", "singular_values"), ("gru", "unit_rates"), ("lstm", "unit_rates")])
def test_histograms(cell: str, tag: str, tmp_path: Path) -> None:
    run = fit(tmp_path, StabilityProjectionCallback(0.9), cell=cell)
    rates = series(run, "stability/core.l0/rate")  # at a validation the later of two
    histograms = events(run).Histograms(f"stability/core.l0/{tag}")
    assert [event.step for event in histograms] == [3, 6]
    for event in histograms:
        assert event.histogram_value.num == 5
        assert event.histogram_value.max == pytest.approx(rates[event.step - 1], rel=1e-5)


@pytest.mark.parametrize(("interval", "steps"), [(2, [3, 9]), (None, [])])
def test_histograms_every_n_epochs(interval: int | None, steps: list[int], tmp_path: Path) -> None:
    run = fit(tmp_path, StabilityProjectionCallback(0.9, histograms_every_n_epochs=interval), max_epochs=3)
    found = events(run)
    tags = found.Tags()["histograms"]
    assert [event.step for tag in tags for event in found.Histograms(tag)] == steps


def test_the_axis_is_that_of_the_logger_with_several_optimizers_and_after_the_fit(tmp_path: Path) -> None:
    class Manual(Recurrent):
        automatic_optimization = False

        def training_step(self, batch: Tensor, batch_idx: int) -> None:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch))
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return sgd(self.core.parameters()), sgd(self.head.parameters())

    logger = TensorBoardLogger(tmp_path, name="", version="run")
    callbacks = StabilityProjectionCallback(0.9), TruncationProfileCallback(4, tolerance=0.5)
    run, model = trainer(tmp_path, *callbacks, logger=logger, log_every_n_steps=1, max_epochs=2), Manual()
    run.fit(model, sequences(), sequences(seed=1))
    run.validate(model, sequences(seed=1), verbose=False)
    for beside, tag in (("stability/target", "stability/rate"), ("truncation/core/required_window",) * 2):
        found = series(tmp_path / "run" / "theory", beside)
        assert found.keys() == series(tmp_path / "run", tag).keys()
        assert max(found) == 6


def test_several_projections_show_one_rate_and_one_target(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.RNN(3, 5, batch_first=True), nn.RNN(5, 5, batch_first=True)

        def forward(self, x: Tensor) -> Any:
            return self.two(self.one(x)[0])

    callbacks = StabilityProjectionCallback(0.9, modules="core.one"), StabilityProjectionCallback(0.5, modules="*.two")
    run = trainer(tmp_path, *callbacks, logger=TensorBoardLogger(tmp_path, name="", version="run"), log_every_n_steps=1)
    run.fit(Recurrent(Two()), sequences())
    for folder, tag in (("run", "stability/rate"), ("run/theory", "stability/target")):
        found = [(event.step, event.value) for event in events(tmp_path / folder).Scalars(tag)]
        assert found == [(step, pytest.approx(0.9, abs=1e-3)) for step in range(3)]


def test_figures_go_to_files_where_there_is_no_tensorboard(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "csv")
    folder = tmp_path / "figures"
    profiles = [TruncationProfileCallback(3, figures=folder), StateGradientCallback(2, figures=folder)]
    fit(tmp_path, StabilityProjectionCallback(0.9), FeedForwardShadowCallback(2), *profiles, logger=logger)
    assert sorted(path.name for path in folder.iterdir()) == [
        "state-gradient-core-step-3.png",
        "state-gradient-core-step-6.png",
        "truncation-core-step-3.png",
        "truncation-core-step-6.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.iterdir())
    assert not list(tmp_path.rglob("events.out.tfevents.*"))


def test_a_name_with_a_slash_is_one_file(tmp_path: Path) -> None:
    """Keys of a ModuleDict may have some."""
    core = nn.ModuleDict({"a/b": nn.RNN(3, 5, batch_first=True)})
    core.forward = lambda x: core["a/b"](x)  # type: ignore[method-assign]
    run = trainer(tmp_path, TruncationProfileCallback(2, figures=tmp_path / "figures"))
    run.fit(Recurrent(core), sequences(), sequences())
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["truncation-core.a-b-step-3.png"]


def test_a_prefix_of_the_logger(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="run", prefix="mine")
    run = fit(tmp_path, StabilityProjectionCallback(0.9), logger=logger)
    for (pattern,) in charts(run).values():
        assert any(re.match(pattern, tag) for tag in events(run).Tags()["scalars"])
    assert "mine-stability/target" in events(run / "theory").Tags()["scalars"]


def test_the_certified_bound_of_a_gated_cell_uses_what_the_projection_knows(tmp_path: Path) -> None:
    profile, gradients = TruncationProfileCallback(4), StateGradientCallback(2)
    fit(tmp_path, profile, gradients, StabilityProjectionCallback(0.9), cell="lstm")
    assert profile.profiles["core"].guarantee == "derived"
    assert gradients.reports["core"].guarantee == "derived"
