"""Base classes that a Trainer of either package takes for its own.

Lightning is installed under two names, with classes of their own, and a Trainer asks with ``isinstance`` whether
``callbacks=`` is one callback, which callbacks run last, whose best checkpoint ``ckpt_path="best"`` is, and which hooks
a data module has. So each class here inherits from both, where both are installed: from ``lightning.pytorch`` what it
does, from ``pytorch_lightning`` that it is one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl

if TYPE_CHECKING:
    from lightning.pytorch import Callback as Callback
    from lightning.pytorch import LightningDataModule as LightningDataModule
    from lightning.pytorch.callbacks import ModelCheckpoint as ModelCheckpoint
else:

    def _other(name: str, submodule: str = "") -> tuple[type[Any], ...]:
        try:
            return (getattr(import_module(f"pytorch_lightning{submodule}"), name),)
        except Exception:  # not installed, or too old for the packages around it
            return ()

    class _OneStart:
        """Ends the chain of ``super().__init__()`` between the packages: an object is initialised by one of them."""

        def __init__(self) -> None: ...

    class Callback(pl.Callback, _OneStart, *_other("Callback")):
        """A callback of both packages."""

    class ModelCheckpoint(pl.callbacks.ModelCheckpoint, _OneStart, *_other("ModelCheckpoint", ".callbacks")):
        """A ModelCheckpoint of both packages."""

    class LightningDataModule(pl.LightningDataModule, _OneStart, *_other("LightningDataModule")):
        """A LightningDataModule of both packages."""
