"""Copies of a model, what its attributes hold, and a model in evaluation mode for a while."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any, TypeVar

from torch import Tensor, nn

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
    memo: dict[int, Any] = dict(shared or {})
    held = (value for part in module.modules() for value in parts_of(Tensor, vars(part)))
    memo |= {id(value): value.detach().clone() for value in held if not value.is_leaf and id(value) not in memo}
    twin = copy.deepcopy(module, memo)
    for part in twin.modules():
        part._compiled_call_impl = None
        if has_compiled_forward(part):
            del part.forward
    return twin


def has_compiled_forward(module: nn.Module) -> bool:
    """Return whether ``forward`` of the instance is ``torch.compile(module.forward)``, and no other replacement."""
    method = vars(module).get("forward")
    while isinstance(method, FunctionType) and f"{os.sep}torch{os.sep}_dynamo{os.sep}" in method.__code__.co_filename:
        method = getattr(method, "_torchdynamo_orig_callable", getattr(method, "__wrapped__", None))
    return isinstance(method, MethodType) and method.__func__ is type(module).forward


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
    """Yield all objects of a kind in a structure of tuples, lists and mappings."""
    pending, seen = [structure], set()
    while pending:
        part = pending.pop()
        if isinstance(part, kind):
            yield part
        elif isinstance(part, (Mapping, tuple, list)) and id(part) not in seen:  # it may contain itself
            seen.add(id(part))
            pending.extend(part.values() if isinstance(part, Mapping) else part)
