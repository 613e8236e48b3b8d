from typing import Any

import lightning as L
import torch
from torchmetrics import MeanMetric

from lightning_stable.shadow.logs import LogTap, TwinLog


def test_weighted_means_of_an_epoch() -> None:
    recorder = TwinLog()
    for size, value in ((2, 1.0), (4, 4.0)):
        recorder.begin("val", torch.ones(size, 3))
        recorder.log("loss", torch.tensor(value))
        recorder.log("given", value, batch_size=1)
        for kind in ("sum", "min", "max"):
            recorder.log(kind, value, reduce_fx=kind)
        recorder.log("late", value, on_step=True, on_epoch=True)
    assert recorder.batch_values["loss"] == 4.0
    recorder.end_epoch()
    values = {name: value.item() for name, value in recorder.values.items()}
    late = {"late": 3.0, "late_step": 4.0, "late_epoch": 3.0}
    assert values == {"loss": 3.0, "given": 2.5, "sum": 5.0, "min": 1.0, "max": 4.0} | late


def test_a_validation_in_the_middle_of_an_epoch() -> None:
    recorder = TwinLog()
    recorder.begin("train", torch.ones(1))
    recorder.log("step", 1.0)
    recorder.log("mean", 1.0, on_epoch=True)
    recorder.begin("val", torch.ones(1), 1)
    recorder.log("mean", 9.0)
    recorder.end_epoch()
    recorder.begin("train", torch.ones(1))
    recorder.log("mean", 2.0, on_epoch=True)
    recorder.begin("train")
    recorder.end_epoch()
    assert recorder.values["mean"] == 1.5
    assert recorder.values["mean/dataloader_idx_1"] == 9.0
    assert recorder.values["step"] == 1.0


def test_metric_objects_are_computed_and_reset() -> None:
    recorder, metric = TwinLog(), MeanMetric()
    recorder.begin("val", torch.ones(1))
    metric.update(3.0)
    recorder.log("metric", metric)
    recorder.end_epoch()
    assert recorder.values["metric"] == 3.0
    assert not metric.update_called


def test_values_of_all_processes() -> None:
    operations: list[str] = []

    def reduce(value: torch.Tensor, operation: str) -> torch.Tensor:
        operations.append(operation)
        return 3 * value if operation == "sum" else value + 1

    recorder = TwinLog(reduce)
    recorder.begin("val", torch.ones(2))
    recorder.log("mean", 2.0, sync_dist=True)
    recorder.log("max", 2.0, sync_dist=True, reduce_fx="max")
    recorder.log("own", 2.0)
    recorder.end_epoch()
    assert {name: value.item() for name, value in recorder.values.items()} == {"mean": 2.0, "max": 3.0, "own": 2.0}
    assert "max" in operations


def test_taps_come_and_go_in_any_order() -> None:
    module, heard = L.LightningModule(), {"a": [], "b": []}  # type: ignore[var-annotated]
    own: list[Any] = []
    module.log = lambda name, value, **_: own.append(name)  # type: ignore[method-assign]
    before = module.log
    first, second = (lambda name, value, key=key: heard[key].append(name) for key in "ab")
    LogTap.attach(module, first)
    LogTap.attach(module, second)
    module.log_dict({"x": 1.0})
    LogTap.detach(module, first)
    module.log("y", 2.0)
    LogTap.detach(module, second)
    LogTap.detach(module, second)
    module.log("z", 3.0)
    assert heard == {"a": ["x"], "b": ["x", "y"]}
    assert own == ["x", "y", "z"]
    assert module.log is before
