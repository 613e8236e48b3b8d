"""Random states, batches, the trainer's stand-in and the watch on predictions."""

import copy
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from lightning_stable.copying import parts_of
from lightning_stable.shadow.batches import cloned, shallow, versions
from lightning_stable.shadow.predictions import PredictionWatch, first_floating
from lightning_stable.shadow.rng import RandomStates, isolated
from lightning_stable.shadow.trainer import Proxy
from tests.helpers import FEATURES, TIME, Recurrent


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
