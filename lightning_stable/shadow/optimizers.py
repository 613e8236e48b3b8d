"""The twin's optimizer and schedulers kept in step with the model's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer


def parameter_count(optimizer: Optimizer) -> int:
    """Return how many tensors an optimizer trains."""
    return sum(len(group["params"]) for group in optimizer.param_groups)


def follow_groups(optimizer: Optimizer, original: Optimizer, twins: Mapping[Tensor, Tensor]) -> None:
    """Give the twin's optimizer the parameter groups that were added to the model's.

    Args:
        optimizer: The twin's optimizer.
        original: The model's optimizer.
        twins: The twin's parameter for each of the model's.

    Raises:
        MisconfigurationException: If the two do not train the same parameters then.
    """
    for group in original.param_groups[len(optimizer.param_groups) :]:
        options = {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}
        optimizer.add_param_group({**options, "params": [twins[p] for p in group["params"] if p in twins]})
    # Parameters outside of the modules have no names, and can only be counted.
    counterparts = set(twins.values())
    ours = [[twins.get(p) for p in group["params"]] for group in original.param_groups]
    theirs = [[p if p in counterparts else None for p in group["params"]] for group in optimizer.param_groups]
    if [list(map(id, group)) for group in ours] != [list(map(id, group)) for group in theirs]:
        raise MisconfigurationException(
            "The twin's optimizer must train the parameters that the model's trains, group by group. During training, "
            "add only parameters that the model had from the start, in groups of their own. Got groups of "
            f"{list(map(len, ours))} parameters in the model's and {list(map(len, theirs))} in the twin's."
        )


class ScheduleMirror:
    """Steps the twin's schedulers as often as the model's have stepped, whatever interval and frequency they have.

    Args:
        twin: The module whose ``lr_scheduler_step`` makes the steps.
        configs: The twin's schedulers.
        originals: The model's schedulers, in the same order.
        metric: Returns the twin's value of a monitored metric.

    Raises:
        MisconfigurationException: If their number differs, or a scheduler does not say how many steps it has made.
    """

    def __init__(
        self,
        twin: LightningModule,
        configs: Sequence[LRSchedulerConfig],
        originals: Sequence[LRSchedulerConfig],
        metric: Callable[[str], Any],
    ) -> None:
        if len(configs) != len(originals):
            raise MisconfigurationException(
                "The twin's `configure_optimizers` must return as many schedulers as the model's. "
                f"Got {len(configs)} and {len(originals)}."
            )
        self._twin, self._configs, self._metric = twin, configs, metric
        self._originals = [config.scheduler for config in originals]
        self._positions = [_position(original) for original in self._originals]

    def catch_up(self) -> None:
        """Make the steps that the model's schedulers have made since the last call."""
        for index, (config, original) in enumerate(zip(self._configs, self._originals, strict=True)):
            position = _position(original)
            for _ in range(position - self._positions[index]):
                monitored = config.monitor if config.reduce_on_plateau else None
                self._twin.lr_scheduler_step(config.scheduler, None if monitored is None else self._metric(monitored))
            self._positions[index] = position

    def take_over(self) -> None:
        """Continue from the states of the model's schedulers."""
        for config, original in zip(self._configs, self._originals, strict=True):
            config.scheduler.load_state_dict(copy.deepcopy(original.state_dict()))

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the schedulers and the steps of the model's that they have followed."""
        states = [config.scheduler.state_dict() for config in self._configs]
        return {"schedulers": states, "schedule_positions": list(self._positions)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        for config, saved in zip(self._configs, state["schedulers"], strict=True):
            config.scheduler.load_state_dict(saved)
        self._positions = list(state["schedule_positions"])


def _position(scheduler: Any) -> int:
    """Return how many steps a scheduler has made, by ``last_epoch``, the one count that torch makes public."""
    parts = getattr(scheduler, "_schedulers", ())  # a ChainedScheduler has no count of its own
    for counted in (scheduler, *parts):
        if isinstance(position := getattr(counted, "last_epoch", None), (int, float)):
            return int(position)
    raise MisconfigurationException(
        "FeedForwardShadowCallback keeps the twin's learning-rate schedule in step with the model's by the scheduler's "
        f"`last_epoch`, which {type(scheduler).__name__} does not have. Give it this attribute, counting its steps."
    )
