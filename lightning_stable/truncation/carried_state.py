"""What a windowed layer carries from one chunk of a sequence to the next.

A state alone cannot be carried: it remembers whatever came before it, and the window would grow with every chunk.
What is carried instead are the *unfinished windows* at the border between two chunks, one for every number of inputs
below the window. They travel with the state that the layer returns, so that code written for a recurrent layer
(unpack, detach, hand back with the next chunk) works as it stands.

The windows follow a state that is copied or moved, and a choice or a reset of whole sequences. A state changed in any
other way is refused when it is handed back. Sequences of a PackedSequence end at different inputs: what is kept of
them is aligned at their ends.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from lightning_stable import checks
from lightning_stable.recurrence.forms import original_class
from lightning_stable.truncation.exact.stack import States

Change = Callable[[Tensor], Tensor]


class Continuing(Protocol):
    """A windowed layer, which computes the unfinished windows of a memory when they are needed."""

    def settled(self, memory: Memory) -> Memory:
        """Return the memory with its ``rows``."""


@dataclass(frozen=True, eq=False)
class Memory:
    """The unfinished windows of a layer after ``seen`` inputs.

    Attributes:
        layer: The windowed layer this belongs to; no other can continue it.
        seen: Inputs since the start of the sequence, of the longest one.
        recent: The last ``min(seen, window - 1)`` inputs of every sequence, shape ``(time, batch, features)``; None
            where ``rows`` do not follow from them.
        masks: Dropout masks between the layers at these inputs; empty without dropout.
        rows: The unfinished windows that began from zero, the youngest first; None as long as they follow from
            ``recent``. While ``seen < window`` the state itself is the oldest one.
        reaching: Which inputs in ``recent`` are the first of their sequence or lie before it, shape ``(time, batch)``:
            windows that begin there are the state itself. None where all sequences are equally long.
        batch: Dimension of the batch in the visible state; None without one.
        lost: What the windows could not follow; empty if they can be continued.
        border: The call that returned the state; its parts belong together.
    """

    layer: Continuing
    seen: int = 0
    recent: Tensor | None = None
    masks: tuple[Tensor, ...] = ()
    rows: States | None = None
    reaching: Tensor | None = None
    batch: int | None = None
    lost: str = ""
    border: object = field(default_factory=object, repr=False)

    def apply(self, change: Change) -> Memory:
        """Return the memory with a function applied to each of its tensors."""
        recent = None if self.recent is None else change(self.recent)
        rows = None if self.rows is None else tuple(tuple(change(part) for part in state) for state in self.rows)
        reaching = None if self.reaching is None else change(self.reaching).bool()
        return replace(self, recent=recent, masks=tuple(map(change, self.masks)), rows=rows, reaching=reaching)

    def forget(self, lost: str) -> Memory:
        """Return what remains after a change that the unfinished windows cannot follow."""
        return Memory(self.layer, lost=self.lost or lost, border=self.border)

    def edit(self, part: int, change: Callable[[Tensor, int], Tensor]) -> Memory:
        """Return the memory after an edit of one part of the state, which every unfinished window undergoes as well.

        Args:
            part: Index of the part, 0 for ``h``.
            change: Function of the rows of a layer, shape ``(rows, batch, size)``, and its index.
        """
        settled = self.layer.settled(self)
        assert settled.rows is not None
        rows = tuple(
            tuple(change(value, layer) if index == part else value for index, value in enumerate(state))
            for layer, state in enumerate(settled.rows)
        )
        return replace(settled, recent=None, masks=(), rows=rows)


# Operations after which a state is the same state.
_COPYING = {
    *("detach", "clone", "contiguous"),
    *("to", "cpu", "cuda", "type", "type_as", "float", "double", "half", "bfloat16"),
}
# Edits that act on every unfinished window as they act on the state: they reset or scale some sequences.
_EDITING = {"mul", "rmul", "where", "masked_fill"}
# A tensor that is overwritten in place holds a state of the user's own.
_OVERWRITING = {"zero_", "fill_", "copy_"}


class CarriedState(Tensor):
    """A state as recurrent layers return it, together with the :class:`Memory` of a windowed layer.

    It behaves as the tensor it is. Copies keep the memory, and sequences that are chosen, reset or scaled take their
    unfinished windows along. Whatever else might be taken for the state remembers that its windows are lost.
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
            source = next((v for v in _flat((*args, *kwargs.values())) if isinstance(v, CarriedState)), None)
            if func == Tensor.data.__get__:  # type: ignore[attr-defined]
                func = Tensor.detach  # torch counts the changes of what this returns
            result = func(*args, **kwargs)
            if source is None or source.memory is None:
                return result
            name = _name(func)
            if result is source or (name == "__setitem__" and args[0] is source):
                source._note_change_in_place(name, args)
                return result
            return _with_memories(result, source, name, func, args, kwargs)

    def _note_change_in_place(self, name: str, args: tuple[Any, ...]) -> None:
        assert self.memory is not None
        if name == "detach_":
            self.memory = self.memory.apply(Tensor.detach)
        elif name in _OVERWRITING and not any(isinstance(value, CarriedState) for value in args[1:]):
            self.memory = None
        elif name.endswith("_") and name != "requires_grad_":  # "__imul__" too, but not a `float` that returns itself
            self.memory = self.memory.forget(f"`{name}`")
        self.version = _version(self)

    def __copy__(self) -> Tensor:
        """Return the same state with the same memory."""
        with torch._C.DisableTorchFunctionSubclass():
            plain = self.as_subclass(Tensor)
        return plain if self.memory is None else carry(plain, self.memory, self.part)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Leave out the memory, which has the layer with it: a ``state_dict`` saves the state as a tensor."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor).__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """Copy the memory as well; a copied layer owns the copied memory."""
        with torch._C.DisableTorchFunctionSubclass():
            twin = self.as_subclass(Tensor).detach().clone().requires_grad_(self.requires_grad)
        memo[id(self)] = twin
        if self.memory is None:
            return twin
        memory = self.memory.apply(lambda tensor: tensor.detach().clone())
        return carry(twin, replace(memory, layer=copy.deepcopy(memory.layer, memo)), self.part)


def _with_memories(
    result: Any, source: CarriedState, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
) -> Any:
    """The result of an operation, with the memory of each tensor in it."""
    if isinstance(result, Tensor):
        memory = _after(result, source, name, func, args, kwargs)
        return result if memory is None else carry(result, memory, source.part)
    if isinstance(result, (tuple, list)) and any(map(torch.is_tensor, result)):  # a torch.Size is a tuple, too
        return type(result)(_with_memories(part, source, name, func, args, kwargs) for part in result)
    return result


def _after(
    result: Tensor, source: CarriedState, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
) -> Memory | None:
    """The memory of a tensor that an operation made; None for one that nobody can take for the state."""
    memory = source.memory
    assert memory is not None
    if name == "as_subclass" or name.endswith("_like") or name.startswith("new_"):  # asked for, or made of nothing
        return None
    if any(result is value for value in args):  # a tensor of the user's own, changed in place
        return memory.forget(f"`{name}`") if name == "copy_" and type(result) is Tensor else None
    if args and args[0] is source and name in _COPYING:
        return memory.apply(lambda tensor: func(tensor, *args[1:], **kwargs))
    if memory.batch is not None and not memory.lost:
        rows = _chosen_sequences(memory.batch, name, args)
        if rows is not None and args[0] is source:
            return memory.apply(lambda tensor: tensor[:, rows])
        if name == "repeat_interleave" and _dimension(args, kwargs) in (memory.batch, memory.batch - source.dim()):
            repeats = args[1] if len(args) > 1 else kwargs["repeats"]
            return memory.apply(lambda tensor: tensor.repeat_interleave(repeats, 1))
        # A second state would bring windows of its own.
        others = (v for v in (*args, *kwargs.values()) if isinstance(v, CarriedState) and v is not source)
        if name == "masked_scatter" and args[0] is source:  # what it scatters is in the result by now
            name, func, args, kwargs = "where", torch.where, (args[1], result, source), {}
        if name.strip("_") in _EDITING and all(other.memory is None for other in others):
            return memory.edit(source.part, _on_rows(source, func, args, kwargs))
    return memory.forget(f"`{name}`") if _resembles(result, source) else None


def _resembles(result: Tensor, source: Tensor) -> bool:
    """Whether a result might be handed back for the state, as it is or put together: it has its features or memory."""
    if not result.is_floating_point():
        return False
    same_size = result.dim() > 0 and result.shape[-1] == source.shape[-1]
    return same_size or result.untyped_storage().data_ptr() == source.untyped_storage().data_ptr()


def _chosen_sequences(batch: int, name: str, args: tuple[Any, ...]) -> Any:
    """Which sequences of the batch an operation chooses; None if it does something else."""
    if name == "index_select" and len(args) == 3 and args[1] in (batch, batch - args[0].dim()):
        return args[2]
    if name != "__getitem__":
        return None
    key = args[1] if isinstance(args[1], tuple) else (args[1],)
    if len(key) != batch + 1 or any(not isinstance(k, slice) or k != slice(None) for k in key[:-1]):
        return None
    rows = key[-1]
    # A single number would take the dimension away.
    return rows if isinstance(rows, (slice, list)) or (isinstance(rows, Tensor) and rows.dim() == 1) else None


def _dimension(args: tuple[Any, ...], kwargs: Any) -> int | None:
    """The dimension of ``repeat_interleave``."""
    dimension: int | None = args[2] if len(args) > 2 else kwargs.get("dim")
    return dimension


def _on_rows(
    source: CarriedState, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
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


def _name(func: Callable[..., Any]) -> str:
    """The name of a method, or of the property that it gets."""
    name = getattr(func, "__name__", "")
    return str(getattr(getattr(func, "__self__", None), "__name__", name)) if name == "__get__" else name


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from value
        else:
            yield value


def _version(state: Tensor) -> int:
    """Number of changes in place; torch does not count those of tensors made for inference."""
    return 0 if state.is_inference() else state._version


def carry(state: Tensor, memory: Memory, part: int = 0) -> Tensor:
    """Give a state the memory; ``part`` is its index in the state of the layer."""
    # The tensor itself, which nobody else holds: an alias would be a view, and `detach_` refuses views.
    state.__class__ = CarriedState
    assert isinstance(state, CarriedState)
    with torch._C.DisableTorchFunctionSubclass():
        state.memory, state.part, state.version = memory, part, _version(state)
    return state


def memory_of(states: Sequence[Tensor], layer: Continuing) -> Memory | None:
    """Return the memory of states handed to a layer; None if they are the start of a sequence.

    Raises:
        ValueError: If the states come from this layer and their windows cannot be continued.
    """
    held = [_current(state) if isinstance(state, CarriedState) else None for state in states]
    ours = [memory for memory in held if memory is not None and memory.layer is layer]
    if not ours:
        return None
    lost = next((memory.lost for memory in ours if memory.lost), None)
    if lost is None and (len(ours) < len(states) or any(memory.border is not ours[0].border for memory in ours)):
        lost = "only a part of it, or parts of different states"
    if lost is not None:
        kind = original_class(cast(nn.Module, layer)).__name__
        raise ValueError(
            f"Carry the state of a windowed {kind} as it was returned; the unfinished "
            "windows at the border follow it when it is detached, cloned, moved or cast, when whole sequences are "
            "chosen (`state[:, rows]`, `index_select`, `repeat_interleave`) or reset (`state * mask`, `torch.where`, "
            f"`masked_fill`, `masked_scatter`), and at no other change. Got {lost}. Start from zeros (None) or from a "
            "plain tensor instead."
        )
    if all(memory.rows is None for memory in ours):
        return ours[0]
    # Each part of the rows from the memory of the part of the state; parts that are not shown from any.
    settled = [layer.settled(memory).rows or () for memory in ours]
    rows = tuple(
        (*(one[index][part] for part, one in enumerate(settled)), *state[len(settled) :])
        for index, state in enumerate(settled[0])
    )
    if any(memory.recent is None for memory in ours):
        return replace(ours[0], rows=rows, recent=None, masks=())
    return replace(ours[0], rows=rows)


def _current(state: CarriedState) -> Memory | None:
    """The memory of a state, which is lost if the state was changed through a view of it."""
    with torch._C.DisableTorchFunctionSubclass():
        if state.memory is not None and _version(state) != state.version:
            return state.memory.forget("a change in place through a view of it")
    return state.memory


def pack_state(state: Any) -> dict[str, Any]:
    """Return a state of a recurrent layer, windowed or not, as what ``torch.load(weights_only=True)`` reads.

    Raises:
        TypeError: If the state is no tensor and no tuple of them.
    """
    parts = list(state) if isinstance(state, tuple) else [state]
    for part in parts:
        checks.tensor("state", part)
    memory = parts[0].memory if isinstance(parts[0], CarriedState) else None
    packed: dict[str, Any] = {
        "parts": [part.detach().as_subclass(Tensor).clone() for part in parts],
        "is_tuple": isinstance(state, tuple),
    }
    if memory is not None and not memory.lost:
        kept = memory_of(parts, memory.layer)
        assert kept is not None
        kept = kept.apply(lambda tensor: tensor.detach().clone())
        packed["memory"] = {
            "seen": kept.seen,
            "recent": kept.recent,
            "masks": list(kept.masks),
            "rows": None if kept.rows is None else [list(state) for state in kept.rows],
            "reaching": kept.reaching,
            "batch": kept.batch,
        }
    return packed


def unpack_state(packed: dict[str, Any], layer: Any) -> Any:
    """Return the state again.

    Args:
        packed: As :func:`pack_state` returned it.
        layer: The layer that returned the state, windowed if it was.

    Raises:
        TypeError: If ``packed`` is no dictionary, or ``layer`` no module.
        ValueError: If ``packed`` is not what :func:`pack_state` returned.
    """
    if not isinstance(packed, dict):
        raise TypeError(f"`packed` must be what `pack_state` returned. Got {checks.shown(packed)}.")
    if not {"parts", "is_tuple"} <= packed.keys():
        raise ValueError(f"`packed` must be what `pack_state` returned. Got the keys {sorted(map(str, packed))}.")
    checks.module("layer", layer)
    parts = packed["parts"]
    if "memory" in packed:
        fields = packed["memory"]
        rows = None if fields["rows"] is None else tuple(tuple(state) for state in fields["rows"])
        memory = Memory(layer, **fields | {"masks": tuple(fields["masks"]), "rows": rows})
        parts = [carry(part, memory, index) for index, part in enumerate(parts)]
    return tuple(parts) if packed["is_tuple"] else parts[0]
