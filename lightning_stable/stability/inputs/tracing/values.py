"""Stand-ins for tensors that record what is done to them and refuse to be looked at."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from torch import fx

from lightning_stable.stability.inputs.tracing.bytecode import asked_class, calls_method, instruction, reads_attribute
from lightning_stable.stability.inputs.tracing.effects import INPLACE_OPERATORS
from lightning_stable.stability.inputs.tracing.frames import asking, trusted, where

# What fx keeps in a proxy.
_NAMES_OF_FX = {"node", "tracer", "root", "attr", "_node"}

# What is read from a tensor alone. (What other objects keep under these names is a tensor or no concern.)
TENSOR_PROPERTIES = {
    *("shape", "dtype", "device", "ndim", "T", "mT", "H", "mH", "is_cuda", "requires_grad", "layout", "is_leaf"),
    *("itemsize", "nbytes", "is_sparse", "real", "imag"),
}


class Value(fx.Proxy):
    """A traced value that records what is done to it and refuses to be looked at."""

    tracer: Any  # with `refuse` and `class_of`, and with `opaque`, `sources` and `absent` names of values

    def __getattribute__(self, name: str) -> Any:
        frame = sys._getframe(1)
        if name == "__class__":
            if not trusted(frame := asking(frame)):
                kind = self.tracer.class_of(self, asked_class(frame))
                return kind or _refuse(self, frame, "looks at the type of a value")
        elif name != "__torch_function__" and not trusted(frame):  # torch asks for that one on behalf of any frame
            if not reads_attribute(frame):
                _refuse(self, frame, f"asks a value for `{name}` through `hasattr` or `getattr`")
            if name == "keys" or name in _NAMES_OF_FX:  # tensors have none of them
                return self._attribute(name, frame)
        return super().__getattribute__(name)

    def __getattr__(self, name: str) -> Any:
        return self._attribute(name, sys._getframe(1))

    def _attribute(self, name: str, frame: FrameType) -> Any:
        if name not in TENSOR_PROPERTIES and not trusted(frame) and not calls_method(frame):
            source = self.tracer.opaque.get(self.node)
            if source is not None:
                source = f"{source}.{name}"
                self.tracer.sources.add(source)
                if source in self.tracer.absent:
                    return None
        return Attribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _NAMES_OF_FX or not trusted(sys._getframe(1)):
            _refuse(self, sys._getframe(1), f"sets the attribute `{name}` of a value")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        _refuse(self, sys._getframe(1), f"deletes the attribute `{name}` of a value")

    def __hash__(self) -> int:
        if not trusted(sys._getframe(1)):
            _refuse(self, sys._getframe(1), "looks a value up in a dict or a set")
        return object.__hash__(self)

    def __iter__(self) -> Iterator[Any]:
        frame = sys._getframe(1)
        name, length = instruction(frame)
        if name != "UNPACK_SEQUENCE":
            _refuse(self, frame, "iterates over a value")
        return iter([self.tracer.create_proxy("call_function", operator.getitem, (self, i), {}) for i in range(length)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def __delitem__(self, key: Any) -> None:
        self.tracer.create_proxy("call_function", operator.delitem, (self, key), {})


class Attribute(Value, fx.proxy.Attribute):
    """An attribute of a traced value; it becomes part of the graph when it is used."""


def _refuse(value: Value, frame: FrameType | None, what: str) -> Any:
    raise value.tracer.refuse(f"{where(frame)} {what}")


def _refusing(what: str) -> Callable[..., Any]:
    return lambda self, *args: _refuse(self, sys._getframe(1), what)


for _what, _names in {
    "branches on a value": ("bool",),
    "takes the length of a value": ("len", "length_hint"),
    "looks for something in a value by `in`": ("contains",),
    "makes a number of a value": ("int", "float", "complex", "index"),
    "makes text of a value": ("repr", "str", "format"),
    "copies a value": ("copy", "deepcopy", "reduce", "reduce_ex"),
    "lists what a value has": ("dir",),
}.items():
    for _name in _names:
        setattr(Value, f"__{_name}__", _refusing(_what))

# By itself Python would make ``x += y`` to ``x = x + y``.
for _name in INPLACE_OPERATORS:
    _function_of = getattr(operator, _name)
    setattr(Value, f"__{_name}__", lambda x, y, f=_function_of: x.tracer.create_proxy("call_function", f, (x, y), {}))
