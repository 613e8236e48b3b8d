"""The twin's own optimizer and learning-rate schedulers, from its ``configure_optimizers``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau


@dataclass(frozen=True)
class Schedule:
    """A scheduler and, if it follows a metric, the metric's name."""

    scheduler: Any
    monitor: str | None = None


def configured(twin: LightningModule) -> tuple[Optimizer, list[Schedule]]:
    """The optimizer and schedules a module asks for; interval and frequency are the model's business.

    Raises:
        MisconfigurationException: If there is not exactly one optimizer.
    """
    asked: Any = twin.configure_optimizers()
    optimizers, schedulers, monitor = _parse(asked)
    if len(optimizers) != 1 or not isinstance(optimizers[0], Optimizer):
        raise MisconfigurationException(
            "FeedForwardShadowCallback needs `configure_optimizers` to return one optimizer, alone or with its "
            f"learning-rate scheduler. Got {asked!r}."
        )
    return optimizers[0], [_schedule(scheduler, monitor) for scheduler in schedulers]


def _parse(asked: Any) -> tuple[list[Any], list[Any], str | None]:
    if isinstance(asked, LightningOptimizer):
        return [asked.optimizer], [], None
    if isinstance(asked, dict):
        scheduler = asked.get("lr_scheduler")
        return _parse(asked.get("optimizer"))[0], [] if scheduler is None else [scheduler], asked.get("monitor")
    if isinstance(asked, (list, tuple)):
        if len(asked) == 2 and isinstance(asked[0], (list, tuple)):
            schedulers = asked[1]
            return list(asked[0]), list(schedulers) if isinstance(schedulers, (list, tuple)) else [schedulers], None
        if len(asked) == 1:
            return _parse(asked[0])
        return list(asked), [], None
    return [asked], [], None


def _schedule(scheduler: Any, monitor: str | None) -> Schedule:
    follows = isinstance(scheduler, ReduceLROnPlateau)
    if isinstance(scheduler, dict):
        monitor = scheduler.get("monitor", monitor)
        scheduler, options = scheduler["scheduler"], scheduler
        follows = options.get("reduce_on_plateau", isinstance(scheduler, ReduceLROnPlateau))
    return Schedule(scheduler, monitor if follows else None)


def parameter_count(optimizer: Optimizer) -> int:
    """How many tensors an optimizer trains."""
    return sum(len(group["params"]) for group in optimizer.param_groups)


def follow_groups(optimizer: Optimizer, original: Optimizer, twins: Mapping[Tensor, Tensor]) -> None:
    """Give the twin's optimizer the parameter groups that were added to the model's.

    Args:
        optimizer: The twin's.
        original: The model's.
        twins: The twin's parameter for each of the model's.

    Raises:
        MisconfigurationException: If the two do not train the same parameters then.
    """
    for group in original.param_groups[len(optimizer.param_groups) :]:
        options = {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}
        optimizer.add_param_group({**options, "params": [twins[p] for p in group["params"] if p in twins]})
    # Parameters outside of the modules have no names, and can only be counted.
    known = set(twins.values())
    ours = [[twins.get(p) for p in group["params"]] for group in original.param_groups]
    theirs = [[p if p in known else None for p in group["params"]] for group in optimizer.param_groups]
    if [list(map(id, group)) for group in ours] != [list(map(id, group)) for group in theirs]:
        raise MisconfigurationException(
            "The twin's optimizer must train the parameters that the model's trains, group by group. During training, "
            "add only parameters that the model had from the start, in groups of their own. Got groups of "
            f"{list(map(len, ours))} parameters in the model's and {list(map(len, theirs))} in the twin's."
        )


class ScheduleMirror:
    """Steps the twin's schedulers as often as the model's have stepped, whatever interval and frequency they have.

    Args:
        twin: Its ``lr_scheduler_step`` makes the steps.
        schedules: The twin's.
        originals: The model's schedulers, in the same order.
        metric: Returns the twin's value of a monitored metric.

    Raises:
        MisconfigurationException: If their number differs, or a scheduler does not say how far it is.
    """

    def __init__(
        self,
        twin: LightningModule,
        schedules: Sequence[Schedule],
        originals: Sequence[Any],
        metric: Callable[[str], Any],
    ) -> None:
        if len(schedules) != len(originals):
            raise MisconfigurationException(
                "The twin's `configure_optimizers` must return as many schedulers as the model's. "
                f"Got {len(schedules)} and {len(originals)}."
            )
        self.schedules, self._twin, self._originals, self._metric = schedules, twin, originals, metric
        self.positions = [_position(original) for original in originals]

    def catch_up(self) -> None:
        """Make the steps the model's schedulers have made since the last call."""
        for index, (schedule, original) in enumerate(zip(self.schedules, self._originals, strict=True)):
            position = _position(original)
            for _ in range(position - self.positions[index]):
                metric = None if schedule.monitor is None else self._metric(schedule.monitor)
                self._twin.lr_scheduler_step(schedule.scheduler, metric)
            self.positions[index] = position


def _position(scheduler: Any) -> int:
    """How many steps a scheduler has made: the one thing about it that torch makes public."""
    parts = getattr(scheduler, "_schedulers", ())  # ChainedScheduler has no count of its own
    for counted in (scheduler, *parts):
        if isinstance(position := getattr(counted, "last_epoch", None), (int, float)):
            return int(position)
    raise MisconfigurationException(
        "FeedForwardShadowCallback keeps the twin's learning-rate schedule in step with the model's by the scheduler's "
        f"`last_epoch`, which {type(scheduler).__name__} does not have. Give it this attribute, counting its steps."
    )
