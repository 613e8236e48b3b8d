"""What is trained: the models beside each other, and those that show the reasons of a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import Callback, LightningModule

from lightning_stable.callbacks import StabilityProjectionCallback
from lightning_stable.experiments.cost.ablations import BoundLeakAlone, HoldAtZero
from lightning_stable.experiments.small_tasks import SmallTask
from lightning_stable.stability import spread_time_scales_

_TWO, _THREE = ({"num_layers": layers, "residual": True, "normalize": True} for layers in (2, 3))


@dataclass(frozen=True)
class Variant:
    """One way to train a model.

    Attributes:
        name: Its name in the table.
        cell: The cell.
        projection: The arguments of the projection, over the rate; None trains without one.
        model: More arguments of the model.
        rate_factor: The factor of the learning rate.
        constrain: Returns the callback that takes the place of the projection, for a task and a rate.
        start: Changes the weights before the training.
    """

    name: str
    cell: str
    projection: Mapping[str, Any] | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    rate_factor: float = 1.0
    constrain: Callable[[SmallTask, float], Callback] | None = None
    start: Callable[[LightningModule], object] | None = None

    def callbacks(self, task: SmallTask, rate: float) -> list[Callback]:
        """Return what constrains the training."""
        if self.constrain is not None:
            return [self.constrain(task, rate)]
        if self.projection is None:
            return []
        return [StabilityProjectionCallback(**{"rate": rate, "input_bound": task.input_bound, **self.projection})]


def _pair(
    name: str,
    cell: str,
    model: Mapping[str, Any] | None = None,
    start: Callable[[LightningModule], object] | None = None,
    **projection: Any,
) -> list[Variant]:
    model = model or {}
    return [
        Variant(name, cell, None, model, start=start),
        Variant(f"{name}, stable", cell, projection, model, start=start),
    ]


MODELS = [
    *_pair("RNN", "rnn", norm="full"),
    *_pair("LSTM", "lstm"),
    *_pair("GRU", "gru"),
    *_pair("LSTM from spread time scales", "lstm", start=spread_time_scales_),
    *_pair("GRU from spread time scales", "gru", start=spread_time_scales_),
    *_pair("2 LSTM layers", "lstm", _TWO),
    *_pair("2 LSTM layers from spread time scales", "lstm", _TWO, spread_time_scales_),
    *_pair("3 LSTM layers", "lstm", _THREE),
    *_pair("3 RNN layers", "rnn", _THREE, norm="full"),
    *_pair("3 leaky RNN layers", "leaky", _THREE),
    *_pair("3 MinGRU layers", "mingru", _THREE),
]


def _reasons(name: str, cell: str) -> list[Variant]:
    return [
        *_pair(name, cell),
        Variant(
            f"{name}, leak bound alone", cell, constrain=lambda task, rate: BoundLeakAlone(rate**2, task.input_bound)
        ),
        Variant(f"{name}, no recurrent weights", cell, constrain=lambda task, rate: HoldAtZero()),
        Variant(f"{name}, stable, rate 0.999", cell, {"rate": 0.999}),
        Variant(f"{name}, stable, tight", cell, {"norm": "tight"}),
        Variant(f"{name}, stable, every 10 steps", cell, {"every_n_steps": 10}),
        Variant(f"{name}, stable, spread time scales", cell, {}, start=spread_time_scales_),
        Variant(f"{name}, stable, half the learning rate", cell, {}, rate_factor=0.5),
        Variant(f"{name}, stable, twice the learning rate", cell, {}, rate_factor=2.0),
    ]


STUDIES: dict[str, list[Variant]] = {
    "models": MODELS,
    "reasons": [
        *_reasons("LSTM", "lstm"),
        Variant("LSTM, stable, rate 0.999, leak bound 0.95", "lstm", {"rate": 0.999, "gate_bound": 0.95}),
        *_reasons("GRU", "gru"),
        Variant("RNN, stable, l2", "rnn", {"norm": "l2"}),
    ],
}
