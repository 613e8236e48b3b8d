"""What a windowed layer carries from one chunk of a sequence to the next.

A state alone cannot be carried: it remembers whatever came before it, and the window would grow with every chunk.
What is carried instead are the *unfinished windows* at the border between two chunks, one for every number of inputs
below the window. They travel with the state the layer returns, so that code written for a recurrent layer (unpack,
detach, hand back with the next chunk) works as it stands.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_stable.truncation.exact.stack import States

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Memory:
    """The unfinished windows of a layer after ``seen`` inputs.

    Attributes:
        layer: The windowed layer this belongs to; no other can continue it.
        seen: Inputs since the start of the sequence.
        recent: The last ``min(seen, window - 1)`` inputs, shape ``(time, batch, features)``; None where ``rows`` do
            not follow from them.
        masks: Dropout masks between the layers at these inputs; empty without dropout.
        rows: The unfinished windows that began from zero, the youngest first; None as long as they follow from
            ``recent``. While ``seen < window`` the state itself is the oldest one.
        batch: Dimension of the batch in the visible state; None without one.
        lost: Why the windows cannot be continued; empty if they can.
        border: The call that returned the state; its parts belong together.
        origin: Of a lost memory: what it was before, and the place in memory of the state it belonged to. A view that
            is turned back into that state has not lost anything.
    """

    layer: nn.Module
    seen: int = 0
    recent: Tensor | None = None
    masks: tuple[Tensor, ...] = ()
    rows: States | None = None
    batch: int | None = None
    lost: str = ""
    border: object = field(default_factory=object, repr=False)
    origin: tuple[Memory, tuple[Any, ...]] | None = field(default=None, repr=False)

    def apply(self, change: Change) -> Memory:
        """The memory with a function applied to each of its tensors."""
        origin = self.origin and (self.origin[0].apply(change), self.origin[1])
        recent = None if self.recent is None else change(self.recent)
        rows = None if self.rows is None else tuple(tuple(change(part) for part in state) for state in self.rows)
        return replace(self, recent=recent, masks=tuple(map(change, self.masks)), rows=rows, origin=origin)

    def forget(self, lost: str, state: Tensor) -> Memory:
        """What remains after a change to the visible ``state`` that the unfinished windows cannot follow."""
        origin = self.origin if self.lost else (self, _place(state))
        return Memory(self.layer, lost=self.lost or lost, border=self.border, origin=origin)

    def edit(self, part: int, change: Callable[[Tensor, int], Tensor]) -> Memory:
        """The memory after an edit of one part of the state, which every unfinished window undergoes as well.

        Args:
            part: Index of the part, 0 for ``h``.
            change: Function of the rows of a layer, shape ``(rows, batch, size)``, and its index.
        """
        settled: Memory = self.layer.settled(self)  # type: ignore[operator]
        assert settled.rows is not None
        rows = tuple(
            tuple(change(value, layer) if index == part else value for index, value in enumerate(state))
            for layer, state in enumerate(settled.rows)
        )
        return replace(settled, recent=None, masks=(), rows=rows)


# Operations after which a state is the same state.
_KEEPING = {
    "detach",
    "clone",
    "contiguous",
    "to",
    "float",
    "double",
    "half",
    "bfloat16",
    "type",
    "type_as",
    "cpu",
    "cuda",
    "requires_grad_",
}
# A tensor overwritten in place holds a state of the user's own.
_OVERWRITING = {"zero_", "fill_", "copy_"}
# Edits that act on every unfinished window as they act on the state: resetting or scaling some sequences.
_EDITING = {"mul", "__mul__", "__rmul__", "where", "masked_fill", "mul_", "__imul__", "masked_fill_"}
# Whatever else may come back as a state.
_LOSING = {
    *("squeeze", "unsqueeze", "transpose", "swapaxes", "permute", "movedim", "view", "view_as", "reshape", "expand"),
    *("flatten", "unflatten", "stack", "cat", "concat", "unbind", "split", "chunk", "select", "narrow", "__getitem__"),
    *("flip", "roll", "gather", "index_select", "repeat", "repeat_interleave", "clamp", "dropout", "lerp"),
    *("add", "__add__", "__radd__", "sub", "__sub__", "div", "__truediv__"),
}


class CarriedState(Tensor):
    """A state as recurrent layers return it, together with the :class:`Memory` of a windowed layer.

    Behaves as the tensor it is. Copies of it (``detach``, ``clone``, ``to``, ...) keep the memory; sequences that are
    chosen, reordered, reset or scaled take their unfinished windows along; a state that was changed in another way
    knows that its windows are lost, and whatever is computed from it further on is a plain tensor.
    """

    memory: Memory | None
    part: int
    version: int

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Do what torch does, then hand the memory on."""
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            source = next((value for value in _flat(args) if isinstance(value, CarriedState)), None)
            if func == Tensor.data.__get__:  # type: ignore[attr-defined]
                func = Tensor.detach  # whose changes torch counts
            result = func(*args, **kwargs)
            if source is None or source.memory is None:
                return result
            name = getattr(func, "__name__", "")
            if result is source or (name == "__setitem__" and args[0] is source):
                source.memory = _after_change_in_place(source, source.memory, name, func, args, kwargs)
                source.version = _version(source)
            elif isinstance(result, Tensor):
                memory = _after(source, source.memory, name, func, args, kwargs)
                return result if memory is None else carry(result, memory, source.part)
            elif name in _LOSING and isinstance(result, (tuple, list)):
                lost = source.memory.forget(f"changed by {name!r}", source)
                return type(result)(carry(value, lost, source.part) for value in result)
            return result

    def __copy__(self) -> CarriedState:
        """The same state with the same memory."""
        with torch._C.DisableTorchFunctionSubclass():
            plain = self.as_subclass(Tensor)
        return plain if self.memory is None else carry(plain, self.memory, self.part)  # type: ignore[return-value]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Without the memory, which has the layer with it: the state in a ``state_dict`` is saved as a tensor."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor).__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """Copy the memory as well; a copied layer owns the copied memory."""
        if id(self) not in memo:
            with torch._C.DisableTorchFunctionSubclass():
                plain = self.as_subclass(Tensor).detach().clone().requires_grad_(self.requires_grad)
            memo[id(self)] = plain
            if self.memory is not None:
                copied = replace(self.memory, origin=None).apply(lambda tensor: tensor.detach().clone())
                layer = copy.deepcopy(copied.layer, memo)
                memo[id(self)] = carry(plain, replace(copied, layer=layer), self.part)
        return memo[id(self)]  # type: ignore[no-any-return]


def _after(
    source: CarriedState, memory: Memory, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
) -> Memory | None:
    """The memory of the result of an operation; None for a plain tensor."""
    if name in _KEEPING:
        return memory.apply(lambda tensor: func(tensor, *args[1:], **kwargs))
    chosen = _sequences(memory, name, args)
    if chosen is not None and args[0] is source and not memory.lost:
        return memory.apply(lambda tensor: tensor[:, chosen])
    if name in _EDITING and _is_editable(source, memory, args):
        return memory.edit(source.part, _on_rows(source, memory, func, args, kwargs))
    if name in _EDITING or name in _LOSING:
        return memory.forget(f"changed by {name!r}", source)
    return None


def _after_change_in_place(
    source: CarriedState, memory: Memory, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
) -> Memory | None:
    if name == "detach_":
        return memory.apply(Tensor.detach)
    if name in _OVERWRITING:
        return None
    if name in _EDITING and _is_editable(source, memory, args):
        change = _on_rows(source, memory, func, args, kwargs)
        return memory.edit(source.part, lambda rows, layer: change(rows.clone(), layer))
    if name == "__setitem__" or (name.endswith("_") and name not in _KEEPING):
        return replace(memory.forget(f"changed in place by {name!r}", source), origin=None)
    return memory


def _sequences(memory: Memory, name: str, args: tuple[Any, ...]) -> Any:
    """Which sequences of the batch an operation chooses; None if it does something else."""
    if memory.batch is None:
        return None
    if name == "index_select" and len(args) == 3 and args[1] in (memory.batch, memory.batch - args[0].dim()):
        return args[2]
    if name != "__getitem__":
        return None
    key = args[1] if isinstance(args[1], tuple) else (args[1],)
    if len(key) != memory.batch + 1 or any(not isinstance(k, slice) or k != slice(None) for k in key[:-1]):
        return None
    chosen = key[-1]
    # A single number would take the dimension away.
    return chosen if isinstance(chosen, (slice, list)) or (isinstance(chosen, Tensor) and chosen.dim() == 1) else None


def _is_editable(source: CarriedState, memory: Memory, args: tuple[Any, ...]) -> bool:
    # A second state would bring windows of its own.
    others = (value for value in args if isinstance(value, CarriedState) and value is not source)
    return memory.batch is not None and not memory.lost and all(other.memory is None for other in others)


def _on_rows(
    source: CarriedState, memory: Memory, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
) -> Callable[[Tensor, int], Tensor]:
    """An elementwise operation on a state as one on the rows of one of its layers."""

    def operand(value: Any, rows: Tensor, layer: int) -> Any:
        if value is source:
            return rows
        if isinstance(value, Tensor) and value.dim() == 3:  # (layers, batch, size); rows stand for one layer
            return value[layer if len(value) > 1 else 0].as_subclass(Tensor)
        return value.as_subclass(Tensor) if isinstance(value, Tensor) else value

    def change(rows: Tensor, layer: int) -> Tensor:
        edited: Tensor = func(
            *(operand(value, rows, layer) for value in args),
            **{name: operand(value, rows, layer) for name, value in kwargs.items()},
        )
        return edited

    return change


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from value
        else:
            yield value


def _place(state: Tensor) -> tuple[Any, ...]:
    return state.data_ptr(), state.shape, state.stride(), _version(state)


def _version(state: Tensor) -> int:
    """Number of changes in place; torch does not count those of tensors made for inference."""
    return 0 if state.is_inference() else state._version


def carry(state: Tensor, memory: Memory, part: int = 0) -> CarriedState:
    """The state as a tensor that has the memory; ``part`` is its index in the state of the layer."""
    # The tensor itself, which nobody else holds: an alias would be a view, and `detach_` refuses views.
    state.__class__ = CarriedState
    assert isinstance(state, CarriedState)
    with torch._C.DisableTorchFunctionSubclass():
        state.memory, state.part, state.version = memory, part, _version(state)
    return state


def memory_of(states: Sequence[Tensor], layer: nn.Module) -> Memory | None:
    """The memory of states handed to a layer; None if they are the start of a sequence.

    Raises:
        ValueError: If the states come from this layer and their windows cannot be continued.
    """
    found = [_found(state) if isinstance(state, CarriedState) else None for state in states]
    ours = [memory for memory in found if memory is not None and memory.layer is layer]
    if not ours:
        return None
    lost = next((memory.lost for memory in ours if memory.lost), None)
    if lost is None and (len(ours) < len(states) or any(memory.border is not ours[0].border for memory in ours)):
        lost = "only a part of it, or parts of different states"
    if lost is not None:
        raise ValueError(
            f"The state of a windowed {type(layer).__bases__[-1].__name__} can be carried on as the layer returned it "
            "(detached, cloned or moved, whole sequences chosen, reset or scaled, if you like): the unfinished "
            f"windows at the border belong to it. Got a state {lost}. Start from zeros (None) or from a state of your "
            "own instead."
        )
    if all(memory.rows is None for memory in ours):
        return ours[0]
    # Each part of the rows from the memory of the part of the state; parts that are not shown from any.
    settled = [layer.settled(memory).rows for memory in ours]  # type: ignore[operator]
    rows = tuple(
        (*(one[index][part] for part, one in enumerate(settled)), *state[len(settled) :])
        for index, state in enumerate(settled[0])
    )
    if any(memory.recent is None for memory in ours):
        return replace(ours[0], rows=rows, recent=None, masks=())
    return replace(ours[0], rows=rows)


def _found(state: CarriedState) -> Memory | None:
    """The memory of a state, that of its origin if it is a view turned back."""
    memory = state.memory
    with torch._C.DisableTorchFunctionSubclass():
        if memory is not None and not memory.lost and _version(state) != state.version:
            return memory.forget("changed in place through a view of it", state)
        if memory is not None and memory.lost and memory.origin is not None and memory.origin[1] == _place(state):
            return memory.origin[0]
    return memory
