"""The layouts in which a recurrent module takes inputs, all evaluated in one: time first, batched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lightning_stable.recurrence.base import State
from lightning_stable.truncation.exact.stack import Stack, States

# One state per layer, of shape (batch, size) per part.
Layer = tuple[State, ...]


@dataclass(frozen=True)
class Layout:
    """Layout of one call of a module with the calling convention of ``nn.RNN``.

    Attributes:
        inputs: Shape ``(time, batch, features)``; packed sequences padded and in sorted order.
        lengths: Length of every sequence, shape ``(batch,)``; None if all are equally long.
        batched: Whether the module was given a batch.
        batch_first: Whether batches come with the batch first.
        packed: The inputs, if they are a PackedSequence.
    """

    inputs: Tensor
    lengths: Tensor | None
    batched: bool
    batch_first: bool
    packed: PackedSequence | None

    @classmethod
    def of(cls, module: nn.Module, values: Any, name: str = "input") -> Layout:
        """Read the layout of ``values``, the input of ``module``; the name is that of the argument.

        Raises:
            TypeError: If it is neither a PackedSequence nor a tensor.
            ValueError: If it is a tensor of other than 2 or 3 dimensions.
        """
        if isinstance(values, PackedSequence):
            # Without its indices it stays in sorted order.
            inputs, lengths = pad_packed_sequence(PackedSequence(values.data, values.batch_sizes))
            return cls(inputs, lengths.to(inputs.device, non_blocking=True), True, False, values)
        if not isinstance(values, Tensor) or values.dim() not in (2, 3):
            is_tensor = isinstance(values, Tensor)
            shape = tuple(values.shape) if is_tensor else type(values).__name__
            raise (ValueError if is_tensor else TypeError)(
                f"`{name}` must be a PackedSequence or a tensor with 2 or 3 dimensions. Got {shape}."
            )
        batched, batch_first = values.dim() == 3, bool(getattr(module, "batch_first", False))
        inputs = (values.transpose(0, 1) if batch_first else values) if batched else values.unsqueeze(1)
        return cls(inputs, None, batched, batch_first, None)

    @property
    def time(self) -> int:
        """Length of the longest sequence."""
        return len(self.inputs)

    @property
    def valid(self) -> Tensor:
        """Which positions are no padding, shape ``(time, batch)``."""
        if self.lengths is None:
            return self.inputs.new_ones(self.inputs.shape[:2], dtype=torch.bool)
        return torch.arange(self.time, device=self.inputs.device)[:, None] < self.lengths

    def check(self, module: nn.Module, hx: Any, name: str = "input") -> None:
        """Let torch's own layers refuse wrong shapes in their own words."""
        if not isinstance(module, nn.RNNBase):
            return
        features = self.inputs.shape[-1]
        if features != module.input_size:
            raise ValueError(f"`{name}` must have {module.input_size} features. Got {features}.")
        if hx is not None:
            batch_sizes = None if self.packed is None else self.packed.batch_sizes
            inputs = self.inputs.transpose(0, 1) if module.batch_first and self.packed is None else self.inputs
            data = inputs if self.packed is None else self.packed.data
            module.check_forward_args(data, self.batched_state(hx), batch_sizes)

    def batched_state(self, hx: Any) -> Any:
        """Return a state, as the module takes it, with a batch dimension."""
        if self.batched or hx is None:
            return hx
        return tuple(part.unsqueeze(1) for part in hx) if isinstance(hx, tuple) else hx.unsqueeze(1)

    def padded(self, data: Tensor) -> Tensor:
        """Return the entries of a packed sequence, shape ``(entries, features)``, placed as the inputs are."""
        assert self.packed is not None
        values: Tensor = pad_packed_sequence(PackedSequence(data, self.packed.batch_sizes))[0]
        return values

    def starts(self, stacks: tuple[Stack, ...], hx: Any) -> tuple[States, ...]:
        """Return the states before the first input, one row each, per direction."""
        if hx is None:
            return tuple(stack.zeros(self.inputs[:1]) for stack in stacks)
        hx = self.batched_state(hx)
        parts = hx if isinstance(hx, tuple) else (hx,)
        if self.packed is not None and self.packed.sorted_indices is not None:
            parts = tuple(part.index_select(1, self.packed.sorted_indices) for part in parts)
        count = len(stacks)
        return tuple(
            tuple(
                layer.full_state(tuple(part[count * index + direction].unsqueeze(0) for part in parts), self.inputs[:1])
                for index, layer in enumerate(stack.layers)
            )
            for direction, stack in enumerate(stacks)
        )

    def results(self, output: Tensor, last: Sequence[Layer], state_parts: int | None = None) -> tuple[Any, Any]:
        """Return output and final state as the module returns them.

        Args:
            output: Shape ``(time, batch, features)``.
            last: The last states of each direction.
            state_parts: Number of the parts of a state that the module returns; None for all.
        """
        # Layer by layer, forward before backward.
        layers = [state for layer in zip(*last, strict=True) for state in layer]
        parts = tuple(torch.stack(tensors) for tensors in list(zip(*layers, strict=True))[:state_parts])
        returned: Any = output
        if self.packed is not None:
            assert self.lengths is not None
            data = pack_padded_sequence(output, self.lengths.cpu()).data
            returned = PackedSequence(data, *self.packed[1:])
            if self.packed.unsorted_indices is not None:
                parts = tuple(part.index_select(1, self.packed.unsorted_indices) for part in parts)
        elif not self.batched:
            returned, parts = output.squeeze(1), tuple(part.squeeze(1) for part in parts)
        elif self.batch_first:
            returned = output.transpose(0, 1)
        return returned, parts if len(parts) > 1 else parts[0]

    def last(self, states: States) -> Layer:
        """Return the states at the end of every sequence, by layer."""
        if self.lengths is None:
            return tuple(tuple(part[-1] for part in state) for state in states)
        lanes = torch.arange(len(self.lengths), device=self.lengths.device)
        return tuple(tuple(part[self.lengths - 1, lanes] for part in state) for state in states)

    def first(self, states: States) -> Layer:
        """Return the states at the first position, where the backward direction ends."""
        return tuple(tuple(part[0] for part in state) for state in states)
