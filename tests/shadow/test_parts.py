"""Random states, optimizers, the trainer's stand-in and the watch on predictions."""

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.optim import SGD, lr_scheduler

from lightning_stable.shadow.batches import cloned, shallow, versions
from lightning_stable.shadow.nested import parts_of
from lightning_stable.shadow.optimizers import configured
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


def forms() -> dict[str, Any]:
    parameter = nn.Parameter(torch.ones(()))
    optimizer = SGD([parameter], lr=1.0)
    step = lr_scheduler.StepLR(optimizer, 1)
    plateau = lr_scheduler.ReduceLROnPlateau(optimizer)
    return {
        "optimizer": (optimizer, []),
        "list": ([optimizer], []),
        "tuple": ((optimizer,), []),
        "lists": (([optimizer], [step]), [(step, None)]),
        "lists with dict": (([optimizer], [{"scheduler": plateau, "monitor": "x"}]), [(plateau, "x")]),
        "one scheduler": (([optimizer], step), [(step, None)]),
        "dict": ({"optimizer": optimizer}, []),
        "dict with scheduler": ({"optimizer": optimizer, "lr_scheduler": step}, [(step, None)]),
        "dict with options": ({"optimizer": optimizer, "lr_scheduler": {"scheduler": step}}, [(step, None)]),
        "monitor": ({"optimizer": optimizer, "lr_scheduler": plateau, "monitor": "x"}, [(plateau, "x")]),
        "list of dict": ([{"optimizer": optimizer, "lr_scheduler": step}], [(step, None)]),
    }


@pytest.mark.parametrize("form", forms())
def test_forms_of_configure_optimizers(form: str) -> None:
    asked, expected = forms()[form]
    model = Recurrent()
    model.configure_optimizers = lambda: asked  # type: ignore[method-assign]
    optimizer, schedules = configured(model)
    assert isinstance(optimizer, SGD)
    assert [type(s.scheduler) for s in schedules] == [type(scheduler) for scheduler, _ in expected]
    assert [s.monitor for s in schedules] == [monitor for _, monitor in expected]


@pytest.mark.parametrize("several", [list, tuple])
def test_several_optimizers(several: Any) -> None:
    model = Recurrent()
    optimizers = several(SGD(model.parameters(), lr=1.0) for _ in range(2))
    model.configure_optimizers = lambda: optimizers  # type: ignore[method-assign]
    with pytest.raises(Exception, match="one optimizer"):
        configured(model)


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
