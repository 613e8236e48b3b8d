"""The calls of recurrent modules while a model runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence
from torch.utils.hooks import RemovableHandle

from lightning_stable.hooks import Hook
from lightning_stable.recurrence import Recurrence
from lightning_stable.recurrence.calls import argument_names, input_and_state


@dataclass(frozen=True)
class Run:
    """What one recurrent module was called with, and what it returned.

    Attributes:
        inputs: Without history: what a module that takes sequences was called with; the steps of a cell as one
            sequence, shape ``(time, batch, features)``.
        state: The state before the first input, as the module was given it; None if it was given none.
        returned: What the calls returned, one for a module that takes sequences and one per step for a cell; of calls
            that were recorded without results, None.
    """

    inputs: Any
    state: Any
    returned: tuple[Any, ...]


class RecordedCalls:
    """Records the calls of recurrent modules: the longest call of a module that takes sequences, all steps of a cell.

    Calls with empty batches are left out.

    Args:
        recurrences: A recurrence of each module to record, by the name of the module.
        results: Keep what calls return, with its history, and give each call its state without history: a step's
            output is the next step's state, and through it a gradient would come back from all later losses.
        differentiated: Record only calls that autograd follows: those of a training step, not of an evaluation.

    Attributes:
        batches: Inputs by the name of the module, one entry for each batch that :meth:`end_batch` has closed.
    """

    def __init__(
        self, recurrences: Mapping[str, Recurrence], *, results: bool = False, differentiated: bool = False
    ) -> None:
        self.batches: dict[str, list[Any]] = {}
        self._recurrences, self._results, self._differentiated = recurrences, results, differentiated
        self._calls: dict[str, list[Run]] = {}
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Record from now on."""
        for name, recurrence in self._recurrences.items():
            if self._results:
                self._handles.append(recurrence.module.register_forward_pre_hook(_cut_history, with_kwargs=True))
            hook = Hook(partial(self._keep, name))
            self._handles.append(recurrence.module.register_forward_hook(hook, with_kwargs=True))

    def detach(self) -> None:
        """Stop recording; what was recorded is kept."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Record the calls made inside the block."""
        self.attach()
        try:
            yield
        finally:
            self.detach()

    def take(self) -> dict[str, Run]:
        """Return what was recorded since this was last called, by the name of the module."""
        calls, self._calls = self._calls, {}
        return {name: self._run(name, of_module) for name, of_module in calls.items()}

    def end_batch(self) -> None:
        """Add what was recorded of a batch that is over to ``batches``."""
        for name, run in self.take().items():
            self.batches.setdefault(name, []).append(run.inputs)

    def joined(self) -> dict[str, Any]:
        """Return all sequences of ``batches`` by the name of the module.

        Those of a single batch are as the module was given them; those of several are packed, or one tensor for cells.
        """
        return {
            name: calls[0] if len(calls) == 1 else _joined(self._recurrences[name], calls)
            for name, calls in self.batches.items()
        }

    def _run(self, name: str, calls: list[Run]) -> Run:
        if self._recurrences[name].takes_sequences:
            return max(calls, key=lambda call: int(call.inputs.data.numel()))
        steps = torch.stack([call.inputs for call in calls])
        steps = steps.unsqueeze(1) if steps.dim() == 2 else steps
        return Run(steps, calls[0].state, tuple(returned for call in calls for returned in call.returned))

    def _keep(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], returned: Any) -> None:
        if self._differentiated and not torch.is_grad_enabled():
            return
        inputs, state = input_and_state(module, args, kwargs)
        if isinstance(inputs, Tensor) and inputs.numel() == 0:  # a batch that a mask left empty shows nothing
            return
        call = Run(_detached(inputs), state, (returned if self._results else None,))
        self._calls.setdefault(name, []).append(call)


def _cut_history(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    first, _ = argument_names(module)
    options = {key: value if key == first else _detached(value) for key, value in kwargs.items()}
    return (*args[:1], *map(_detached, args[1:])), options


def _detached(value: Any) -> Any:
    if isinstance(value, PackedSequence):
        return PackedSequence(value.data.detach(), *value[1:])
    if isinstance(value, (tuple, list)):
        return type(value)(map(_detached, value))
    return value.detach() if isinstance(value, Tensor) else value


def _joined(recurrence: Recurrence, calls: list[Any]) -> Any:
    if not recurrence.takes_sequences:
        # The beginning of a run is a run: all are cut to the length of the shortest.
        shortest = min(len(call) for call in calls)
        return torch.cat([call[:shortest] for call in calls], dim=1)
    batch_first = bool(recurrence.module.batch_first)
    return pack_sequence([row for call in calls for row in _rows(call, batch_first)], enforce_sorted=False)


def _rows(call: Tensor | PackedSequence, batch_first: bool) -> list[Tensor]:
    """The sequences of one call, ``(time, features)`` each."""
    if isinstance(call, PackedSequence):
        padded, lengths = pad_packed_sequence(call, batch_first=True)
        return [row[:length] for row, length in zip(padded, lengths.tolist(), strict=True)]
    if call.dim() == 2:
        return [call]
    return list(call if batch_first else call.transpose(0, 1))
