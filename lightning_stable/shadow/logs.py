"""What the twin logs, apart from what the model logs under the same names, and a tap on what the model logs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor
from torchmetrics import Metric

# Reduces a tensor over all processes by an operation, "sum", "max" or "min".
Reduce = Callable[[Tensor, str], Tensor]


class TwinLog:
    """The twin's log: takes the place of its ``log`` method and follows Lightning's rules for steps and epochs.

    Args:
        reduce: Reduces values logged with ``sync_dist`` over all processes; None with one process.

    Attributes:
        values: The latest value of each name, of the last batch or of the last finished epoch.
        batch_values: What was logged in the present batch, without the suffix of a data loader.
        batch_sizes: The batch sizes that were logged with these values.
        finished: The values of the last finished epoch of a stage; empty before one.
    """

    def __init__(self, reduce: Reduce | None = None) -> None:
        self.values: dict[str, Tensor] = {}
        self.batch_values: dict[str, Tensor] = {}
        self.batch_sizes: dict[str, int] = {}
        self.finished: dict[str, Tensor] = {}
        self.reduce = reduce
        self._stage = "train"
        self._batch: Any = None
        self._suffix = ""
        # Validation may run in the middle of an epoch of training.
        self._means: dict[str, dict[str, Mean]] = {"train": {}, "val": {}}
        self._metrics: dict[str, dict[str, Metric]] = {"train": {}, "val": {}}

    def begin(self, stage: str, batch: Any = None, dataloader_idx: int | None = None) -> None:
        """Set what the following values belong to.

        Args:
            stage: ``"train"`` or ``"val"``.
            batch: The batch, whose size weighs values logged without one; None between batches.
            dataloader_idx: Index of the present one of several validation loaders, which becomes a part of the names;
                None for a single loader.
        """
        self._stage, self._batch = stage, batch
        self._suffix = "" if dataloader_idx is None else f"/dataloader_idx_{dataloader_idx}"
        self.batch_values, self.batch_sizes = {}, {}

    @torch.no_grad()
    def log(
        self,
        name: str,
        value: Any,
        *_: Any,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: Any = "mean",
        sync_dist: bool = False,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        **__: Any,
    ) -> None:
        """Record a value; arguments as in :meth:`lightning.pytorch.LightningModule.log`."""
        in_training_batch = self._stage == "train" and self._batch is not None
        on_step = in_training_batch if on_step is None else on_step
        on_epoch = not in_training_batch if on_epoch is None else on_epoch
        suffix = self._suffix if add_dataloader_idx else ""
        if isinstance(value, Metric):
            self._metrics[self._stage][name + suffix] = value
            return
        value = floating(value)
        self.batch_values[name] = value
        if batch_size is not None:
            self.batch_sizes[name] = batch_size
        if on_step:
            for key in (name, f"{name}_step") if on_epoch else (name,):
                self.values[key + suffix] = value
        if on_epoch:
            names = (name, f"{name}_epoch") if on_step else (name,)
            mean = Mean(tuple(key + suffix for key in names), reduce_fx, sync_dist)
            mean = self._means[self._stage].setdefault(name + suffix, mean)
            mean.add(value, self._weight(batch_size) if mean.weighted else 1)

    def end_epoch(self) -> None:
        """Turn what was logged in this stage into its values, and forget it."""
        self.finished = {}
        for mean in self._means[self._stage].values():
            self.finished.update(dict.fromkeys(mean.names, mean.compute(self.reduce)))
        for name, metric in self._metrics[self._stage].items():
            self.finished[name] = metric.compute()
            metric.reset()
        self.values.update(self.finished)
        self._means[self._stage], self._metrics[self._stage] = {}, {}

    def _weight(self, batch_size: int | None) -> int:
        if batch_size is not None:
            return batch_size
        return 1 if self._batch is None else extract_batch_size(self._batch)


def floating(value: Any) -> Tensor:
    """Return a number or tensor as Lightning keeps it: detached, in single or double precision."""
    double = torch.get_default_dtype() == torch.float64
    default = torch.float64 if double else torch.float32  # also where modules compute in half precision
    kept: Tensor = value.detach() if isinstance(value, Tensor) else torch.tensor(value, dtype=default)
    return kept if kept.dtype in (torch.float32, torch.float64) else kept.to(default)


class Mean:
    """A value over an epoch, by one of Lightning's four reductions; another function counts as the mean.

    Args:
        names: The names under which it is recorded.
        reduce_fx: The reduction, as in :meth:`lightning.pytorch.LightningModule.log`.
        sync_dist: Whether it is reduced over all processes.

    Attributes:
        kind: The name of the reduction.
        names: The names under which it is recorded.
        total: The weighted sum or the extreme of the values so far; None before the first one.
        weight: The weights of the values so far, added up.
    """

    def __init__(self, names: tuple[str, ...] = (), reduce_fx: Any = "mean", sync_dist: bool = True) -> None:
        kind = reduce_fx if isinstance(reduce_fx, str) else getattr(reduce_fx, "__name__", "mean")
        self.kind = {"avg": "mean"}.get(kind, kind)
        self.names, self.sync_dist = names, sync_dist
        self.total: Tensor | None = None
        self.weight = 0

    @property
    def weighted(self) -> bool:
        """Whether batches are weighted by their sizes."""
        return self.kind not in ("sum", "max", "min")

    def add(self, value: Tensor, weight: int) -> None:
        """Add the value of a batch of size ``weight``."""
        if self.total is None:
            self.total = value * weight if self.weighted else value
        elif self.kind in ("max", "min"):
            self.total = (torch.maximum if self.kind == "max" else torch.minimum)(self.total, value)
        else:
            self.total = self.total + value * weight
        self.weight += weight

    def compute(self, reduce: Reduce | None) -> Tensor:
        """Return the value over all batches.

        Args:
            reduce: Reduces a tensor over all processes; None with one process.
        """
        assert self.total is not None
        total, weight = self.total, torch.full_like(self.total, self.weight)
        if self.sync_dist and reduce is not None:
            total = reduce(total.clone(), self.kind if self.kind in ("max", "min") else "sum")
            weight = reduce(weight, "sum")
        return total / weight if self.weighted else total


class LogTap:
    """Stands in for a module's ``log``: tells its listeners what the module logs, and logs it.

    Several listeners share one tap, so that they can leave in any order.

    Attributes:
        listeners: Functions that are called with every name and value; the last one to leave removes the tap.
    """

    def __init__(self, module: LightningModule) -> None:
        self._module = module
        self._own = vars(module).get("log")
        self._log = module.log
        self.listeners: list[Callable[[str, Any], None]] = []

    def __call__(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Tell the listeners and log the value."""
        for listener in self.listeners:
            listener(name, value)
        self._log(name, value, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> LogTap:
        """Return a tap without listeners: nobody listens to a copy of the module."""
        return LogTap(copy.deepcopy(self._module, memo))

    @staticmethod
    def attach(module: LightningModule, listener: Callable[[str, Any], None]) -> None:
        """Call ``listener(name, value)`` for everything the module logs from now on."""
        tap = vars(module).get("log")
        if not isinstance(tap, LogTap):
            tap = LogTap(module)
            module.log = tap  # type: ignore[method-assign]
        tap.listeners.append(listener)

    @staticmethod
    def detach(module: LightningModule, listener: Callable[[str, Any], None]) -> None:
        """Stop calling ``listener``; without listeners the module gets its own ``log`` back."""
        tap = vars(module).get("log")
        if not isinstance(tap, LogTap) or listener not in tap.listeners:
            return
        tap.listeners.remove(listener)
        if not tap.listeners:
            if tap._own is None:
                del module.log
            else:
                module.log = tap._own  # type: ignore[method-assign]
