"""Questions to a Lightning trainer: its callbacks of a kind, its logging interval, whether it keeps the model whole.

Lightning is installed under two names, ``lightning.pytorch`` and ``pytorch_lightning``, with classes of their own.
"""

from __future__ import annotations

import sys
from typing import Any, TypeVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer

KindT = TypeVar("KindT")
_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def callbacks_of(trainer: Trainer, kind: type[KindT] | tuple[type[KindT], ...]) -> list[KindT]:
    """Return the trainer's callbacks of a kind, in their order.

    Args:
        trainer: The trainer.
        kind: A class, several, or a protocol that can be checked at runtime.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, kind)]


def logging_interval(trainer: Trainer) -> int:
    """Return after how many steps the trainer logs; 0 means that it does not log in training."""
    interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return interval


def check_strategy(trainer: Trainer, who: str, need: str, *, sharded: bool = False) -> None:
    """Refuse a strategy under which a process does not hold the whole model.

    Args:
        trainer: The trainer whose strategy is checked.
        who: The class that asks, for the message.
        need: What the class needs, for the message: ``"whole recurrent matrices on every device"``.
        sharded: Whether parameters may be DTensors, of which every process holds a shard.

    Raises:
        MisconfigurationException: If the strategy is neither of a single device nor distributed data parallel, nor,
            with ``sharded``, model parallel.
    """
    strategy = trainer.strategy
    whole = isinstance(strategy, classes(".strategies", "SingleDeviceStrategy", "DDPStrategy"))
    if sharded and isinstance(strategy, classes(".strategies", "ModelParallelStrategy")):
        return
    if not whole or isinstance(strategy, classes(".strategies", "DeepSpeedStrategy")):
        raise MisconfigurationException(
            f"{who} needs {need}, which only strategies of a single device and distributed data parallel are known "
            f"to give. Got strategy {type(strategy).__name__}; use 'ddp' or 'auto'"
            f"{', or ModelParallelStrategy' * sharded}."
        )


def lightning_class(module: object) -> type[LightningModule] | None:
    """Return the LightningModule of the package that a module is made with; None if it is no LightningModule."""
    return next((kind for kind in classes("", "LightningModule") if isinstance(module, kind)), None)


def trainer_class(model: LightningModule) -> type[Trainer]:
    """Return the Trainer of the package that a model is made with."""
    pairs = zip(classes("", "LightningModule"), classes("", "Trainer"), strict=True)
    return next(trainer for kind, trainer in pairs if isinstance(model, kind))


def classes(submodule: str, *names: str) -> tuple[type[Any], ...]:
    """Return the classes of these names in both packages, for ``isinstance``.

    A package that is not imported has made no object, and one without the name has none of this kind.

    Args:
        submodule: ``".strategies"`` for instance; empty for the package itself.
        names: Names of classes.
    """
    modules = [sys.modules[package + submodule] for package in _PACKAGES if package + submodule in sys.modules]
    return tuple(getattr(module, name) for module in modules for name in names if hasattr(module, name))
