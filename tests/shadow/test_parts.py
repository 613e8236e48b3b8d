"""Random states, batches, the trainer's stand-in and the watch on predictions."""

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence
from torch.optim import SGD

from lightning_stable.copying import parts_of
from lightning_stable.shadow.batches import cloned, shallow, versions
from lightning_stable.shadow.logs import TwinLog
from lightning_stable.shadow.predictions import PredictionWatch, first_floating
from lightning_stable.shadow.rng import RandomStates, isolated
from lightning_stable.shadow.trainer import Proxy, TwinTrainer
from tests.helpers import FEATURES, TIME, Recurrent, trainer


def draw() -> tuple[float, ...]:
    return torch.rand(()).item(), random.random(), np.random.rand()  # noqa: NPY002


def test_isolated_generators() -> None:
    states = RandomStates.capture(torch.device("cpu"))
    first, second = draw(), draw()
    states.restore()
    assert draw() == first
    with isolated(torch.device("cpu"), states):
        assert draw() == first
    assert draw() == second


def test_proxy_keeps_what_is_set() -> None:
    target = Recurrent()
    proxy = Proxy(target, bounded=False)
    proxy.growth = 7.0
    assert (proxy.bounded, proxy.growth, proxy.core) == (False, 7.0, target.core)
    assert (target.bounded, target.growth) == (True, 1.0)
    assert copy.copy(proxy).growth == 7.0


def test_the_twins_strategy_leaves_the_model_its_own(tmp_path: Path) -> None:
    """Also where the model's optimizer is one that Lightning has wrapped, and its strategy averages models."""
    plugin = MixedPrecision("16-mixed", device="cpu", scaler=torch.amp.GradScaler("cpu"))
    model, twin = Recurrent(), Recurrent()
    run = trainer(tmp_path, plugins=[plugin])
    run.strategy.connect(model)
    run.strategy.optimizers = [LightningOptimizer(SGD(model.parameters(), lr=1.0))]
    run.strategy._model_averager = averager = object()
    wrapped = list(run.strategy._lightning_optimizers)
    log = TwinLog()
    twin.trainer = stand_in = TwinTrainer(run, twin, log)  # type: ignore[assignment]
    stand_in.set_up_optimizers()
    assert type(stand_in.strategy) is type(run.strategy)
    assert stand_in.strategy.lightning_module is stand_in.lightning_module is twin
    assert stand_in.precision_plugin.scaler is not plugin.scaler
    assert stand_in.strategy._model_averager is None
    assert stand_in.callbacks == []
    assert twin.optimizers().param_groups[0]["params"][0] is next(twin.parameters())
    assert run.strategy.lightning_module is model
    assert run.precision_plugin is plugin
    assert run.strategy._model_averager is averager
    assert run.strategy._lightning_optimizers == wrapped
    assert wrapped[0]._strategy.lightning_module is model


def test_shallow_copies_of_batches() -> None:
    batch = {"x": [torch.ones(1), (torch.zeros(1), 3)]}
    copied = shallow(batch)
    assert copied["x"][1][0] is batch["x"][1][0]
    batch["x"].clear()
    assert len(copied["x"]) == 2


def test_changes_in_place_are_counted() -> None:
    x = torch.ones(2)
    batch = {"x": [x, (torch.zeros(1), 3)], "y": pack_sequence([torch.ones(2)])}
    before, copied = versions(batch), cloned(batch)
    assert versions(batch) == before
    x[:1].zero_()
    assert versions(batch) != before
    assert torch.equal(copied["x"][0], torch.ones(2))
    with torch.inference_mode():
        assert versions([torch.ones(1)]) == [0]


def test_tensors_in_structures() -> None:
    loop: list[Any] = [torch.ones(1), {"a": (torch.zeros(1), "text", None)}]
    loop.append(loop)
    assert len(list(parts_of(Tensor, loop))) == 2


def test_first_floating_tensor() -> None:
    value = torch.ones(2)
    assert first_floating((torch.ones(1, dtype=torch.long), {"a": None, "b": [value]})) is value
    assert torch.equal(first_floating(pack_sequence([value])), value)
    assert first_floating(None) is None


def test_watch_sees_calls_inside_a_wrapped_call() -> None:
    """As under DDP, where the whole step runs through the module's call."""
    model = Recurrent()
    batch = torch.ones(1, TIME, FEATURES)
    forward = model.forward

    def step(x: Tensor) -> Tensor:
        model.forward = forward  # type: ignore[method-assign]
        return model(x).sum()

    watch = PredictionWatch(model, wrapped=True)
    watch.begin(watching=True)
    model.forward = step  # type: ignore[method-assign]
    model(batch)
    (seen,) = watch.take()
    assert seen.shape == (1, TIME, FEATURES)
    model(batch)
    assert watch.take() == []
    watch.detach()
    assert not model._forward_hooks
