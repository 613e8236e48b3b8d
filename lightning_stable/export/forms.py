"""The programs that are exported, as modules: of a batch of sequences, and of one step of a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_stable.export.windows import Bounding, PlainWindows, Recent, plain_windows
from lightning_stable.recurrence import recurrences_by_module
from lightning_stable.recurrence.enclosed import Premises


class BatchForm(nn.Module):
    """The ``window`` twin of a model as a function of a batch of whole, equally long sequences.

    Args:
        model: Any module whose first argument is a batch of sequences; recurrent layers may be nested in it. Copied,
            in evaluation mode.
        window: Number of inputs a recurrent layer sees.
        premises: What the tube of its only recurrent module starts from, see :mod:`~lightning_stable.export.bounds`;
            None for a program without bounds.
        batch_first: Whether the bounds are ``(batch, time)`` or ``(time, batch)``.

    Raises:
        ValueError: As :func:`~lightning_stable.export.windows.plain_windows`.
    """

    def __init__(
        self, model: nn.Module, window: int, premises: Sequence[Premises] | None = None, *, batch_first: bool = True
    ) -> None:
        super().__init__()
        self.model, self.premises, self.time_dim = plain_windows(model, window), premises, int(batch_first)

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return the model's answer; of several values, such as outputs and a state, the first; and the bounds."""
        with bounding(self.model, self.premises) as bounds:
            output = first_tensor(self.model(input))
        if self.premises is None:
            return output
        bound = only(bounds)
        return output, bound.transpose(0, 1) if self.time_dim else bound


class StreamingForm(nn.Module):
    """The ``window`` twin of a model as a function of the next input and of what the layers remember.

    The model is called with sequences of length 1; only the recurrent layers know the inputs before. It equals
    :class:`BatchForm` where everything else in the model acts on each step by itself.

    Args:
        model: As for :class:`BatchForm`.
        window: As for :class:`BatchForm`.
        batch_first: Whether the model takes ``(batch, time, ...)`` or ``(time, batch, ...)``.
        every_step: Whether the model's answer has the dimension of time too, at the same place.
        premises: As for :class:`BatchForm`.

    Raises:
        ValueError: As for :class:`BatchForm`; or a recurrent layer is bidirectional, which no stream can be.
    """

    def __init__(
        self,
        model: nn.Module,
        window: int,
        premises: Sequence[Premises] | None = None,
        *,
        batch_first: bool = True,
        every_step: bool = True,
    ) -> None:
        super().__init__()
        self.premises = premises
        self.model = plain_windows(model, window)
        self.window, self.every_step, self.time_dim = window, every_step, int(batch_first)
        layers = recurrences_by_module(self.model)
        for name, recurrences in layers.items():
            if any(recurrence.direction == "backward" for recurrence in recurrences):
                raise ValueError(
                    "`streaming` needs recurrent layers that run forward: what is still to come is not known. "
                    f"Got the bidirectional {name or 'module'!r}."
                )
        self.features = [recurrences[0].input_size for recurrences in layers.values()]

    def start(self, batch: int) -> tuple[Tensor, Tensor]:
        """Return ``count`` and ``recent`` before the first input of streams: zeros."""
        weight = next(parameter for parameter in self.parameters() if parameter.is_floating_point())
        count = torch.zeros(batch, dtype=torch.int64, device=weight.device)
        return count, weight.new_zeros(batch, self.window, sum(self.features))

    def forward(self, input: Tensor, count: Tensor, recent: Tensor) -> tuple[Tensor, ...]:
        """Return the answer to the next input, and what to hand in with the one after it.

        Args:
            input: The next input of every stream, shape ``(batch, ...)``.
            count: Inputs of every stream so far, counted up to the window, shape ``(batch,)``. A zero starts a stream,
                whatever ``recent`` holds of it.
            recent: The last ``window`` inputs of the recurrent layers, the newest last, of shape
                ``(batch, window, features)``; features of several layers lie side by side.

        Returns:
            The answer, shape ``(batch, ...)``, the next ``count`` and ``recent``, and with premises the bound, shape
            ``(batch,)``.
        """
        layers = [layer for layer in self.model.modules() if isinstance(layer, PlainWindows)]
        memories = [Recent(count, part.transpose(0, 1)) for part in torch.split(recent, self.features, dim=-1)]
        try:
            for layer, memory in zip(layers, memories, strict=True):
                layer.recent = memory
            with bounding(self.model, self.premises) as bounds:
                output = first_tensor(self.model(input.unsqueeze(self.time_dim)))
        finally:
            for layer in layers:
                layer.recent = None
        after = torch.cat([memory.inputs.transpose(0, 1) for memory in memories], dim=-1)
        output = output.squeeze(self.time_dim) if self.every_step else output
        bound = () if self.premises is None else (only(bounds).squeeze(0),)
        return output, (count + 1).clamp(max=self.window), after, *bound


@contextmanager
def bounding(model: nn.Module, premises: Sequence[Premises] | None) -> Iterator[list[Tensor]]:
    """Let the recurrent module of a model carry a tube inside the block; the list gets the bounds of its calls."""
    held = Bounding(premises or ())
    layers = [layer for layer in model.modules() if isinstance(layer, PlainWindows)] if premises else []
    try:
        for layer in layers:
            layer.bounding = held
        yield held.bounds
    finally:
        for layer in layers:
            layer.bounding = None


def only(bounds: list[Tensor]) -> Tensor:
    """Return the bounds of the only call.

    Raises:
        ValueError: If there were several, or none.
    """
    if len(bounds) != 1:
        raise ValueError(
            "`bound` needs a model that calls its recurrent module once, so that every output has one bound. "
            f"Got {len(bounds)} calls."
        )
    return bounds[0]


def first_tensor(answer: Any) -> Tensor:
    """Return the answer of a model, or the first of several.

    Raises:
        ValueError: If it is no tensor.
    """
    first = answer[0] if isinstance(answer, (tuple, list)) and answer else answer
    if not isinstance(first, Tensor):
        raise ValueError(f"A model that is exported must return a tensor, or one first. Got {type(answer).__name__}.")
    return first
