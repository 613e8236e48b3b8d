"""What a module does besides the ``forward`` of its class, and whose ``forward`` that is."""

from __future__ import annotations

from types import MethodType

from torch import nn
from torch.nn.modules import module as torch_module

from lightning_stable.hooks import Hook
from lightning_stable.recurrence.forms import original_class
from lightning_stable.recurrence.registry import registered_type
from lightning_stable.stability.inputs.tracing.frames import torchs

_TORCH = ("torch.nn.", "torch.ao.nn.")


def obstacle(module: nn.Module) -> str | None:
    """What may change the module's inputs or outputs and is not in its class, as a clause; None if nothing does."""
    kind = type(module).__name__
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    if any(not isinstance(hook, Hook) for hook in hooks):
        return f"{kind} has a forward hook, which may change what it is given or gives"
    # DDP's strategy in Lightning leaves the class's own there.
    if "forward" in vars(module) and vars(module)["forward"] != MethodType(type(module).forward, module):
        return f"`forward` of {kind} was replaced on the instance"
    if any(
        getattr(type(module), name) is not getattr(nn.Module, name)
        for name in ("__call__", "_call_impl", "_wrapped_call_impl")
    ):
        return f"{kind} has a `__call__` of its own"
    return None


def global_obstacle() -> str | None:
    """Hooks that run at the call of every module, as a clause; None without one."""
    if torch_module._global_forward_pre_hooks or torch_module._global_forward_hooks:
        return "a global forward hook may change what every module is given"
    return None


def is_torchs(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether the module is a ``kind`` and computes what torch's own ``kind`` computes."""
    own = type(module).forward is kind.forward and torchs(kind.forward.__code__)
    return isinstance(module, kind) and own and obstacle(module) is None


def is_all_torchs(module: nn.Module) -> bool:
    """Whether the module and everything inside it are layers of torch without additions."""
    return all(type(m).__module__.startswith(_TORCH) and obstacle(m) is None for m in module.modules())


def recurrence_obstacle(module: nn.Module) -> str | None:
    """Why the inputs of a recurrent module may not be those of its recurrence, as a clause; None if they are."""
    own, registered = original_class(module), registered_type(module)
    if registered is not None and own.forward is not registered.forward:
        return f"`forward` of {own.__name__} is not that of {registered.__name__}"
    return obstacle(module)
