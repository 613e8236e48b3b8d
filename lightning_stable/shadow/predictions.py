"""Watch what a model predicts, without asking it twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from lightning_stable.hooks import Hook
from lightning_stable.recurrence import recurrent_modules


class PredictionWatch:
    """Forward hooks on a module and on its recurrent layers, which keep references to outputs while ``watching``.

    Args:
        module: The module whose ``forward`` makes the predictions.
        wrapped: Whether another module calls ``module(...)`` to run the whole step, as Lightning does under
            DistributedDataParallel; then the predictions are what calls inside such a call return.

    Attributes:
        watching: Whether outputs are kept now; only while a step runs whose predictions are compared.
    """

    def __init__(self, module: nn.Module, *, wrapped: bool = False) -> None:
        self.watching = False
        self._depth, self._calling_depth = 0, int(wrapped)
        self._own: list[Tensor] = []
        self._layers: list[Tensor] = []
        layers = recurrent_modules(module).values()
        self._handles: list[RemovableHandle] = [
            module.register_forward_pre_hook(Hook(_untraced(self._enter))),
            module.register_forward_hook(Hook(_untraced(self._leave))),
            *(m.register_forward_hook(Hook(_untraced(self._layer))) for m in layers if m is not module),
        ]

    def begin(self, *, watching: bool) -> None:
        """Begin a new batch: forget the outputs of the last one."""
        self.watching, self._depth, self._own, self._layers = watching, 0, [], []

    def take(self) -> list[Tensor]:
        """Return the outputs of ``forward`` in this batch, or of the recurrent layers if it was never called."""
        own, layers = self._own, self._layers
        self.begin(watching=False)
        return own or layers

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.begin(watching=False)

    def _enter(self, *_: Any) -> None:
        self._depth += 1

    def _leave(self, _: nn.Module, inputs: Any, output: Any) -> None:
        self._depth -= 1
        if self.watching and self._depth == self._calling_depth:
            self._keep(self._own, output)

    def _layer(self, _: nn.Module, inputs: Any, output: Any) -> None:
        if self.watching:
            self._keep(self._layers, output)

    @staticmethod
    def _keep(kept: list[Tensor], output: Any) -> None:
        prediction = first_floating(output)
        if prediction is not None:
            kept.append(prediction.detach())


def first_floating(output: Any) -> Tensor | None:
    """Return the first floating-point tensor in a structure of tuples, lists, mappings and packed sequences."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    if isinstance(output, PackedSequence):
        return output.data
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, (list, tuple)) else ()
    return next((tensor for part in parts if (tensor := first_floating(part)) is not None), None)


def _untraced(function: Any) -> Any:
    return torch.compiler.disable(function)  # type: ignore[no-untyped-call]
