from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lightning_stable.callbacks import FeedForwardShadowCallback, StabilityProjectionCallback
from lightning_stable.tensorboard import Entries
from lightning_stable.tensorboard.table import merged
from tests.helpers import Recurrent, sequences, trainer


def test_the_users_hyperparameters_stay() -> None:
    own = {"lr": 0.1, "rate": "own", "window": None}
    entries = [Entries({"rate": 0.9}, ("a",)), Entries({"window": 2}, ("b", "a"))]
    row, metrics = merged(own, entries)
    assert row == {"lr": 0.1, "rate": "own", "stability/rate": 0.9, "window": 2}
    assert [tag for tag in metrics if tag in ("a", "b")] == ["a", "b"]
    assert merged({}, [*entries, Entries({"window": 5}, ())])[0]["window"] == "2 5"


class Configured(Recurrent):
    def __init__(self, units: int = 5, window: int | None = None, sizes: tuple[int, ...] = (1, 2)) -> None:
        super().__init__()
        self.save_hyperparameters()


def description(folder: Path) -> dict[str, HParamsPluginData]:
    """What TensorBoard takes of a run: the first of each kind."""
    events = EventAccumulator(str(folder)).Reload()
    found = events.PluginTagToContent("hparams")
    return {tag.rpartition("/")[2]: HParamsPluginData.FromString(content) for tag, content in found.items()}


def value(field: Any) -> Any:
    return getattr(field, field.WhichOneof("kind"))


@pytest.mark.parametrize("default_hp_metric", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_one_row_a_run(default_hp_metric: bool, first: bool, tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="run", default_hp_metric=default_hp_metric)
    ours = [StabilityProjectionCallback(0.9), FeedForwardShadowCallback(2)]
    run = trainer(tmp_path, *(ours if first else ours[::-1]), logger=logger, log_every_n_steps=1)
    run.fit(Configured(), sequences(), sequences())
    found = description(tmp_path / "run")
    start = {name: value(field) for name, field in found["session_start_info"].session_start_info.hparams.items()}
    assert start == {"units": 5.0, "sizes": "(1, 2)", "rate": 0.9, "window": 2.0}
    experiment = found["experiment"].experiment
    assert {info.name for info in experiment.hparam_infos} == {"rate", "window", "units", "sizes"}
    shown = [info.name.tag for info in experiment.metric_infos]
    assert "session_end_info" in found
    scalars = EventAccumulator(str(tmp_path / "run")).Reload().Tags()["tensors"]
    assert set(shown) <= set(scalars)
    assert {"stability/rate", "shadow/val_loss_gap", "shadow/val_weight_distance_relative"} <= set(shown)


def test_runs_of_one_callback_name_the_same_columns(tmp_path: Path) -> None:
    columns = []
    for version, callback in enumerate((StabilityProjectionCallback(0.9), FeedForwardShadowCallback(2))):
        logger = TensorBoardLogger(tmp_path, name="", version=f"{version}")
        trainer(tmp_path, callback, logger=logger).fit(Configured(), sequences())
        experiment = description(tmp_path / f"{version}")["experiment"].experiment
        columns.append(({i.name for i in experiment.hparam_infos}, {i.name.tag for i in experiment.metric_infos}))
    assert columns[0] == columns[1]


def test_the_table_a_user_writes_stays(tmp_path: Path) -> None:
    class Own(Configured):
        def on_train_start(self) -> None:
            self.logger.log_hyperparams(self.hparams, {"mine": 0.5})  # type: ignore[union-attr]

    logger = TensorBoardLogger(tmp_path, name="", version="run", default_hp_metric=False)
    trainer(tmp_path, StabilityProjectionCallback(0.9), logger=logger).fit(Own(), sequences())
    experiment = description(tmp_path / "run")["experiment"].experiment
    assert [info.name.tag for info in experiment.metric_infos] == ["mine"]


def test_a_model_without_hyperparameters(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    L.seed_everything(1, verbose=False)
    trainer(tmp_path, StabilityProjectionCallback(0.9), logger=logger).fit(Recurrent(), sequences())
    start = description(tmp_path / "run")["session_start_info"].session_start_info.hparams
    assert {name: value(field) for name, field in start.items()} == {"rate": 0.9}
