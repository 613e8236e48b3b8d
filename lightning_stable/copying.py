"""Copies of a model, what its attributes hold, and a model in evaluation mode for a while."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_stable.sharded import check_whole

ModuleT = TypeVar("ModuleT", bound=nn.Module)
KindT = TypeVar("KindT")


def copied(module: ModuleT, shared: Mapping[int, Any] | None = None) -> ModuleT:
    """Return a deep copy that runs its own layers, with tensors that have a history detached.

    Torch deep-copies leaf tensors only, and a carried state that the next step detaches is none. A module compiled in
    place, by ``Module.compile`` or ``module.forward = torch.compile(module.forward)``, would keep calling the layers of
    the original; its copy runs uncompiled.

    Args:
        module: The module; it is not changed.
        shared: What the copy shares with it instead, by ``id``.

    Raises:
        ValueError: If the module is sharded.
    """
    check_whole(module)
    with _Detaching():
        twin = copy.deepcopy(module, dict(shared or {}))
    for part in twin.modules():
        part._compiled_call_impl = None
        if has_compiled_forward(part):
            del part.forward
    return twin


class _Detaching(TorchFunctionMode):
    """Deep-copies tensors with a history as their values, wherever a copy meets them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))


def has_compiled_forward(module: nn.Module) -> bool:
    """Return whether ``forward`` of the instance is ``torch.compile(module.forward)``, and no other replacement."""
    method = vars(module).get("forward")
    while isinstance(method, FunctionType) and f"{os.sep}torch{os.sep}_dynamo{os.sep}" in method.__code__.co_filename:
        method = getattr(method, "_torchdynamo_orig_callable", getattr(method, "__wrapped__", None))
    return isinstance(method, MethodType) and method.__func__ is type(module).forward


def compiled_original(module: nn.Module) -> nn.Module | None:
    """Return the module that ``torch.compile(module)`` wraps and whose calls it makes; None for any other module."""
    kind = type(module)
    if kind.__name__ != "OptimizedModule" or not kind.__module__.startswith("torch._dynamo"):  # slow to import
        return None
    original, forward = vars(module)["_modules"]["_orig_mod"], vars(module).get("forward")
    compiled = getattr(forward, "_torchdynamo_orig_callable", None)
    # Of torch's own layers the call is wrapped once more, in a function of torch's.
    called = inspect.getclosurevars(compiled).nonlocals.get("fn") if isinstance(compiled, FunctionType) else compiled
    is_call = isinstance(called, MethodType) and called.__func__ is nn.Module.__call__ and called.__self__ is original
    return original if called is original or is_call else None


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode inside the block; each of its parts gets its own mode back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def parts_of(kind: type[KindT], structure: Any) -> Iterator[KindT]:
    """Yield all objects of a kind in a structure of tuples, lists, sets and mappings."""
    pending, seen = [structure], set()
    while pending:
        part = pending.pop()
        if isinstance(part, kind):
            yield part
        elif isinstance(part, (Mapping, tuple, list, set, frozenset)) and id(part) not in seen:  # it may contain itself
            seen.add(id(part))
            pending.extend(part.values() if isinstance(part, Mapping) else part)
