"""The weights that a recurrence reads are those that its module stores, uses and saves."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_stable.recurrence.base import Recurrence
from lightning_stable.sharded import LOAD_WHOLE, is_sharded


def check_stored_weights(recurrence: Recurrence) -> None:
    """Refuse weights that are computed from others, or are not those that the module computes with.

    A certificate of such weights would speak of another moment, and changing them in place would be lost.

    Raises:
        ValueError: If a weight is parametrized, normed, sharded, no parameter or buffer, or one that torch's layer
            holds a stale copy of.
    """
    if type(recurrence).parameters is not Recurrence.parameters:
        return  # an adapter that says where its weights are
    module, values = recurrence.module, recurrence.parameters()
    for role in recurrence.roles:
        if role in ("weight_ih", "weight_hh") and role not in values:
            raise ValueError(
                f"Recurrent weights must be plain parameters. Got no {role + recurrence.suffix!r} in "
                f"{recurrence.name!r}: give the module one, or register an adapter for its class with "
                "lightning_stable.register_recurrence."
            )
    for role, value in values.items():
        name = role + recurrence.suffix
        if reason := _obstacle(module, name, value):
            raise ValueError(f"Recurrent weights must be plain parameters. Got {reason.format(recurrence.name)}.")
    _check_shapes(recurrence)


def _check_shapes(recurrence: Recurrence) -> None:
    """Refuse weights of torch's layers, and of those that build on them, which their own ``forward`` cannot use."""
    module = recurrence.module
    if not isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return
    values = recurrence.parameters()
    rows, units = len(values["weight_ih"]), int(getattr(module, "proj_size", 0) or module.hidden_size)
    first = recurrence.layer == 0
    features = int(module.input_size if first else units * (1 + bool(getattr(module, "bidirectional", False))))
    wanted = {"weight_ih": (rows, features), "weight_hh": (rows, units), "bias_ih": (rows,), "bias_hh": (rows,)}
    for role, shape in wanted.items():
        if role in values and tuple(values[role].shape) != shape:
            raise ValueError(
                f"Recurrent weights must fit together and the sizes of their module. Got {role + recurrence.suffix!r} "
                f"of shape {tuple(values[role].shape)} instead of {shape} in {recurrence.name!r}."
            )


def _obstacle(module: nn.Module, name: str, value: object) -> str:
    """Return what is wrong with a weight and what to do; empty if nothing is. The braces are for the recurrence."""
    normed = f"{name}_g" in module._parameters or f"{name}_orig" in module._parameters
    if normed or (parametrize.is_parametrized(module) and parametrize.is_parametrized(module, name)):
        return (
            f"a parametrized or normed {name!r} in {{!r}}: remove the parametrization "
            "(torch.nn.utils.parametrize.remove_parametrizations or torch.nn.utils.remove_weight_norm) first"
        )
    if value is not module._parameters.get(name) and value is not module._buffers.get(name):
        others = [key for key in module._parameters if key.startswith(name) and key != name]
        source = f", beside {others}" if others else ""
        what = "a plain tensor" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        return (
            f"{what} as {name!r} in {{!r}}{source}: store the weights in use as a parameter (compute them once, and "
            "leave out what recomputes them), or register an adapter for the class with "
            "lightning_stable.register_recurrence"
        )
    assert isinstance(value, Tensor)
    if value.layout is not torch.strided:
        return f"a {value.layout} {name!r} in {{!r}}: store it as a dense tensor"
    if is_sharded(value):
        return (
            f"a sharded {name!r} (a DTensor) in {{!r}}, of which a process holds a part: only certify, project_, "
            "record_inputs and the callbacks that project and certify gather sharded weights. "
            + LOAD_WHOLE.removesuffix(".")
        )
    if not is_used(module, name, value):
        return (
            f"{name!r} in {{!r}}, which is not the tensor in `_flat_weights`, with which torch's layer computes: "
            "assign the parameter as an attribute of the module (`module.weight = nn.Parameter(...)`); "
            "torch.func.functional_call does not reach a recurrent layer"
        )
    return ""


def is_used(module: nn.Module, name: str, value: Tensor) -> bool:
    """Return whether a module computes with a parameter: torch's layers read a list kept beside their parameters."""
    if not isinstance(module, (nn.RNN, nn.LSTM, nn.GRU)):
        return True
    names, used = module._flat_weights_names, module._flat_weights
    return name in names and len(used) == len(names) and used[names.index(name)] is value
