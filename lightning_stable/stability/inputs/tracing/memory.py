"""What a model keeps between two calls: its attributes, and the containers and objects they hold.

A trace must neither leave anything behind nor miss what a call leaves for the next one. :class:`Memory` finds every
place where Python code can keep something, puts everything back, and says what a call has changed.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import OrderedDict, UserDict, UserList, deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from operator import is_
from types import FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor, fx, nn

from lightning_stable.stability.inputs.tracing.refusal import Refusal

_SCALARS = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, Enum)
_NAMESPACES = (SimpleNamespace, Namespace, UserDict, UserList)
_PARTS = (nn.Module, nn.Parameter)
# Objects of these packages keep no state of a model's `forward`, and hold a whole trainer.
_LIBRARIES = sys.stdlib_module_names | {
    *("torch", "lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics", "numpy", "lightning_stable"),
}
# Attributes in which fx keeps tensors that are no attributes.
_CONSTANTS = "_tensor_constant"
# A model that holds more than this (a data set, say) is not followed.
_MAX_ITEMS = 200_000


class Mark(Enum):
    """What may stand in an entry besides a value."""

    UNKNOWN = "a value computed by an earlier call"
    MISSING = "nothing"


Entry = tuple[int, Hashable]
# What differs from the model as it was found.
State = dict[Entry, Any]


class _Generator(NamedTuple):
    text: str
    state: Any


@dataclass
class _Place:
    container: Any
    saved: Any
    name: str
    owned: bool
    entry: Entry | None  # the dict entry through which a list was reached
    shared: bool = False


class Memory:
    """Every place of a model where ``forward`` can keep something.

    Args:
        model: The model.

    Raises:
        Refusal: If it holds too much, or an iterator, which cannot be put back.
    """

    def __init__(self, model: nn.Module) -> None:
        self._places: list[_Place] = []
        self._index: dict[int, int] = {}
        self._items = 0
        # Buffers are unknown in every trace, so a new value is no change.
        self._buffers: set[int] = set()
        # Layers are looked at after a call, when a change has been made.
        self._layers: set[int] = set()
        for module in model.modules():
            self._visit(vars(module), f"an attribute of {type(module).__name__}", owned=True)
            self._buffers.add(self._index[id(module._buffers)])
            if type(module).__module__.startswith("torch."):
                self._layers.add(self._index[id(vars(module))])
            for cls in type(module).__mro__:
                if not _of_library(cls):
                    self.keep(cls, f"the class {cls.__name__}")

    def keep(self, value: Any, name: str) -> None:
        """Add a container that belongs to no module: a call that changes it cannot be followed."""
        if id(value) not in self._index:
            self._visit(value, name, owned=False)

    def _visit(self, value: Any, name: str, *, owned: bool) -> None:
        pending: list[tuple[Any, Entry | None]] = [(value, None)]
        while pending:
            value, entry = pending.pop()
            if isinstance(value, (*_SCALARS, Tensor, fx.Proxy)):
                continue
            if isinstance(value, FunctionType):
                pending.extend((item, None) for item in (value.__defaults__, *(value.__kwdefaults__ or {}).values()))
                if entry is not None:  # one of the many methods of a class
                    continue
            if isinstance(value, (tuple, frozenset)):
                pending.extend((item, entry) for item in value)
            elif isinstance(value, (MethodType, partial, ref)):
                pending.extend((item, entry) for item in _behind(value))
            elif id(value) in self._index:
                self._places[self._index[id(value)]].shared = True
            elif (contents := _contents(value)) is not None:
                self._items += len(contents) if isinstance(contents, (dict, list, set)) else 1
                if self._items > _MAX_ITEMS:
                    raise Refusal("the model holds more Python objects than can be compared")
                index = self._index[id(value)] = len(self._places)
                self._places.append(_Place(value, contents, name, owned and not _is_foreign(value), entry))
                if isinstance(contents, dict):
                    pending.extend((item, (index, key)) for key, item in contents.items())
                else:
                    pending.extend((item, entry) for item in _items(contents))
            elif hasattr(type(value), "__next__"):
                raise Refusal(f"{name} is an iterator, which moves on at every call")

    def install(self, state: State, unknown: Callable[[str], Any]) -> None:
        """Let the model be as a call has left it.

        Args:
            state: Entries that differ.
            unknown: Makes the value of an unknown entry, given its name.
        """
        for (index, key), value in state.items():
            entries = _entries(self._places[index].container)
            if value is Mark.MISSING:
                _base(entries).pop(entries, key, None)
            else:
                _base(entries).__setitem__(entries, key, unknown(f"{index}_{key}") if value is Mark.UNKNOWN else value)

    def read(self) -> list[Any]:
        """The present contents of every place."""
        return [_contents(place.container) for place in self._places]

    def restore(self) -> None:
        """Put everything back."""
        for place in self._places:
            if not _identical(place.saved, _contents(place.container)):
                _refill(place.container, place.saved)

    def state_after(self, before: list[Any], state: State) -> State:
        """What the next call finds.

        Args:
            before: What :meth:`read` gave before the call.
            state: The state before the call.

        Raises:
            Refusal: If something has changed that does not belong to the model, or whether a module is training.
        """
        after = dict(state)
        for index, place in enumerate(self._places):
            old, new = before[index] if index < len(before) else place.saved, _contents(place.container)
            if _identical(old, new):
                continue
            changed = _changed(old, new) if isinstance(old, dict) and isinstance(new, dict) else None
            if changed is not None and index in self._buffers:
                changed = {key: value for key, value in changed.items() if not isinstance(old.get(key), Tensor)}
            if changed == {}:
                continue
            if not place.owned:
                raise Refusal(f"`forward` changes {place.name}, which belongs to no module")
            if changed is None:
                if place.entry is None or place.shared:
                    raise Refusal(f"`forward` changes {place.name} that is held in several places")
                after[place.entry] = Mark.UNKNOWN
            elif index in self._layers or any(isinstance(value, _PARTS) for value in changed.values()):
                raise Refusal(f"`forward` exchanges or changes {place.name}")
            elif "training" in changed and isinstance(changed["training"], bool):
                raise Refusal("`forward` changes whether a module is training")
            else:
                after |= {(index, key): value for key, value in changed.items()}
        return {entry: value for entry, value in after.items() if not self._as_found(entry, value)}

    def _as_found(self, entry: Entry, value: Any) -> bool:
        index, key = entry
        return same(self._places[index].saved.get(key, Mark.MISSING), value)


def same(one: Any, other: Any) -> bool:
    """Whether two values are one object, or equal constants."""
    if one is other:
        return True
    return type(one) is type(other) and isinstance(one, _SCALARS) and repr(one) == repr(other)


def _changed(old: dict[Any, Any], new: dict[Any, Any]) -> dict[Any, Any]:
    """The entries that differ and their new values, which are unknown unless they are constants or old objects."""
    changed = {}
    for key in [*old, *(key for key in new if key not in old)]:
        if isinstance(key, str) and key.startswith(_CONSTANTS):
            continue
        before, after = old.get(key, Mark.MISSING), new.get(key, Mark.MISSING)
        if not same(before, after) and not (isinstance(before, fx.Proxy) and isinstance(after, fx.Proxy)):
            constant = isinstance(after, (*_SCALARS, *_PARTS, Mark, FunctionType, type))
            changed[key] = after if constant else Mark.UNKNOWN
    return changed


def _of_project(module: ModuleType) -> bool:
    """Whether a module belongs to the user, who may keep settings in it."""
    file = getattr(module, "__file__", None) or ""
    return module.__name__.partition(".")[0] not in _LIBRARIES and "site-packages" not in file


def _of_library(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in _LIBRARIES


def _behind(value: Any) -> Iterable[Any]:
    """The objects that a callable holds."""
    if isinstance(value, ref):
        return (value(),)
    return (value.__self__,) if isinstance(value, MethodType) else (value.func, *value.args, *value.keywords.values())


def _is_object(value: Any) -> bool:
    """Whether ``value`` is an object of user code with attributes that may be changed."""
    if isinstance(value, _NAMESPACES):
        return True
    return not _of_library(type(value)) and not isinstance(value, (nn.Module, type))


def _slots(value: Any) -> list[str]:
    """Names of the attributes an object has outside of its ``__dict__``."""
    slots = [getattr(cls, "__slots__", ()) for cls in type(value).__mro__ if not _of_library(cls)]
    names = [name for one in slots for name in ((one,) if isinstance(one, str) else one)]
    return [name for name in names if not name.startswith("__") and hasattr(value, name)]


def _is_foreign(container: Any) -> bool:
    """Whether entries cannot be set as those of a dict, so that a change is a refusal."""
    return isinstance(container, (type, ModuleType)) or (_is_object(container) and bool(_slots(container)))


def _entries(container: Any) -> dict[Any, Any]:
    return container if isinstance(container, dict) else vars(container)


def _base(entries: dict[Any, Any]) -> type[dict[Any, Any]]:
    """The class whose methods change a dict without what its own class adds to them."""
    return OrderedDict if isinstance(entries, OrderedDict) else dict


def _contents(container: Any) -> Any:
    """A shallow copy of what may be changed in place; None for everything else."""
    if isinstance(container, dict):
        return dict(_base(container).items(container))
    if isinstance(container, (list, deque)):
        return list(container)
    if isinstance(container, set):
        return set(container)
    if isinstance(container, bytearray):
        return bytes(container)
    if isinstance(container, type):
        return {} if _of_library(container) else {k: v for k, v in vars(container).items() if not k.startswith("__")}
    if isinstance(container, FunctionType):
        return None if container.__module__.partition(".")[0] in _LIBRARIES else dict(vars(container))
    if isinstance(container, ModuleType):
        return {k: v for k, v in vars(container).items() if not k.startswith("__")} if _of_project(container) else None
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(container, numpy.ndarray):
        return container.copy()
    if numpy is not None and isinstance(container, numpy.random.Generator):
        return _Generator(repr(container.bit_generator.state), container.bit_generator.state)
    if not _is_object(container):
        return None
    return getattr(container, "__dict__", {}) | {name: getattr(container, name) for name in _slots(container)}


def _items(contents: Any) -> Iterable[Any]:
    return contents if isinstance(contents, (list, set)) else ()


def _identical(old: Any, new: Any) -> bool:
    if isinstance(old, dict):
        values = isinstance(new, dict) and len(old) == len(new) and all(map(is_, old.values(), new.values()))
        return values and all(map(is_, old, new))
    if isinstance(old, list):
        return len(old) == len(new) and all(map(is_, old, new))
    if isinstance(old, set):
        return {id(item) for item in old} == {id(item) for item in new}
    if isinstance(old, _Generator):
        return bool(old.text == new.text)
    if isinstance(old, bytes):
        return bool(old == new)
    return old.shape == new.shape and old.tobytes() == new.tobytes()  # type: ignore[no-any-return]


def _refill(container: Any, contents: Any) -> None:
    if isinstance(contents, dict) and _is_foreign(container):
        present = _contents(container)
        for name in present.keys() - contents.keys():
            delattr(container, name)
        for name, value in contents.items():
            if present.get(name, Mark.MISSING) is not value:
                setattr(container, name, value)
    elif isinstance(contents, dict):
        entries = _entries(container)
        _base(entries).clear(entries)
        for key, value in contents.items():
            _base(entries).__setitem__(entries, key, value)
    elif isinstance(container, (list, deque, set)):
        container.clear()
        (container.update if isinstance(container, set) else container.extend)(contents)
    elif isinstance(contents, _Generator):
        container.bit_generator.state = contents.state
    elif isinstance(contents, bytes):
        container[:] = contents
    else:
        container[...] = contents
