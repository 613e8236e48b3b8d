"""The trainer as the twin sees it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger, Logger
from torch import Tensor
from torch.optim import Optimizer

from lightning_stable.shadow.logs import Recorder
from lightning_stable.shadow.optimizers import Schedule


class Proxy:
    """Stands before an object: reads pass through, what is set stays here.

    Args:
        target: The object.
        own: Attributes that hide the target's.
    """

    def __init__(self, target: Any, **own: Any) -> None:
        vars(self).update(own, _target=target)

    def __getattr__(self, name: str) -> Any:
        if name == "_target":  # a copy that is being made
            raise AttributeError(name)
        return getattr(self._target, name)


class TwinTrainer(Proxy):
    """The model's trainer with the twin's optimizer, schedulers and metrics, and without loggers.

    The twin's hooks read the trainer as the model's do (epoch, steps to come, precision); what they would change, such
    as ``should_stop``, or write to a logger's experiment, must not reach the model's run.
    """

    def __init__(self, trainer: Trainer, twin: LightningModule, recorder: Recorder) -> None:
        loggers: list[Logger] = [DummyLogger() for _ in trainer.loggers]
        super().__init__(
            trainer,
            lightning_module=twin,
            model=twin,
            loggers=loggers,
            logger=loggers[0] if loggers else None,
            _recorder=recorder,
            _step=None,
        )

    @property
    def global_step(self) -> int:
        """Optimizer steps made before what the twin is doing now."""
        own: int | None = self._step
        return self._target.global_step if own is None else own

    @contextmanager
    def at_step(self, step: int) -> Iterator[None]:
        """For the block ``global_step`` is that of the model in the same place, which has gone on since."""
        vars(self)["_step"] = step
        try:
            yield
        finally:
            vars(self)["_step"] = None

    def set_optimizers(self, optimizer: Optimizer, wrapped: Optimizer, schedules: Sequence[Schedule]) -> None:
        """Let ``self.optimizers()`` and ``self.lr_schedulers()`` of the twin return its own."""
        self.optimizers, self.lr_scheduler_configs = [optimizer], list(schedules)
        # `LightningModule.optimizers` reads this list of the strategy.
        self.strategy = Proxy(
            self._target.strategy, optimizers=[optimizer], _lightning_optimizers=[wrapped], lightning_module=self.model
        )

    @property
    def callback_metrics(self) -> dict[str, Tensor]:
        """What the model has logged, where the twin has not logged the same."""
        return {**self._target.callback_metrics, **self._recorder.values}
