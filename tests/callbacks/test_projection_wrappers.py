"""Objects that wrap an optimizer, in the ways that are in use: none of them slips past the projection."""

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import nn

from lightning_stable.callbacks import FeedForwardShadowCallback
from tests.callbacks.projections import RATE, projection, rate
from tests.helpers import Recurrent, sequences, sgd, trainer


class Wrapper:
    """Steps an optimizer that it holds, and is none itself."""

    def __init__(self, parameters: Any) -> None:
        self.optimizer = sgd(parameters)
        self._share(self.optimizer)

    def _share(self, optimizer: Any) -> None:
        self.param_groups, self.state, self.defaults = optimizer.param_groups, optimizer.state, optimizer.defaults

    def inner(self) -> Any:
        return self.optimizer

    def step(self, closure: Any = None) -> Any:
        return self.inner().step(closure)

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        self.inner().zero_grad(*args, **kwargs)

    def state_dict(self) -> Any:
        return self.inner().state_dict()

    def load_state_dict(self, state: Any) -> None:
        self.inner().load_state_dict(state)


class Forwarding(Wrapper):
    def __getattr__(self, name: str) -> Any:
        if name == "optimizer":
            raise AttributeError(name)
        return getattr(self.optimizer, name)


class Nested(Wrapper):
    def __init__(self, parameters: Any) -> None:
        self.wrapped = Wrapper(parameters)
        self._share(self.wrapped)

    def inner(self) -> Any:
        return self.wrapped


class Lookahead(Wrapper):
    """Moves the weights once more after the step, where torch counts it."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.mul_(1.5)
        return loss


class PastTheCount(Wrapper):
    """The same through ``data``, whose writes torch does not count."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.mul_(1.5)
        return loss


class Hidden(Wrapper):
    """Holds its optimizer where nobody finds it."""

    def __init__(self, parameters: Any) -> None:
        optimizer = sgd(parameters)
        self.find = lambda: optimizer
        self._share(optimizer)

    def inner(self) -> Any:
        return self.find()


class Uninitialised(torch.optim.Optimizer):
    """A subclass that never called ``super().__init__``, and so has no hooks."""

    def __init__(self, parameters: Any) -> None:
        self.base = sgd(parameters)
        self.param_groups, self.state, self.defaults = self.base.param_groups, self.base.state, self.base.defaults

    def step(self, closure: Any = None) -> Any:
        return self.base.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base.zero_grad(set_to_none)

    def state_dict(self) -> Any:
        return self.base.state_dict()


class SharpnessAware(torch.optim.Optimizer):
    """Climbs first and steps with the gradient found there, through an optimizer of its own."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=0.3)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        parameters = [p for group in self.param_groups for p in group["params"]]
        with torch.enable_grad():
            loss = closure()
        climbs = [0.05 * p.grad for p in parameters]
        for parameter, climb in zip(parameters, climbs, strict=True):
            parameter.add_(climb)
        with torch.enable_grad():
            closure()
        for parameter, climb in zip(parameters, climbs, strict=True):
            parameter.sub_(climb)
        self.base_optimizer.step()
        return loss


class AtEnd(L.Callback):
    def __init__(self, shadow: FeedForwardShadowCallback) -> None:
        self.rates: list[float] = []
        self.shadow = shadow

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self.rates += [rate(pl_module), rate(self.shadow.twin)]


def of_lightning(parameters: Any) -> LightningOptimizer:
    return LightningOptimizer(sgd(parameters))


@pytest.mark.parametrize(
    ("optimizer", "warns"),
    [
        (Wrapper, False),
        (Forwarding, False),
        (Nested, False),
        (of_lightning, False),
        (SharpnessAware, False),
        (Uninitialised, False),
        (PastTheCount, False),
        (Lookahead, True),
        (Hidden, True),
    ],
)
def test_what_a_wrapper_leaves_is_inside(optimizer: Any, warns: bool, tmp_path: Path) -> None:
    ours, shadow, model = projection(), FeedForwardShadowCallback(2), Recurrent(optimizer=optimizer)
    probe = AtEnd(shadow)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path, ours, shadow, probe).fit(model, sequences(4))
    assert ours.steps == ours.num_projections == 4
    assert len(probe.rates) == 8
    assert 0.97 * RATE < min(probe.rates) <= max(probe.rates) <= RATE
    assert any("without calling torch's step hooks" in str(one.message) for one in caught) == warns


def test_without_the_callback_they_leave_the_set(tmp_path: Path) -> None:
    model: nn.Module = Recurrent(optimizer=Wrapper)
    trainer(tmp_path).fit(model, sequences(4))
    assert rate(model) > 1
