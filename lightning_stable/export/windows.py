"""The windowed form of a recurrent layer that can be exported.

The form that a twin has in training skips what a row does not need, which depends on the length of the sequence. Here
all rows make the same steps, see :mod:`lightning_stable.truncation.exact.waiting`, so that one graph serves batches of
every size and sequences of every length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_stable.recurrence import recurrences_by_module
from lightning_stable.recurrence.around import euclidean
from lightning_stable.recurrence.enclosed import Enclosed, Premises, drive
from lightning_stable.recurrence.forms import original_class
from lightning_stable.truncation.exact.layout import Layout
from lightning_stable.truncation.exact.stack import Stack, stacks_of
from lightning_stable.truncation.exact.waiting import run_places, waiting_rows
from lightning_stable.truncation.truncate import truncate
from lightning_stable.truncation.windowed import Windowed, lay_over

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass
class Recent:
    """What a layer remembers of a stream; the layer replaces ``inputs`` by those after its step.

    Attributes:
        count: Inputs of each sequence so far, counted up to the window, shape ``(batch,)``.
        inputs: The last ``window`` inputs, the newest last, shape ``(window, batch, features)``.
        used: Whether the layer has made its step.
    """

    count: Tensor
    inputs: Tensor
    used: bool = False

    def next(self, inputs: Tensor, directions: int) -> Tensor:
        """Add the next input, shape ``(1, batch, features)``, and return the last ``window`` inputs."""
        if directions > 1 or len(inputs) != 1 or self.used:
            got = "two directions" if directions > 1 else "a second call" if self.used else f"{len(inputs)} inputs"
            raise ValueError(f"In a stream a recurrent layer runs forward and takes one input per step. Got {got}.")
        self.inputs, self.used = torch.cat((self.inputs[1:], inputs)), True
        return self.inputs


@dataclass
class Bounding:
    """What a layer starts its tube from; it adds the bounds of every call, shape ``(rows, batch)``."""

    premises: Sequence[Premises]
    bounds: list[Tensor] = field(default_factory=list)


class PlainWindows(Windowed):
    """Form of layers that take a whole sequence; with ``recent`` set, of the next step of a stream.

    With ``bounding`` set, the run is the middle of a tube, see :mod:`lightning_stable.recurrence.enclosed`.
    """

    recent: Recent | None = None
    bounding: Bounding | None = None

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:
        """Run as the module's own ``forward`` does; its state is that of the last window and carries no others.

        Raises:
            ValueError: If the input is packed, or in a stream not one step in one direction.
        """
        layout, stacks = Layout.of(self, input), stacks_of(self)
        if layout.packed is not None:
            raise ValueError("A recurrent layer that is exported must be given a tensor. Got a PackedSequence.")
        starts, inputs, tubes = layout.starts(stacks, hx), layout.inputs, []
        if self.bounding is not None:
            tubes = _enclosed(stacks, self.bounding.premises)
            starts = tuple(
                tuple(layer.enclose(state) for layer, state in zip(tube, start, strict=True))
                for tube, start in zip(tubes, starts, strict=True)
            )
        evaluated = [Stack(tuple(tube)) for tube in tubes] or stacks
        first = [tube[0] for tube in tubes]
        if self.recent is None:
            states = waiting_rows(evaluated, drive(first, inputs) if first else inputs, self.window, starts)
        else:
            places = self.recent.next(inputs, len(stacks))
            age = self.recent.count[None]  # how many inputs came before the newest
            begun = [age >= self.window - 1 - step for step in range(self.window)]
            places = drive(first, places) if first else places
            steps = [places[step : step + 1] for step in range(self.window)]
            states = run_places(evaluated, steps, begun, self.window, starts, (age < self.window,))
        if self.bounding is not None:
            spreads = [tube[-1].spread(rows[-1]) for tube, rows in zip(tubes, states, strict=True)]
            self.bounding.bounds.append(euclidean(torch.stack(spreads, dim=-1)))
            states = [
                tuple(layer.value(state) for layer, state in zip(tube, rows, strict=True))
                for tube, rows in zip(tubes, states, strict=True)
            ]
        output = torch.cat([stack.output(rows) for stack, rows in zip(stacks, states, strict=True)], dim=-1)
        last = [layout.last(states[0]), *(layout.first(rows) for rows in states[1:])]
        return layout.results(output, last, stacks[0].layers[0].state_parts)


def _enclosed(stacks: Sequence[Stack], premises: Sequence[Premises]) -> list[list[Enclosed]]:
    """Return the layers of every direction on enclosures; the premises are by layer, forward before backward."""
    return [
        [
            Enclosed(layer, layer.parameters(), premises[depth * len(stacks) + direction], len(stacks))
            for depth, layer in enumerate(stack.layers)
        ]
        for direction, stack in enumerate(stacks)
    ]


def plain_windows(model: ModuleT, window: int) -> ModuleT:
    """Return a twin as :func:`~lightning_stable.truncate` makes it, in evaluation mode and in a form for export.

    Raises:
        TypeError: If ``window`` is no integer.
        ValueError: If ``window`` is not positive, there is no recurrence, or one is a cell: the loop around it is the
            user's own, and cannot be followed for every length.
    """
    for name, (recurrence, *_) in recurrences_by_module(model).items():
        if not recurrence.takes_sequences:
            raise ValueError(
                "A recurrence that is exported must be a layer that takes a whole sequence. "
                f"Got {name or 'the module'!r}, a {original_class(recurrence.module).__name__}."
            )
    twin = truncate(model, window).eval()
    for recurrence, *_ in recurrences_by_module(twin).values():
        lay_over(recurrence.module, PlainWindows)
    return twin
