"""Weights of which every process holds a shard: whole for a while, and back into the shards.

torch's ``fully_shard`` (FSDP2) and tensor parallelism store parameters as DTensors. Recurrent matrices are small beside
the rest of a model, so every process gathers them, computes the same on the whole, and keeps its own part of the
result. Only the gathering communicates; all processes have to take part, in the same order.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# Where each class lives, in one torch or another: what is not imported has made no object, and torch may be built
# without it.
_DTENSOR = ("torch.distributed.tensor", "torch.distributed._tensor"), "DTensor"
_FSDP2 = ("torch.distributed.fsdp", "torch.distributed._composable.fsdp"), "FSDPModule"
_FSDP1 = ("torch.distributed.fsdp",), "FullyShardedDataParallel"

LOAD_WHOLE = (
    "Load whole weights into a model that is not sharded: torch.distributed.checkpoint.state_dict.get_model_state_dict "
    "with full_state_dict=True returns them."
)

_Place = tuple[nn.Module, str, nn.Parameter]


def is_sharded(value: object) -> bool:
    """Return whether a tensor is a DTensor, of which a process may hold a part only."""
    return _is_a(value, *_DTENSOR)


def check_whole(model: nn.Module) -> None:
    """Refuse a model of which a process holds a part only.

    Raises:
        ValueError: If the model, or a part of it, is sharded.
    """
    if any(_is_a(part, *_FSDP2) for part in model.modules()) or any(map(is_sharded, model.parameters())):
        raise ValueError(f"The model must hold whole parameters to be copied. Got a sharded one. {LOAD_WHOLE}")


def whole(value: Tensor) -> Tensor:
    """Return the values of a DTensor as a plain tensor, and any other tensor as it is. A collective operation."""
    if not is_sharded(value):
        return value
    with torch.inference_mode(False), torch.no_grad():
        gathered: Tensor = value.detach().full_tensor()  # type: ignore[attr-defined]
        return gathered


def is_gathered_from(value: object, stored: Tensor) -> bool:
    """Return whether a plain tensor is, in this process's shard of ``stored``, bit for bit what is stored."""
    if not (isinstance(value, Tensor) and is_sharded(stored)) or is_sharded(value):
        return False
    if value.shape != stored.shape or value.dtype != stored.dtype:
        return False
    return torch.equal(_shard_of(value, stored).to_local(), stored.detach().to_local())  # type: ignore[attr-defined]


class Shards:
    """The sharded parameters of some modules; there are none in a model that is not sharded, and nothing is done.

    Args:
        model: The model. What ``fully_shard`` has gathered for a forward is given up, so no forward may be on its way.
        modules: Modules inside it.

    Raises:
        ValueError: If the model is wrapped in FullyShardedDataParallel (FSDP1).
    """

    def __init__(self, model: nn.Module, modules: Collection[nn.Module]) -> None:
        for part in model.modules():
            if _is_a(part, *_FSDP1):
                raise ValueError(
                    "The parameters of a sharded model must be DTensors, as torch.distributed.fsdp.fully_shard makes "
                    "them. Got a model wrapped in FullyShardedDataParallel, which flattens them."
                )
            if _is_a(part, *_FSDP2):
                part.reshard()  # type: ignore[operator]
        self._places: list[_Place] = [
            (part, name, value)
            for module in modules
            for part in module.modules()
            for name, value in part._parameters.items()
            if value is not None and is_sharded(value)
        ]
        self._is_gathered = False

    def of(self, modules: Collection[nn.Module]) -> Shards:
        """Return the shards of some of the modules."""
        if not self._places:
            return self
        parts = {id(part) for module in modules for part in module.modules()}
        chosen = Shards(nn.Module(), ())
        chosen._places = [place for place in self._places if id(place[0]) in parts]
        return chosen

    def __bool__(self) -> bool:
        """Whether any parameter is sharded."""
        return bool(self._places)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Put whole parameters in the place of the sharded ones inside the block, and keep what was written to them.

        A collective operation. If the block fails, nothing is kept.
        """
        if not self._places or self._is_gathered:
            yield
            return
        stored = {id(value): value for *_, value in self._places}
        with torch.inference_mode(False):
            full = {key: nn.Parameter(whole(value), value.requires_grad) for key, value in stored.items()}
        versions = {key: value._version for key, value in full.items()}
        before = [part._parameters[name] for part, name, _ in self._places]
        self._is_gathered = True
        try:
            with _placed([(part, name, full[id(value)]) for part, name, value in self._places]):
                yield
        finally:
            self._is_gathered = False
        written = [key for key, value in full.items() if value._version != versions[key]]
        with torch.no_grad():
            for key in written:
                stored[key].copy_(_shard_of(full[key], stored[key]))
            for (*_, value), current in zip(self._places, before, strict=True):
                # What a forward on its way has gathered is in use.
                if id(value) in written and current is not None and current is not value:
                    current.copy_(full[id(value)])

    @contextmanager
    def stored(self) -> Iterator[None]:
        """Put the stored parameters in place inside the block, also where a forward has gathered them."""
        if self._is_gathered:
            yield
            return
        with _placed(self._places):
            yield


@contextmanager
def as_written(model: nn.Module) -> Iterator[None]:
    """Take off inside the block what ``fully_shard`` lays over a model: its classes, and its hooks around forwards."""
    parts = [part for part in model.modules() if _is_a(part, *_FSDP2)]
    classes = [part.__class__ for part in parts]
    hooks = [held for part in model.modules() for held in (part._forward_pre_hooks, part._forward_hooks)]
    before = [dict(held) for held in hooks] if parts else []
    try:
        for part in parts:
            part.__class__ = part.__class__.__mro__[2]  # as fully_shard made it: (its own, FSDPModule, the model's)
        for held, every in zip(hooks, before, strict=False):
            for key, hook in every.items():
                if getattr(hook, "__module__", "").startswith("torch.distributed."):
                    del held[key]
        yield
    finally:
        for part, kind in zip(parts, classes, strict=True):
            part.__class__ = kind
        for held, every in zip(hooks, before, strict=False):
            held.clear()
            held.update(every)


@contextmanager
def _placed(places: Collection[_Place]) -> Iterator[None]:
    """Put parameters in their places inside the block. torch's layers follow an assignment with lists of their own."""
    before = [(part, name, part._parameters[name]) for part, name, _ in places]
    try:
        for part, name, value in places:
            setattr(part, name, value)
        yield
    finally:
        for part, name, other in before:
            setattr(part, name, other)


def _shard_of(value: Tensor, like: Tensor) -> Any:
    """Return a whole tensor as a DTensor that lies as another one does; nothing is communicated."""
    package = next(sys.modules[name] for name in _DTENSOR[0] if hasattr(sys.modules.get(name), "DTensor"))
    mesh, everywhere = like.device_mesh, package.Replicate()  # type: ignore[attr-defined]
    whole_everywhere = package.DTensor.from_local(value.detach(), mesh, [everywhere] * mesh.ndim, run_check=False)
    return whole_everywhere.redistribute(mesh, like.placements)  # type: ignore[attr-defined]


def _is_a(value: object, modules: tuple[str, ...], name: str) -> bool:
    kinds = (getattr(sys.modules.get(module), name, None) for module in modules)
    return any(isinstance(value, kind) for kind in kinds if isinstance(kind, type))
