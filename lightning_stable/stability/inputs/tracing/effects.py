"""Which values of a graph may be changed in place after they were computed.

Two values that may share memory are in one class. What is not known to make a new tensor shares memory with its
arguments, and what is not known to be pure writes to them: one such operation spoils its whole class, whenever it runs.
"""

from __future__ import annotations

import builtins
import inspect
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lightning_stable.recurrence.registry import is_recurrent
from lightning_stable.stability.inputs.tracing.modules import is_all_torchs, recurrence_obstacle

INPLACE_OPERATORS = tuple(
    f"i{name}"
    for name in (
        *("add", "and", "floordiv", "lshift", "matmul", "mod", "mul", "or", "pow", "rshift", "sub", "truediv", "xor"),
    )
)
_WRITING_OPERATORS = {*INPLACE_OPERATORS, "iconcat", "setitem", "delitem", "call"}
_NOT_IN_PLACE = {"requires_grad_", "detach_", "retain_grad", "record_stream", "pin_memory", "register_hook"}
# They let memory out of sight, or change something whose name does not say so.
_IMPURE_METHODS = {
    *("numpy", "__array__", "storage", "untyped_storage", "set", "resize", "resize_as", "apply", "map", "map2"),
    *("copy", "to_dlpack", "__dlpack__", "__set__", "__delete__", "__setitem__", "__setstate__", "backward"),
}
_IMPURE_FUNCTIONS = ("batch_norm", "instance_norm", "moving_avg", "from_numpy", "frombuffer", "from_dlpack")
# Functions that make a tensor of sizes, numbers, a dtype and a device.
FACTORIES = (
    *(torch.zeros, torch.ones, torch.empty, torch.full, torch.arange, torch.eye, torch.linspace),
    *(torch.rand, torch.randn, torch.randint, torch.tensor),
)
# Functions, methods and operators that return a new tensor whatever they are given.
_FRESH = {
    *("add", "sub", "mul", "div", "truediv", "floordiv", "mod", "remainder", "pow", "matmul", "bmm", "mm", "neg"),
    *("tanh", "sigmoid", "softmax", "log_softmax", "relu", "relu6", "gelu", "silu", "exp", "log", "sqrt", "abs"),
    *("clamp", "clip", "clone", "cat", "stack", "where", "sum", "mean", "amax", "amin", "argmax", "argmin", "cumsum"),
    *("one_hot", "embedding", "linear", "layer_norm", "masked_fill", "eq", "ne", "lt", "le", "gt", "ge", "size", "dim"),
    *("cross_entropy", "zeros_like", "ones_like", "rand_like", "randn_like", "numel", "is_floating_point"),
    *("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor"),
    *(factory.__name__ for factory in FACTORIES),
}
_EMBEDDINGS = (F.embedding, F.embedding_bag)
_FRESH_MODULES = (
    *(nn.Embedding, nn.Linear, nn.Bilinear, nn.LayerNorm, nn.GroupNorm, nn.Conv1d, nn.Conv2d, nn.RNNBase),
    *(nn.RNNCellBase, nn.Tanh, nn.Sigmoid, nn.Softmax, nn.GELU, nn.Softsign, nn.Softplus, nn.LogSoftmax),
    *(nn.ReLU, nn.ReLU6, nn.ELU, nn.SiLU, nn.LeakyReLU, nn.Hardtanh, nn.Hardsigmoid),
)


def _public(names: list[str]) -> list[str]:
    return [name for name in names if not name.startswith("_") and not name.endswith("_")]


def _pure_functions() -> Iterator[Any]:
    for name in _public(operator.__all__):
        if name not in _WRITING_OPERATORS:
            yield getattr(operator, name)
    for namespace in (torch._C._VariableFunctions, F, torch.special, torch.fft, torch.linalg):
        for name in _public(dir(namespace)):
            if not any(part in name for part in _IMPURE_FUNCTIONS) and callable(getattr(namespace, name)):
                yield getattr(namespace, name)
    yield from (getattr(torch.functional, name) for name in torch.functional.__all__)
    yield from (getattr(math, name) for name in _public(dir(math)) if callable(getattr(math, name)))
    yield from (builtins.getattr, torch._assert, nn.utils.rnn.pack_padded_sequence, nn.utils.rnn.pad_packed_sequence)


def _inplace_position(function: Any) -> int | None:
    try:
        return list(inspect.signature(function).parameters).index("inplace")
    except (TypeError, ValueError):
        return None


_PURE = frozenset(_pure_functions())
_INPLACE = {f: at for f in _PURE if inspect.isfunction(f) and (at := _inplace_position(f)) is not None}


def writes(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a function, or a method of a tensor by its name, may change one of its arguments."""
    if kwargs.get("out") is not None or kwargs.get("inplace", False) is not False:
        return True
    if isinstance(target, str):
        if target in _NOT_IN_PLACE:
            return False
        dunder = target.startswith("__") and target.endswith("__")
        in_place = target[2:-2] in INPLACE_OPERATORS if dunder else target.endswith("_")
        return in_place or target in _IMPURE_METHODS or not hasattr(Tensor, "size" if target == "__get__" else target)
    try:
        position = _INPLACE.get(target)
        pure = target in _PURE
    except TypeError:  # without a hash
        return True
    renorms = target in _EMBEDDINGS and (len(args) > 3 or "max_norm" in kwargs)
    return not pure or renorms or (position is not None and len(args) > position and args[position] is not False)


def name_of(target: Any) -> str:
    """The name of a function, or of a method that is given by its name."""
    return target if isinstance(target, str) else getattr(target, "__name__", "")


def _memory(tensor: Tensor) -> int:
    """A number that tensors with the same memory have in common: a parameter and its `data`, for instance."""
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (RuntimeError, ValueError):  # a sparse tensor has no storage, a lazy one not yet
        return id(tensor)


class Effects:
    """The classes of values that may share memory in one graph, and which of them are spoiled.

    Args:
        graph: The graph.
        lookup: The module or tensor an attribute's or a module's qualified name stands for.
    """

    def __init__(self, graph: fx.Graph, lookup: Callable[[str], Any]) -> None:
        self._lookup = lookup
        self._above: dict[Any, Any] = {}
        spoiled = []
        for node in graph.nodes:
            values = [self._key(value) for value in node.all_input_nodes]
            writing, fresh, weights = self._effect(node)
            if writing:
                spoiled += [*values, *weights, self._key(node)]
            if not fresh:
                for value in values:
                    self._above[self._class(value)] = self._class(self._key(node))
        self._spoiled = {self._class(value) for value in spoiled}

    def spoiled(self, node: fx.Node) -> bool:
        """Whether the value of a node may be changed in place."""
        return self._class(self._key(node)) in self._spoiled

    def spoiled_weight(self, weight: Tensor | None) -> bool:
        """Whether ``forward`` may change a parameter in place."""
        return weight is not None and self._class(_memory(weight)) in self._spoiled

    def _class(self, value: Any) -> Any:
        while value in self._above and self._above[value] != value:
            value = self._above[value]
        return value

    def _key(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            value = self._lookup(str(node.target))
            return _memory(value) if isinstance(value, Tensor) else node if value is None else id(value)
        return node

    def _effect(self, node: fx.Node) -> tuple[bool, bool, list[int]]:
        """Whether a node writes, whether it makes a new tensor, and which weights it writes to."""
        if node.op == "call_module":
            module = self._lookup(str(node.target))
            if is_recurrent(module):
                own = type(module).__module__.startswith("lightning_stable.") or isinstance(module, _FRESH_MODULES)
                return False, own and recurrence_obstacle(module) is None, []
            writing = not is_all_torchs(module) or bool(getattr(module, "inplace", False))
            renormed = getattr(module, "max_norm", None) is not None
            weights = [_memory(p) for p in module.parameters()] if writing or renormed else []
            return writing or renormed, isinstance(module, _FRESH_MODULES) and not writing, weights
        if node.op in ("call_function", "call_method"):
            writing = writes(node.target, node.args, node.kwargs)
            return writing, not writing and name_of(node.target) in _FRESH, []
        return False, True, []
