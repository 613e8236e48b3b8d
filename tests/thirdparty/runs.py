"""One run with all callbacks, and what must hold of it whatever the model is."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from lightning_stable import certify
from lightning_stable.callbacks import (
    FeedForwardShadowCallback,
    StabilityProjectionCallback,
    StableModelCheckpoint,
    TruncationProfileCallback,
)
from lightning_stable.checkpoints import recorded_inputs
from lightning_stable.truncation import Windowed

RATE, WINDOW = 0.95, 6
TRAINER = {
    "accelerator": "cpu",
    "devices": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 2,
}


def callbacks(path: Path, monitor: str, mode: str = "min") -> list[Any]:
    """One of each, the checkpoint last."""
    return [
        StabilityProjectionCallback(rate=RATE),
        FeedForwardShadowCallback(WINDOW),
        TruncationProfileCallback(max_window=WINDOW),
        StableModelCheckpoint(dirpath=path / "checkpoints", monitor=monitor, mode=mode),
    ]


def check(path: Path, used: Iterable[Any], metrics: dict[str, Any], *, val_loss: bool = True) -> None:
    """Every callback has done its work, and TensorBoard shows it.

    Args:
        path: The folder of the logger and the checkpoints.
        used: The callbacks as the trainer used them.
        metrics: The trainer's ``callback_metrics``.
        val_loss: Whether the model logs a loss in validation.
    """
    projection, shadow, profile = list(used)[:3]
    assert projection.report.rate <= RATE
    assert projection.report.guarantee in ("data", "derived", "guaranteed")
    assert projection.num_projections > 2
    needed = ["stability/rate", "shadow/loss_gap", "shadow/val_prediction_distance_relative"]
    needed += ["shadow/val_loss_gap"] if val_loss else []
    assert all(math.isfinite(metrics[name]) for name in needed)
    assert 0 < metrics["shadow/val_weight_distance_relative"] < 2
    assert 0 < metrics["shadow/val_prediction_distance_relative"] < 1
    assert profile.profiles
    for name, found in profile.profiles.items():
        assert (found.max_error <= found.bound).all()
        assert math.isfinite(metrics[f"truncation/{name}/max_error"])
    assert any(isinstance(module, Windowed) for module in shadow.twin.modules())
    check_page(path)


def check_page(path: Path) -> None:
    """The loggers in a folder have written the page of the callbacks."""
    (written,) = {file.parent for file in path.rglob("events.out.tfevents*") if file.parent.name == "theory"}
    tensors = EventAccumulator(str(written), size_guidance={"tensors": 0}).Reload()
    content = tensors.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
    (page,) = (category for category in Layout.FromString(content).category if category.title == "Stability")
    assert len(page.chart) > 2


def check_reloaded(path: Path, module: Any) -> None:
    """A model from a checkpoint has the weights and the certificate that the checkpoint speaks of."""
    checkpoint = torch.load(path, weights_only=False)
    (state,) = (state for key, state in checkpoint["callbacks"].items() if key.startswith("StabilityProjection"))
    for name, value in module.state_dict().items():
        assert torch.equal(value, checkpoint["state_dict"][name])
    module.eval()
    assert certify(module, input_bound=recorded_inputs(checkpoint)).rate <= RATE
    assert state["report"]["rate"] <= RATE


def seen(projection: StabilityProjectionCallback) -> dict[str, Any]:
    """The inputs that a run has recorded."""
    return dict(recorded_inputs({"callbacks": {"": projection.state_dict()}}))


def waves(series: int = 4, time: int = 80) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Noisy sines, shape ``(series, time)``."""
    phases = np.arange(series)[:, None]
    return np.sin(np.arange(time) / 5 + phases) + 0.1 * np.random.default_rng(0).standard_normal((series, time))


@contextmanager
def without_torchvision() -> Iterator[None]:
    """Let imports inside the block find a torchvision that does nothing, where there is none for this build of torch.

    kraken imports it for the augmentation of images; its networks use none of it.
    """
    names = [f"torchvision{part}" for part in ("", ".transforms", ".transforms.v2", ".tv_tensors")]
    missing = names if importlib.util.find_spec("torchvision") is None else []
    for name in missing:
        sys.modules[name] = MagicMock(__path__=[], __spec__=importlib.machinery.ModuleSpec(name, None))
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]


def needs(*packages: str) -> pytest.MarkDecorator:
    """Skip the tests of a file where a package is missing."""
    for package in packages:
        pytest.importorskip(package)
    return pytest.mark.thirdparty
