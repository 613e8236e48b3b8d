"""The trainer and its strategy as the twin sees them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger, Logger
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import Strategy
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from lightning_stable.shadow.logs import TwinLog


class Proxy:
    """Stands before an object: reads pass through, what is set stays here.

    Args:
        target: The object.
        own: Attributes that hide the target's.
    """

    def __init__(self, target: Any, **own: Any) -> None:
        vars(self).update(own, _target=target)

    def __getattr__(self, name: str) -> Any:
        if name == "_target":  # a copy that is being made has no target yet
            raise AttributeError(name)
        return getattr(self._target, name)


class TwinTrainer(Proxy):
    """The model's trainer with a strategy, optimizers, schedulers and metrics of the twin's, and without loggers.

    The twin's hooks read the trainer as the model's do (epoch, steps to come, precision); what they would change, such
    as ``should_stop``, or write to a logger's experiment, must not reach the model's run. There are no callbacks of
    the model's and no profiler, as Lightning's precision plugins would call them for the twin; what stands in
    ``callbacks`` they do call, before backward passes and steps.

    Args:
        trainer: The model's trainer.
        twin: The twin.
        log: What the twin logs.
    """

    def __init__(self, trainer: Trainer, twin: LightningModule, log: TwinLog) -> None:
        loggers: list[Logger] = [DummyLogger() for _ in trainer.loggers]
        strategy = _strategy_of(trainer.strategy, twin)
        super().__init__(
            trainer,
            lightning_module=twin,
            model=twin,
            strategy=strategy,
            precision_plugin=strategy.precision_plugin,
            callbacks=[],
            profiler=PassThroughProfiler(),
            loggers=loggers,
            logger=loggers[0] if loggers else None,
            _log=log,
            _step=None,
        )

    @property
    def global_step(self) -> int:
        """Optimizer steps made before what the twin is doing now."""
        own: int | None = self._step
        return self._target.global_step if own is None else own

    @contextmanager
    def at_step(self, step: int) -> Iterator[None]:
        """Let ``global_step`` be that of the model in the same place, which has gone on since, inside the block."""
        vars(self)["_step"] = step
        try:
            yield
        finally:
            vars(self)["_step"] = None

    def set_up_optimizers(self) -> None:
        """Let Lightning call the twin's ``configure_optimizers`` and read what it returns."""
        self.strategy.setup_optimizers(self)
        self.optimizers, self.lr_scheduler_configs = self.strategy.optimizers, self.strategy.lr_scheduler_configs

    def distribute(self) -> None:
        """Wrap the twin as the model is wrapped, if it is: torch then averages and overlaps its gradients."""
        model = self._target.model
        if isinstance(model, DistributedDataParallel):
            self.strategy.model = DistributedDataParallel(
                self.strategy.model,
                device_ids=model.device_ids,
                process_group=model.process_group,
                broadcast_buffers=model.broadcast_buffers,
                find_unused_parameters=model.find_unused_parameters,
                gradient_as_bucket_view=model.gradient_as_bucket_view,
                static_graph=model.static_graph,
            )

    @property
    def callback_metrics(self) -> dict[str, Tensor]:
        """What the model has logged, where the twin has not logged the same."""
        return {**self._target.callback_metrics, **self._log.values}


def _strategy_of(original: Strategy, twin: LightningModule) -> Strategy:
    """Return a strategy like the trainer's with the twin in the model's place and a precision plugin of its own.

    ``copy.copy`` is no choice: it would wrap the model's optimizers for the copy. A model averager counts the steps
    made with it, and the twin's are not the model's.
    """
    strategy = object.__new__(type(original))
    vars(strategy).update(vars(original), _model_averager=None)
    strategy.precision_plugin = copy.deepcopy(original.precision_plugin)
    strategy.connect(twin)
    return strategy
