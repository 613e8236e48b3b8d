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


def callbacks_of(trainer: Trainer, kind: type[KindT]) -> list[KindT]:
    """Return the trainer's callbacks of a kind, in their order.

    Args:
        trainer: The trainer.
        kind: A class, or a protocol that can be checked at runtime.
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
    whole = isinstance(strategy, _classes(".strategies", "SingleDeviceStrategy", "DDPStrategy"))
    if sharded and isinstance(strategy, _classes(".strategies", "ModelParallelStrategy")):
        return
    if not whole or isinstance(strategy, _classes(".strategies", "DeepSpeedStrategy")):
        raise MisconfigurationException(
            f"{who} needs {need}, which strategies that shard parameters or step in their own way do not give. "
            f"Got strategy {type(strategy).__name__}; use 'ddp' or 'auto'{', or ModelParallelStrategy' * sharded}."
        )


def lightning_class(module: object) -> type[LightningModule] | None:
    """Return the LightningModule of the package that a module is made with; None if it is no LightningModule."""
    return next((kind for kind in _classes("", "LightningModule") if isinstance(module, kind)), None)


def _classes(submodule: str, *names: str) -> tuple[type[Any], ...]:
    """Return the classes of these names in both packages; a package that is not imported has made no object."""
    modules = [sys.modules[package + submodule] for package in _PACKAGES if package + submodule in sys.modules]
    return tuple(getattr(module, name) for module in modules for name in names)
