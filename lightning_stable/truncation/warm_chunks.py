"""A cheap relative of the exact windows: chunks with a warm-up, whose context is *at least* the window."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from lightning_stable import checks
from lightning_stable.copying import copied
from lightning_stable.recurrence import recurrences_by_module
from lightning_stable.truncation.exact.layout import Layout
from lightning_stable.truncation.windowed import Windowed, lay_over

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class ChunkedLayer(Windowed):
    """Form of unidirectional layers that evaluates chunks of ``window`` outputs side by side.

    Every chunk runs from zero over ``window - 1`` inputs of warm-up and its own inputs; an output sees between
    ``window`` and ``2 window - 1`` inputs. The first chunk, up to three windows long, starts from the given state.
    """

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:
        """Run as the module's own ``forward`` does, in at most as many steps as three windows have inputs."""
        if self._stored or Layout.of(self, input).packed is not None:
            stored: tuple[Any, Any] = super().forward(input, hx)
            return stored
        layout, window = Layout.of(self, input), self.window
        layout.check(self, hx)
        time, batch, features = layout.inputs.shape
        count = max(0, (time - window + 1) // window - 1)
        first = time - count * window
        head, state = self._run(layout.inputs[:first], layout.batched_state(hx))
        if count:
            warm = layout.inputs[first - window + 1 :].unfold(0, 2 * window - 1, window)
            chunks = warm.permute(3, 0, 1, 2).reshape(2 * window - 1, count * batch, features)
            outputs, ends = self._run(chunks, None)
            outputs = outputs[window - 1 :].unflatten(1, (count, batch)).transpose(0, 1).flatten(0, 1)
            head = torch.cat((head, outputs))
            state = _each(ends, lambda part: part[:, -batch:].contiguous())
        if not layout.batched:
            return head.squeeze(1), _each(state, lambda part: part.squeeze(1))
        return head.transpose(0, 1) if layout.batch_first else head, state

    def _run(self, inputs: Any, hx: Any) -> tuple[Any, Any]:
        batch_first = bool(getattr(self, "batch_first", False))
        with self.as_stored():
            outputs, state = super().forward(inputs.transpose(0, 1) if batch_first else inputs, hx)
        return outputs.transpose(0, 1) if batch_first else outputs, state


def _each(state: Any, change: Any) -> Any:
    return tuple(change(part) for part in state) if isinstance(state, tuple) else change(state)


def truncate_at_least(module: ModuleT, window: int) -> ModuleT:
    """Return a twin whose recurrent layers see *at least* the last ``window`` inputs: fast, for evaluation.

    It runs torch's own layers on chunks side by side, many times cheaper than :func:`truncate`. It is no exact
    truncation: the context varies with the position between ``window`` and ``2 window - 1`` inputs (``3 window`` at the
    beginning, and a state handed on from chunk to chunk of a stream remembers everything). Where the recurrence
    contracts, the bound of the window holds for it. Parameters are copies; the keys of the ``state_dict`` are the same.

    Args:
        module: Any module with recurrences; it is not changed.
        window: Number of inputs that an output depends on at least.

    Raises:
        TypeError: If ``window`` is no integer.
        ValueError: If ``window`` is not positive, there is no recurrence, or a recurrent module is
            bidirectional or a cell.
    """
    window = checks.integer("window", window)
    for name, (recurrence, *_) in recurrences_by_module(module).items():
        if not recurrence.takes_sequences or bool(getattr(recurrence.module, "bidirectional", False)):
            raise ValueError(
                "`truncate_at_least` works on unidirectional layers that take a whole sequence; use `truncate`. "
                f"Got {name or 'the module'!r}, a {type(recurrence.module).__name__}."
            )
    twin = copied(module)
    for recurrence, *_ in recurrences_by_module(twin).values():
        lay_over(recurrence.module, ChunkedLayer).window = window
    return twin
