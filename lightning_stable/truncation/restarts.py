"""How far a run is from its restarts: the difference that a training can be made to reduce.

At a restart the state before input ``p`` is replaced by zero, that of all layers together. After ``window`` inputs the
output ``y'`` of the restarted run is compared with ``y``, that of the run as it is; over all restarts

    ``sum ||y - y'||^2 / sum ||y||^2``

is their squared relative difference, the loss of a penalty on truncation. Both runs are differentiable functions of the
weights over these ``window`` inputs; the state in which they part is a constant. In a bidirectional module both
directions restart, and ``y`` is the output in the middle: ``window`` inputs from either start, its own among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from lightning_stable.copying import evaluating
from lightning_stable.precision import full_precision
from lightning_stable.recurrence.forms import original_class
from lightning_stable.recurrence.registry import base_class
from lightning_stable.truncation.exact.bidirectional import reorder, reversal
from lightning_stable.truncation.exact.layout import Layout
from lightning_stable.truncation.exact.rows import head_rows
from lightning_stable.truncation.exact.stack import Stack, States, concatenate
from lightning_stable.truncation.windowed import Windowed, plain_state


@dataclass(frozen=True)
class Restarts:
    """Places in a batch where runs restart, those with most inputs before them first.

    Attributes:
        lanes: The sequence of every restart, shape ``(count,)``, on the CPU.
        positions: The number of inputs before it, at least 1, same shape.
        lengths: The length of its sequence, same shape.
    """

    lanes: Tensor
    positions: Tensor
    lengths: Tensor


def draw_restarts(lengths: Tensor, reach: int, count: int, generator: torch.Generator) -> Restarts | None:
    """Draw restarts with at least one input before them and ``reach`` inputs behind, all such places alike.

    Args:
        lengths: Length of every sequence, shape ``(batch,)``, on the CPU.
        reach: Number of inputs that a restart needs.
        count: Number of restarts.
        generator: Generator on the CPU.

    Returns:
        None if no sequence is longer than ``reach``.
    """
    room = (lengths - reach).clamp(min=0)
    ends = room.cumsum(0)
    if not len(ends) or not int(ends[-1]):
        return None
    places = torch.randint(int(ends[-1]), (count,), generator=generator)
    lanes = torch.searchsorted(ends, places, right=True)
    positions, order = (places - (ends - room)[lanes] + 1).sort(descending=True)
    return Restarts(lanes[order], positions, lengths[lanes[order]])


def restart_difference(
    stacks: tuple[Stack, ...], inputs: Any, state: Any, window: int, count: int, generator: torch.Generator
) -> Tensor | None:
    """Return the squared relative difference of a module's outputs and those of restarts at random places.

    Nothing waits for the device, no global generator is used, no dropout is drawn and no hook of a module that takes
    sequences is called. It is computed in the dtype of the weights.

    Args:
        stacks: Those of a recurrent module, windowed or not; its own recurrence is meant in either case.
        inputs: The inputs as the module takes them: batched or not, or a PackedSequence; for a cell, shape
            ``(time, batch, features)``. They are constants.
        state: The state before the first input as the module takes it, or None; a constant.
        window: Number of inputs after which outputs are compared, at least 1.
        count: Number of restarts.
        generator: Draws the restarts, on the CPU.

    Returns:
        A number with the history of the weights; None if no sequence is long enough.
    """
    lowest = stacks[0].layers[0]
    recurrent, sequences = lowest.module, lowest.takes_sequences
    weight = next(iter(lowest.parameters().values()))
    values = inputs.detach().to(weight.dtype) if isinstance(inputs, Tensor) else _cast(inputs, weight.dtype)
    layout = Layout.of(recurrent, values)
    reach = window if len(stacks) == 1 else 2 * window - 1
    restarts = draw_restarts(_lengths(layout), reach, count, generator)
    if restarts is None:
        return None
    parts = plain_state(state)
    if parts is not None:
        parts = parts if isinstance(parts, tuple) else (parts,)
        parts = tuple(part.detach().to(weight.dtype) for part in parts)
        parts = parts if sequences else tuple(part[None] if part.dim() == 2 else part[None, None] for part in parts)
        layout = layout if sequences else Layout(layout.inputs, None, True, False, None)
    starts = layout.starts(stacks, parts)

    device = layout.inputs.device
    lanes, positions = (index.to(device, non_blocking=True) for index in (restarts.lanes, restarts.positions))
    steps = torch.arange(reach, device=device)[:, None]
    seen = layout.inputs[positions + steps, lanes]
    starts = tuple(_each(direction, lambda part: part[:, lanes]) for direction in starts)
    before = layout.inputs[: int(restarts.positions[0]) if len(stacks) == 1 else None, lanes]
    with full_precision(device), _undisturbed(recurrent):
        with torch.no_grad():
            parted: tuple[States, ...]
            if len(stacks) == 2:
                parted = _two_ways(stacks, before, restarts, starts, reach)
            elif sequences:
                parted = (_run_to(recurrent, stacks[0], before, restarts.positions, starts[0]),)
            else:
                parted = (_after(head_rows(stacks[0], before, starts[0]), starts[0], positions),)
        zeros = tuple(_each(direction, torch.zeros_like) for direction in parted)
        both = tuple(_side_by_side(first, second) for first, second in zip(parted, zeros, strict=True))
        twice = torch.cat((seen, seen), 1)
        if sequences:
            output = _run(recurrent, twice, _as_taken(stacks, both))[0][window - 1]
        else:
            output = stacks[0].output(head_rows(stacks[0], twice, both[0]))[-1]
        whole, restarted = output.float().chunk(2) if output.dtype.itemsize < 4 else output.chunk(2)
        size = whole.square().sum()
        return (whole - restarted).square().sum() / size.clamp(min=torch.finfo(size.dtype).tiny)


def _cast(inputs: Any, dtype: torch.dtype) -> Any:
    return inputs._replace(data=inputs.data.detach().to(dtype)) if isinstance(inputs, PackedSequence) else inputs


def _lengths(layout: Layout) -> Tensor:
    """The length of every sequence, in the order of the layout; the host knows it."""
    time, batch = layout.inputs.shape[:2]
    if layout.packed is None:
        return torch.full((batch,), time)
    return (layout.packed.batch_sizes[:, None] > torch.arange(batch)).sum(0)


@contextmanager
def _undisturbed(recurrent: nn.Module) -> Iterator[None]:
    """Run the module inside the block as it is stored, without dropout."""
    stored = recurrent.as_stored() if isinstance(recurrent, Windowed) else nullcontext()
    if not isinstance(recurrent, nn.RNNBase):
        with stored, evaluating(recurrent):
            yield
        return
    # cuDNN differentiates layers in training mode only.
    training, dropout = recurrent.training, recurrent.dropout
    recurrent.training, recurrent.dropout = True, 0.0
    try:
        with stored:
            yield
    finally:
        recurrent.training, recurrent.dropout = training, dropout


def _run(recurrent: nn.Module, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Outputs of the module's recurrence, ``(time, batch, features)``, and its last state."""
    time, batch = inputs.shape[:2]
    packed = PackedSequence(inputs.flatten(0, 1), torch.full((time,), batch))
    output, state = base_class(original_class(recurrent)).forward(recurrent, packed, state)
    return output.data.unflatten(0, (time, batch)), state


def _run_to(recurrent: nn.Module, stack: Stack, inputs: Tensor, positions: Tensor, start: States) -> States:
    """The states of every sequence after its number of inputs, most inputs first; one row."""
    packed = pack_padded_sequence(inputs, positions)
    _, last = base_class(original_class(recurrent)).forward(recurrent, packed, _as_taken((stack,), (start,)))
    parts = last if isinstance(last, tuple) else (last,)
    (states,) = Layout(inputs, None, True, False, None).starts((stack,), parts)
    return states


def _two_ways(
    stacks: Sequence[Stack], inputs: Tensor, restarts: Restarts, starts: Sequence[States], reach: int
) -> tuple[States, States]:
    """The states of both directions before their windows, one row: an upper layer sees both of those below."""
    device = inputs.device
    index = restarts.positions.to(device, non_blocking=True)
    lengths = restarts.lengths.to(device, non_blocking=True)
    turned = reversal(inputs, lengths)
    parted: tuple[list[Any], list[Any]] = ([], [])
    for layer in range(len(stacks[0].layers)):
        outputs = []
        for direction, stack in enumerate(stacks):
            single, start = Stack((stack.layers[layer],)), (starts[direction][layer],)
            rows = head_rows(single, reorder(inputs, turned) if direction else inputs, start)
            parted[direction].extend(_after(rows, start, lengths - index - reach if direction else index))
            output = single.output(rows)
            outputs.append(reorder(output, turned) if direction else output)
        inputs = torch.cat(outputs, -1)
    return tuple(parted[0]), tuple(parted[1])


def _after(rows: States, start: States, counts: Tensor) -> States:
    """The states of every sequence after its number of inputs, one row."""
    lanes = torch.arange(len(counts), device=counts.device)
    return _each(concatenate(start, rows), lambda part: part[counts, lanes][None])


def _each(states: States, function: Any) -> States:
    return tuple(tuple(function(part) for part in state) for state in states)


def _side_by_side(first: States, second: States) -> States:
    return tuple(
        tuple(torch.cat(parts, 1) for parts in zip(*layers, strict=True)) for layers in zip(first, second, strict=True)
    )


def _as_taken(stacks: Sequence[Stack], states: Sequence[States]) -> Any:
    """One row of states in every direction, as a module that takes sequences takes them."""
    layers = [state for layer in zip(*states, strict=True) for state in layer]
    parts = tuple(torch.cat(parts) for parts in zip(*layers, strict=True))[: stacks[0].layers[0].state_parts]
    return parts if len(parts) > 1 else parts[0]
