"""What a trace does to real tensors, which it executes instead of recording."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property

from lightning_stable.stability.inputs.tracing.effects import writes
from lightning_stable.stability.inputs.tracing.frames import where
from lightning_stable.stability.inputs.tracing.refusal import Refusal
from lightning_stable.stability.inputs.tracing.user_code import UserCode

# Functions that carry a number from a tensor to Python.
_READS = {
    *("item", "tolist", "numpy", "equal", "allclose", "is_nonzero", "__bool__", "__float__", "__int__", "__index__"),
    *("__complex__", "__contains__", "__array__", "__repr__", "__format__", "__str__"),
}
_HISTORY = (Tensor.grad, Tensor._version)
_GRAD = (Tensor.requires_grad, Tensor.grad_fn, Tensor.is_leaf)


class RealTensors(TorchFunctionMode):
    """Watches what is done to real tensors during a trace, and undoes it.

    Args:
        refuse: Called with a reason where the trace cannot be followed; what it returns is raised.
        code: Told when something depends on whether gradients are recorded.
        parameters: Parameters of the model.
    """

    def __init__(self, refuse: Callable[[str], Refusal], code: UserCode, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self._refuse, self._code = refuse, code
        self._parameters = [(p, p.requires_grad, dict(vars(p))) for p in parameters]
        self._written: list[tuple[Tensor, Tensor, Tensor, bool]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = _flat((args, kwargs))
        if not any(isinstance(value, fx.Proxy) for value in tensors):
            name = getattr(func, "__name__", "")
            if name in _READS or (name == "__get__" and func.__self__ in _HISTORY):
                raise self._refuse(
                    f"{where(sys._getframe(1))} reads from a tensor what changes from call to call (`{name}`)"
                )
            if name == "__get__" and func.__self__ in _GRAD:
                self._code.asks_grad = True
            if kwargs.get("generator") is not None:
                raise self._refuse(f"{where(sys._getframe(1))} draws random numbers")
            if writes(name if is_tensor_method_or_property(func) else func, args, kwargs):
                self._written += [(t, t.data, t.detach().clone(), self._holds_parameter(t)) for t in tensors]
        return func(*args, **kwargs)

    def restore(self) -> None:
        """Undo what was written; a parameter that has changed is a refusal."""
        for tensor, memory, values, is_parameter in reversed(self._written):
            if is_parameter and not torch.equal(tensor.data, values):
                self._refuse("`forward` changes a parameter")
            # Memory that several entries share cannot be copied to, and cannot have been written.
            with suppress(RuntimeError):
                memory.copy_(values)
            tensor.data = memory
        for parameter, requires_grad, attributes in self._parameters:
            if parameter.requires_grad != requires_grad or not _same(vars(parameter), attributes):
                self._refuse("`forward` changes the attributes of a parameter")
                parameter.requires_grad_(requires_grad)
                vars(parameter).clear()
                vars(parameter).update(attributes)

    def _holds_parameter(self, tensor: Tensor) -> bool:
        memory = tensor.untyped_storage().data_ptr()
        return any(p.untyped_storage().data_ptr() == memory for p, *_ in self._parameters)


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(value is other[name] for name, value in one.items())


def _flat(value: Any) -> list[Any]:
    """The tensors and traced values in nested arguments."""
    if isinstance(value, (Tensor, fx.Proxy)):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [tensor for item in items for tensor in _flat(item)]
