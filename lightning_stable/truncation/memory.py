"""What a windowed layer carries from one chunk of a sequence to the next.

A state alone cannot be carried: it remembers whatever came before it, and the window would grow with every chunk.
What is carried instead are the *unfinished windows* at the border between two chunks, one for every number of inputs
below the window. They travel with the state the layer returns, so that code written for a recurrent layer (unpack,
detach, hand back with the next chunk) works as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_stable.truncation.stack import States

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Memory:
    """The unfinished windows of a layer after ``seen`` inputs.

    Attributes:
        layer: The windowed layer this belongs to; no other can continue it.
        seen: Inputs since the start of the sequence.
        recent: The last ``min(seen, window - 1)`` inputs, shape ``(time, batch, features)``.
        rows: The unfinished windows that began from zero, the youngest first; None as long as they follow from
            ``recent``. While ``seen < window`` the state itself is the oldest one.
        lost: Why the windows cannot be continued; empty if they can.
        border: The call that returned the state; its parts belong together.
    """

    layer: nn.Module
    seen: int = 0
    recent: Tensor | None = None
    rows: States | None = None
    lost: str = ""
    border: object = field(default_factory=object, repr=False)

    def apply(self, change: Change) -> Memory:
        """The memory with a function applied to each of its tensors."""
        recent = None if self.recent is None else change(self.recent)
        rows = None if self.rows is None else tuple(tuple(change(part) for part in state) for state in self.rows)
        return replace(self, recent=recent, rows=rows)

    def forget(self, lost: str) -> Memory:
        """What remains after a change to the visible state that the unfinished windows cannot follow."""
        return Memory(self.layer, lost=lost)


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
# Operations users edit states with: resetting some sequences, choosing or reordering them.
_EDITING = {"mul", "__mul__", "__rmul__", "where", "masked_fill", "__getitem__", "index_select", "zeros_like", "gather"}


class CarriedState(Tensor):
    """A state as recurrent layers return it, together with the :class:`Memory` of a windowed layer.

    Behaves as the tensor it is. Copies of it (``detach``, ``clone``, ``to``, ...) keep the memory, edited versions
    know that theirs is lost, and whatever else is computed from it is a plain tensor.
    """

    memory: Memory

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Do what torch does, then hand the memory on."""
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
            source = next((value for value in args if isinstance(value, CarriedState)), None)
            if source is None:
                return result
            name = "detach" if func == Tensor.data.__get__ else getattr(func, "__name__", "")  # type: ignore[attr-defined]
            if result is source or (name == "__setitem__" and args[0] is source):
                if name == "detach_":
                    source.memory = source.memory.apply(Tensor.detach)
                elif name not in _KEEPING and (name == "__setitem__" or name.endswith("_")):
                    source.memory = source.memory.forget(f"changed in place by {name!r}")
                return result
            if name in _KEEPING and isinstance(result, Tensor):
                return carry(result, source.memory.apply(lambda tensor: func(tensor, *args[1:], **kwargs)))
            if name in _EDITING and isinstance(result, Tensor) and _may_be_a_state(result, source):
                return carry(result, source.memory.forget(f"changed by {name!r}"))
            return result

    def __copy__(self) -> CarriedState:
        """The same state with the same memory."""
        return carry(self.as_subclass(Tensor), self.memory)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Without the memory, which has the layer with it: the state in a ``state_dict`` is saved as a tensor."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor).__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: dict[int, Any]) -> CarriedState:
        """Copy the memory as well; a copied layer owns the copied memory."""
        import copy

        if id(self) not in memo:
            with torch._C.DisableTorchFunctionSubclass():
                plain = self.detach().clone().requires_grad_(self.requires_grad)
            memory = replace(self.memory.apply(lambda tensor: tensor.detach().clone()))
            memo[id(self)] = carry(plain, replace(memory, layer=copy.deepcopy(memory.layer, memo)))
        return memo[id(self)]  # type: ignore[no-any-return]


def _may_be_a_state(result: Tensor, source: Tensor) -> bool:
    same = result.dim() == source.dim() and result.shape[-1:] == source.shape[-1:]
    return same and (result.dim() < 3 or result.shape[0] == source.shape[0])


def carry(state: Tensor, memory: Memory) -> CarriedState:
    """The state as a tensor that has the memory."""
    # The tensor itself, which nobody else holds: an alias would be a view, and `detach_` refuses views.
    state.__class__ = CarriedState
    assert isinstance(state, CarriedState)
    state.memory = memory
    return state


def memory_of(states: Sequence[Tensor], layer: nn.Module) -> Memory | None:
    """The memory of states handed to a layer; None if they are the start of a sequence.

    Raises:
        ValueError: If the states come from this layer and their windows cannot be continued.
    """
    memories = [state.memory if isinstance(state, CarriedState) else None for state in states]
    ours = [memory for memory in memories if memory is not None and memory.layer is layer]
    if not ours:
        return None
    lost = next((memory.lost for memory in ours if memory.lost), None)
    if lost is None and (len(ours) < len(states) or any(memory.border is not ours[0].border for memory in ours)):
        lost = "only a part of it, or parts of different states"
    if lost is not None:
        raise ValueError(
            f"The state of a windowed {type(layer).__bases__[-1].__name__} can be carried on only as the layer "
            f"returned it (detached, cloned or moved, if you like): the unfinished windows at the border belong to "
            f"it. Got a state {lost}. Start from zeros (None) or from a state of your own instead."
        )
    return ours[0]
