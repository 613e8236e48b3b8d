"""The windowed form of a recurrent module: the same parameters, evaluated on the last ``window`` inputs only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_stable.recurrence.foreign import NOT_CALLED
from lightning_stable.recurrence.forms import Form, form_class, original_class
from lightning_stable.recurrence.registry import base_class, wrapper_obstacle
from lightning_stable.truncation.carried_state import CarriedState, Memory, carry, memory_of
from lightning_stable.truncation.exact.bidirectional import bidirectional_rows
from lightning_stable.truncation.exact.evaluate import advance, evaluate_rows
from lightning_stable.truncation.exact.layout import Layer, Layout
from lightning_stable.truncation.exact.rows import advance_rows, head_rows
from lightning_stable.truncation.exact.stack import Stack, States, concatenate, stacks_of, take

WindowedT = TypeVar("WindowedT", bound="Windowed")


class Windowed(Form):
    """What a windowed module is besides the module it was: :func:`windowed_class` makes a subclass of both.

    The module keeps its class as a base, its attributes, and its parameters with their names; only what is evaluated
    changes. A ``forward`` that wraps ``super().forward`` stays, and wraps the windows. A window at least as long as
    the sequence gives the module's own ``forward``.

    Attributes:
        window: Number of inputs that an output depends on.
        recompute: Whether the backward pass computes the windows once more; None decides by their size.
    """

    window: int
    recompute: bool | None = None
    _stored = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # A compiler would see the states without what they carry; around the layer, modules may be compiled.
        if "forward" in vars(cls):
            cls.forward = torch.compiler.disable(cls.forward)  # type: ignore[no-untyped-call]

    @contextmanager
    def as_stored(self) -> Iterator[None]:
        """Make ``forward`` the module's own inside the block: adapters of cells call their module to make a step."""
        before, self._stored = self._stored, True
        try:
            yield
        finally:
            self._stored = before

    def settled(self, memory: Memory) -> Memory:
        """Return the memory with its unfinished windows computed."""
        if memory.rows is not None:
            return memory
        (stack,) = stacks_of(self)
        with self.as_stored():
            return replace(memory, rows=_begun(stack, memory, self.window))

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made at run time and cannot be found by its name.
        reduced: Any = super().__reduce_ex__(protocol)
        return _new, type(self).made_of, *reduced[2:]

    def extra_repr(self) -> str:
        """Return what the module says, and the window."""
        return ", ".join(part for part in (super().extra_repr(), f"window={self.window}") if part)


class WindowedLayer(Windowed):
    """Form of modules that take a whole sequence and are called as ``nn.RNN`` is.

    The state it returns is the window's, and carries the unfinished windows at the end of the sequence: handed back
    with the next chunk, windows go on across the border.
    """

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:
        """Run as the module's own ``forward`` does; outputs and states depend on the last ``window`` inputs only.

        Args:
            input: The inputs as the module takes them: batched or not, ``batch_first`` or not, or a PackedSequence.
            hx: The state before the first input, zeros by default; windows that reach over the beginning start from
                it. A state this layer has returned continues its windows instead.

        Raises:
            ValueError: If ``hx`` was returned by this layer and cannot be continued: it was changed in a way that the
                windows cannot follow, or the module is bidirectional (whose windows need inputs of the next chunk).
        """
        if self._stored:
            stored: tuple[Any, Any] = super().forward(input, hx)
            return stored
        memory, hx = memory_of(_parts(hx), self), plain_state(hx)
        layout = Layout.of(self, input)
        seen = layout.time + (0 if memory is None else memory.seen)
        with self.as_stored():
            if seen <= self.window:
                masks = self._masks_of_native(layout)
                output, state = super().forward(input, hx)
                rows = None
                if memory is not None and memory.recent is None and layout.lengths is None:
                    assert memory.rows is not None  # edited windows do not follow from inputs
                    rows = _saving_nothing(
                        _continued, stacks_of(self)[0], layout.inputs, memory.rows, self.window, masks
                    )
                return output, self._with_memory(state, layout, memory, seen, rows, masks)
            layout.check(self, hx)
            stacks = stacks_of(self)
            masks = self._masks(stacks, layout)
            output, last, rows = self._evaluate(stacks, layout, memory, hx, masks)
            output, state = layout.results(output, last, stacks[0].layers[0].state_parts)
            return output, self._with_memory(state, layout, memory, seen, rows, masks)

    def _evaluate(
        self, stacks: tuple[Stack, ...], layout: Layout, memory: Memory | None, hx: Any, masks: list[Tensor]
    ) -> tuple[Tensor, list[Layer], States | None]:
        """Output, last state per direction, and the unfinished windows if windows were continued."""
        inputs, window, recompute = layout.inputs, self.window, self.recompute
        starts = layout.starts(stacks, hx)
        if len(stacks) == 2:
            both = bidirectional_rows(
                (stacks[0], stacks[1]),
                inputs,
                window,
                (starts[0], starts[1]),
                layout.lengths,
                masks,
                recompute=recompute,
            )
            output = torch.cat([stack.output(states) for stack, states in zip(stacks, both, strict=True)], dim=-1)
            return output, [layout.last(both[0]), layout.first(both[1])], None
        (stack,), (start,) = stacks, starts
        if memory is None:
            tail = evaluate_rows(stack, inputs, window, first=window, masks=masks, recompute=recompute)
            if layout.lengths is None and not masks and isinstance(self, nn.RNNBase):
                # The first rows are a plain run; torch's own is much faster than one in steps.
                begun = inputs[:window].transpose(0, 1) if self.batch_first else inputs[:window]
                head, _ = super().forward(begun, layout.batched_state(hx))
                head = head.transpose(0, 1) if self.batch_first else head
                return torch.cat((head, stack.output(tail))), [layout.last(tail)], None
            visited = concatenate(head_rows(stack, inputs[:window], start, [mask[:window] for mask in masks]), tail)
            return stack.output(visited), [layout.last(visited)], None
        unfinished = _unfinished(stack, _in_order(memory, layout), start, window)
        begun_before = _starts_of_rows(stack, inputs, unfinished, window)
        visited = evaluate_rows(stack, inputs, window, starts=begun_before, masks=masks, recompute=recompute)
        rows = _saving_nothing(_continued, stack, inputs, unfinished, window, masks, layout.lengths)
        return stack.output(visited), [layout.last(visited)], rows

    def _masks(self, stacks: tuple[Stack, ...], layout: Layout) -> list[Tensor]:
        """Draw the dropout masks between the layers as torch's layers do: one per position, not per window."""
        probability, depth = float(getattr(self, "dropout", 0.0)), len(stacks[0].layers)
        if not self.training or probability == 0 or depth == 1:
            return []
        positions = layout.inputs.shape[:2] if layout.packed is None else layout.packed.data.shape[:1]
        sizes = [sum(stack.output_size(index) for stack in stacks) for index in range(depth - 1)]
        masks = [F.dropout(layout.inputs.new_ones(*positions, size), probability) for size in sizes]
        return masks if layout.packed is None else [layout.padded(mask) for mask in masks]

    def _with_memory(
        self,
        state: Any,
        layout: Layout,
        memory: Memory | None,
        seen: int,
        rows: States | None,
        masks: list[Tensor],
    ) -> Any:
        batch = 1 if layout.batched else None
        if bool(getattr(self, "bidirectional", False)):
            after = Memory(self, lost="a state of a bidirectional layer")
        elif rows is not None:
            young = seen <= self.window and memory is not None and memory.reaching is not None
            reaching = _reaching(memory, layout.inputs)[-min(seen, self.window - 1) :] if young else None
            after = Memory(self, seen, rows=rows, reaching=reaching, batch=batch)
        elif memory is not None and memory.recent is None and layout.lengths is not None:
            after = Memory(self, lost="a state of a PackedSequence that went on from an edited state")
        else:
            memory = None if memory is None else _in_order(memory, layout)
            after = _young(self, layout.inputs, memory, seen, masks, batch, layout.lengths)
            # The windows that a next chunk will continue, with the weights of now: a step may change them before.
            if self.training and seen + layout.time > self.window:
                after = replace(after, rows=_saving_nothing(_begun, stacks_of(self)[0], after, self.window))
        return _carried(state, _back_in_order(after, layout))

    def _masks_of_native(self, layout: Layout) -> list[Tensor]:
        """The dropout masks that the module's own ``forward`` is about to draw."""
        if bool(getattr(self, "bidirectional", False)):
            return []  # nothing of it is carried on
        device = layout.inputs.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            return self._masks(stacks_of(self), layout)


class WindowedCell(Windowed):
    """Form of cells that make one step per call, as ``nn.RNNCell`` and ``nn.LSTMCell`` do.

    Every state it returns carries the unfinished windows; all of them make the next step together.
    """

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """Make one step; the state depends on the last ``window`` inputs since the state the sequence started from.

        Args:
            input: Shape ``(batch, features)`` or ``(features,)``.
            hx: The state before the step, zeros by default. A state this cell has returned continues its windows.

        Raises:
            ValueError: If ``hx`` was returned by this cell and was changed in a way that the windows cannot follow, or
                shapes do not fit.
        """
        if self._stored:
            return super().forward(input, hx)
        memory, hx = memory_of(_parts(hx), self), plain_state(hx)
        if memory is not None:
            _check_step(self, input, _parts(hx)[0])
        inputs = (input if input.dim() == 2 else input.unsqueeze(0)).unsqueeze(0)
        batch = 0 if input.dim() == 2 else None
        seen = 1 + (0 if memory is None else memory.seen)
        with self.as_stored():
            if seen <= self.window:
                state = super().forward(input) if hx is None else super().forward(input, hx)
                after = _young(self, inputs, memory, seen, [], batch)
                if memory is not None and memory.recent is None:
                    assert memory.rows is not None
                    rows = advance_rows(stacks_of(self)[0], inputs, memory.rows)
                    after = Memory(self, seen, rows=take(rows, slice(0, self.window - 1)), batch=batch)
            else:
                assert memory is not None  # a window is longer than nothing
                (stack,) = stacks_of(self)
                start = (tuple((part if input.dim() == 2 else part.unsqueeze(0)).unsqueeze(0) for part in _parts(hx)),)
                rows = advance_rows(stack, inputs, _unfinished(stack, memory, start, self.window))
                after = Memory(self, seen, rows=take(rows, slice(0, self.window - 1)), batch=batch)
                last = tuple(part[-1] if input.dim() == 2 else part[-1].squeeze(0) for part in rows[0])
                state = last if isinstance(hx, tuple) else last[0]
        return _carried(state, after)


def _check_step(cell: nn.Module, inputs: Tensor, state: Tensor) -> None:
    """Refuse inputs that do not fit a state that is carried on; the cell's own forward checks other states."""
    features = getattr(cell, "input_size", inputs.shape[-1])
    if inputs.shape[-1] != features or inputs.shape[:-1] != state.shape[:-1]:
        expected = (*state.shape[:-1], features)
        raise ValueError(f"`input` must have shape {expected}, as the state it continues. Got {tuple(inputs.shape)}.")


def _carried(state: Any, memory: Memory) -> Any:
    if torch.compiler.is_compiling():  # exported; compiled code does not come here
        return state
    if isinstance(state, tuple):
        return tuple(carry(value, memory, part) for part, value in enumerate(state))
    return carry(state, memory)


def _young(
    layer: Windowed,
    inputs: Tensor,
    memory: Memory | None,
    seen: int,
    masks: list[Tensor],
    batch: int | None,
    lengths: Tensor | None = None,
) -> Memory:
    """The memory after inputs that needed no unfinished window yet: they follow from the inputs themselves."""
    ragged = lengths is not None or (memory is not None and memory.reaching is not None)
    reaching = _reaching(memory, inputs) if ragged else None
    earlier = 0
    if memory is not None and memory.recent is not None:
        earlier = len(memory.recent)
        masks = _joined_masks(memory, inputs, masks)
        inputs = torch.cat((memory.recent, inputs))
    first = max(0, len(inputs) - layer.window + 1)
    if lengths is None:
        reaching = None if reaching is None else reaching[first:]
        recent, masks = inputs[first:], [mask[first:] for mask in masks]
    else:
        assert reaching is not None
        # The last ones of every sequence, aligned at its end; what lies before its beginning is no input of it.
        positions = torch.arange(first - len(inputs), 0, device=inputs.device)[:, None] + earlier + lengths
        found, lanes = positions.clamp(min=0), torch.arange(inputs.shape[1], device=inputs.device)
        reaching = reaching[found, lanes] | (positions < 0)
        recent, masks = inputs[found, lanes], [mask[found, lanes] for mask in masks]
    return Memory(layer, seen, recent=recent, masks=tuple(masks), reaching=reaching, batch=batch)


def _reaching(memory: Memory | None, inputs: Tensor) -> Tensor:
    """Which of the inputs kept from earlier and of these are the first of their sequence or lie before it."""
    reaching = inputs.new_zeros(inputs.shape[:2], dtype=torch.bool)
    if memory is None:
        reaching[:1] = True
        return reaching
    before = memory.reaching
    if before is None:
        assert memory.recent is not None
        before = reaching.new_zeros(len(memory.recent), inputs.shape[1])
        before[:1] = memory.seen == len(memory.recent)
    return torch.cat((before, reaching))


def _joined_masks(memory: Memory, inputs: Tensor, masks: list[Tensor]) -> list[Tensor]:
    """Masks of the earlier inputs and of these; where only one of the two had dropout the other's are ones."""
    assert memory.recent is not None
    before = list(memory.masks) or [mask.new_ones(len(memory.recent), *mask.shape[1:]) for mask in masks]
    after = masks or [mask.new_ones(len(inputs), *mask.shape[1:]) for mask in before]
    return [torch.cat(pair) for pair in zip(before, after, strict=True)]


def _begun(stack: Stack, memory: Memory, window: int) -> States:
    """The unfinished windows that began after the start, from the inputs."""
    assert memory.recent is not None
    first = len(memory.recent) - min(memory.seen, window) + 1
    recent = memory.recent[first:]
    return advance(stack, recent, stack.zeros(recent[:0]), [mask[first:] for mask in memory.masks])


def _in_order(memory: Memory, layout: Layout) -> Memory:
    """The memory with the sequences in the order in which the inputs have them."""
    if layout.packed is None or layout.packed.sorted_indices is None:
        return memory
    order = layout.packed.sorted_indices
    return memory.apply(lambda tensor: tensor.index_select(1, order))


def _back_in_order(memory: Memory, layout: Layout) -> Memory:
    """The memory with the sequences in the order in which the module was given them."""
    if layout.packed is None or layout.packed.unsorted_indices is None:
        return memory
    order = layout.packed.unsorted_indices
    return memory.apply(lambda tensor: tensor.index_select(1, order))


def _unfinished(stack: Stack, memory: Memory, start: States, window: int) -> States:
    """The unfinished windows at a border, the youngest first; ``start`` is the visible state, one row."""
    rows = memory.rows
    if rows is None:
        # Where the state was detached, the windows are as well.
        with torch.set_grad_enabled(torch.is_grad_enabled() and any(part.requires_grad for part in start[0])):
            rows = _begun(stack, memory, window)
    if memory.reaching is not None:
        # Windows that reach over the beginning of a sequence are the run from its start.
        whole = memory.reaching.flip(0)[: len(rows[0][0]), :, None]
        rows = _where(whole, start, rows)
    # At the beginning of a sequence the oldest is the run from the start itself.
    return concatenate(rows, start) if memory.seen < window else rows


def _starts_of_rows(stack: Stack, inputs: Tensor, unfinished: States, window: int) -> States:
    """The states from which the first rows go on: row ``r`` brings ``window - 1 - r`` inputs along."""
    ages = concatenate(stack.zeros(inputs[:1]), unfinished)
    rows = torch.arange(min(window, len(inputs)), device=inputs.device)
    return take(ages, (window - 1 - rows).clamp(max=ages[0][0].shape[0] - 1))


def _continued(
    stack: Stack, inputs: Tensor, unfinished: States, window: int, masks: list[Tensor], lengths: Tensor | None = None
) -> States:
    """The unfinished windows at the end of the inputs, of every sequence at its own end."""
    if lengths is None:
        going_on = take(unfinished, slice(0, max(0, window - 1 - len(inputs))))
        first = max(0, len(inputs) - window + 1)
        return advance(stack, inputs[first:], going_on, [mask[first:] for mask in masks])
    count = min(window - 1, len(unfinished[0][0]) + len(inputs))
    ages = torch.arange(count, device=inputs.device)
    rows, at_end = unfinished, None
    for time in range(len(inputs)):
        now = slice(time, time + 1)
        rows = take(advance(stack, inputs[now], rows, [mask[now] for mask in masks]), slice(0, count))
        # The oldest one stands for all that would be older.
        padded = take(rows, ages.clamp(max=len(rows[0][0]) - 1))
        ended = (lengths == time + 1)[:, None]
        at_end = padded if at_end is None else _where(ended, padded, at_end)
    assert at_end is not None
    return at_end


def _where(condition: Tensor, chosen: States, other: States) -> States:
    return tuple(
        tuple(torch.where(condition, *parts) for parts in zip(*layers, strict=True))
        for layers in zip(chosen, other, strict=True)
    )


def _saving_nothing(function: Callable[..., States], *arguments: Any) -> States:
    """Usually a state is detached before anything flows back: keep nothing for that, compute it again if it does."""
    if not torch.is_grad_enabled():
        return function(*arguments)
    rows: States = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return rows


def _parts(state: Any) -> tuple[Tensor, ...]:
    return () if state is None else tuple(state) if isinstance(state, (tuple, list)) else (state,)


def plain_state(state: Any) -> Any:
    """Return a state without the windows that it carries."""
    if isinstance(state, (tuple, list)):  # torch's own LSTM takes both
        return tuple(plain_state(part) for part in state)
    return state.as_subclass(Tensor) if isinstance(state, CarriedState) else state


def lay_over(recurrent: nn.Module, form: type[WindowedT]) -> WindowedT:
    """Give a recurrent module a windowed form, in place, and return the module.

    The form takes the place of the ``forward`` that is the recurrence; one that wraps it stays around the form.

    Raises:
        ValueError: If the module's own ``forward`` does not reach the form, being no wrapper of ``super().forward``.
    """
    if wrapper_obstacle(recurrent) == NOT_CALLED:  # declared to be a wrapper, or it would not have come so far
        kind = original_class(recurrent)
        raise ValueError(
            "A windowed form takes the place of `super().forward`, which a `forward` around a recurrent layer must "
            f"call. Got {kind.__name__}: {NOT_CALLED} of {base_class(kind).__name__}."
        )
    vars(recurrent).pop("forward", None)  # compiled, of the class before; others are refused
    recurrent.__class__ = windowed_class(original_class(recurrent), form)
    assert isinstance(recurrent, form)
    return recurrent


def windowed_class(original: type[nn.Module], form: type[Windowed]) -> type[Form]:
    """Return the class that is both the original and a windowed form; there is one for each pair."""
    return form_class(original, base_class(original), form)


def _new(original: type[nn.Module], form: type[Windowed]) -> Form:
    windowed = windowed_class(original, form)
    return windowed.__new__(windowed)
