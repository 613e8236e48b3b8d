"""Deriving input sets from a model's own forward graph.

``torch.fx`` traces the model with every torch layer and every recurrence as a leaf; walking back from the input of a
recurrence through layers whose range is known (embeddings, dropout, LayerNorm, clamps, bounded nonlinearities) gives
the set. Anything else gives nothing: a set is derived only where it is certain for this graph.
"""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
from torch import fx, nn

from lightning_stable.recurrence.registry import is_recurrent
from lightning_stable.stability.input_sets import ActiveEntries, Box, FiniteSet, InputSet, LayerNormOutput

_UNIT, _SYMMETRIC = (0.0, 1.0), (-1.0, 1.0)
_BOUNDED_MODULES: dict[type[nn.Module], tuple[float, float]] = {
    nn.Tanh: _SYMMETRIC,
    nn.Softsign: _SYMMETRIC,
    nn.Sigmoid: _UNIT,
    nn.Hardsigmoid: _UNIT,
    nn.Softmax: _UNIT,
    nn.ReLU6: (0.0, 6.0),
}
_BOUNDED_FUNCTIONS: dict[Any, tuple[float, float]] = {
    torch.tanh: _SYMMETRIC,
    nn.functional.tanh: _SYMMETRIC,
    "tanh": _SYMMETRIC,
    torch.sigmoid: _UNIT,
    nn.functional.sigmoid: _UNIT,
    "sigmoid": _UNIT,
    nn.functional.softmax: _UNIT,
    torch.softmax: _UNIT,
    "softmax": _UNIT,
    nn.functional.relu6: (0.0, 6.0),
}
# Only the order of batch and time changes, or nothing: features stay features.
_PASS_THROUGH = ("contiguous", "float", "double", "half", "bfloat16", "to", "detach", "clone", "type_as")
_CLAMPS = (torch.clamp, torch.clip, "clamp", "clip")


def derive_input_sets(model: nn.Module, training: bool | None = None) -> dict[str, InputSet]:
    """Input sets of the recurrent modules of ``model`` whose inputs are certainly bounded, by module name.

    ``training`` says whether dropout is active; None asks each dropout layer.

    A model that cannot be traced gives an empty mapping. A recurrent module that is called with different inputs is
    left out.
    """
    if is_recurrent(model):
        return {}
    graph = _trace(model)
    if graph is None:
        return {}
    modules = dict(model.named_modules())
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module" and is_recurrent(modules[str(node.target)]):
            calls.setdefault(str(node.target), []).append(node)
    found = {
        name: _set_of(nodes[0].args[0], modules, training)
        for name, nodes in calls.items()
        if len(nodes) == 1 and nodes[0].args
    }
    return {name: input_set for name, input_set in found.items() if input_set is not None}


class _LeafTracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_recurrent(m) or super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module) -> fx.Graph | None:
    parameters = inspect.signature(model.forward).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    # Tracing runs arbitrary user code on proxies: whatever fails, nothing is known, and whatever that code keeps in
    # attributes (a carried state, a cache) is put back.
    attributes = [(module, dict(module.__dict__)) for module in model.modules()]
    try:
        return _LeafTracer().trace(model, concrete_args=defaults)
    except Exception:
        return None
    finally:
        for module, saved in attributes:
            module.__dict__.clear()
            module.__dict__.update(saved)


def _set_of(value: Any, modules: dict[str, nn.Module], training: bool | None) -> InputSet | None:
    """The set of values of a graph node along its last dimension, or None."""
    if not isinstance(value, fx.Node):
        return None
    node, source = value, value.args[0] if value.args else None
    if node.op == "call_module":
        return _set_of_module(modules[str(node.target)], source, modules, training)
    if node.op not in ("call_function", "call_method"):
        return None
    target = node.target
    if target in _BOUNDED_FUNCTIONS:
        return Box(*_BOUNDED_FUNCTIONS[target], label=getattr(target, "__name__", str(target)))
    if target in _CLAMPS:
        return _clamp(node)
    if target is nn.functional.one_hot:
        return ActiveEntries(1)
    if target in _PASS_THROUGH or (target in ("transpose", torch.transpose) and set(node.args[1:]) == {0, 1}):
        return _set_of(source, modules, training)
    if target is operator.getitem and isinstance(source, fx.Node) and source.op == "call_module" and node.args[1] == 0:
        return _output_set(modules[str(source.target)])
    return None


def _set_of_module(
    module: nn.Module, source: Any, modules: dict[str, nn.Module], training: bool | None
) -> InputSet | None:
    if type(module) in _BOUNDED_MODULES:
        return Box(*_BOUNDED_MODULES[type(module)], label=type(module).__name__)
    if isinstance(module, nn.Hardtanh):
        return Box(module.min_val, module.max_val, label="Hardtanh")
    if isinstance(module, nn.Embedding) and module.max_norm is None:
        return FiniteSet(module.weight, label=f"embedding table of {module.num_embeddings}")
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        return LayerNormOutput(module.weight, module.bias, module.normalized_shape[0])
    if isinstance(module, nn.Identity):
        return _set_of(source, modules, training)
    if isinstance(module, nn.Dropout):
        inner = _set_of(source, modules, training)
        dropping = (module.training if training is None else training) and 0 < module.p < 1
        return inner.dropped(module.p) if inner is not None and dropping else inner
    return None


def _clamp(node: fx.Node) -> InputSet | None:
    bounds = dict(zip(("min", "max"), node.args[1:], strict=False)) | node.kwargs
    low, high = bounds.get("min"), bounds.get("max")
    if isinstance(low, (int, float)) and isinstance(high, (int, float)):
        return Box(low, high, label=f"clamp({low:g}, {high:g})")
    return None


def _output_set(module: nn.Module) -> InputSet | None:
    """The output box of torch's bounded recurrent layers."""
    tanh_rnn = isinstance(module, nn.RNN) and module.nonlinearity == "tanh"
    if tanh_rnn or isinstance(module, nn.GRU) or (isinstance(module, nn.LSTM) and module.proj_size == 0):
        return Box(-1.0, 1.0, label=f"outputs of {type(module).__name__}")
    return None
