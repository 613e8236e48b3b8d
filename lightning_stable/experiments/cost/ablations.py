"""One part of the projection at a time: what each costs by itself."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_stable.recurrence import GatedRecurrence, find_recurrences
from lightning_stable.recurrence.base import reach
from lightning_stable.recurrence.intervals import Interval
from lightning_stable.stability import InputSet
from lightning_stable.stability.inputs.resolve import resolve_sources, walk_layers
from lightning_stable.stability.projection.gate_bound import GateRows, bound_gate, leave_worst_input


class BoundLeakAlone(Callback):
    """Lowers the leak gate to a bound after every step, as the projection does, and leaves all else as it is.

    Args:
        bound: The largest value of the gate.
        input_bound: The set of the inputs; None where it is found in the model.
    """

    def __init__(self, bound: float, input_bound: InputSet | None) -> None:
        self.bound = bound
        self.input_bound = input_bound

    @override
    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        recurrences = find_recurrences(pl_module)
        sources = resolve_sources(pl_module, recurrences, self.input_bound, True)
        for layer in walk_layers(recurrences, sources, training=True):
            recurrence, inputs = layer.recurrence, layer.inputs
            assert isinstance(recurrence, GatedRecurrence)
            assert inputs is not None
            gates = len(recurrence.gates)
            leak = {
                role: value.chunk(gates)[recurrence.gates.index(recurrence.leak)]
                for role, value in recurrence.parameters().items()
            }
            rows = leave_worst_input(GateRows(**leak), inputs.maximizer(leak["weight_ih"]), None, 1.0, self.bound)
            high = inputs.highest(rows.weight_ih)
            rows = bound_gate(rows, Interval(high, high), reach(rows.weight_hh, 1.0), self.bound)
            for role, value in rows._asdict().items():
                leak[role].copy_(value)


class HoldAtZero(Callback):
    """Holds the recurrent weights of some gates at zero.

    Args:
        gates: The gates, by their names; empty for all.
    """

    def __init__(self, gates: str = "") -> None:
        self.gates = gates

    @torch.no_grad()
    def _hold(self, module: LightningModule) -> None:
        for recurrence in find_recurrences(module):
            assert isinstance(recurrence, GatedRecurrence)
            blocks = recurrence.parameters()["weight_hh"].chunk(len(recurrence.gates))
            for gate, block in zip(recurrence.gates, blocks, strict=True):
                if not self.gates or gate in self.gates:
                    block.zero_()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hold(pl_module)

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._hold(pl_module)
