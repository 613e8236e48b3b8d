"""Deriving input sets from a model's own forward graph.

``torch.fx`` traces the model with every torch layer and every recurrence as a leaf; walking back from the input of a
recurrence through layers whose range is known (embeddings, dropout, LayerNorm, clamps, bounded nonlinearities) gives
the set. Anything else gives nothing: a set is derived only where it is certain, whatever the model is called with.
"""

from __future__ import annotations

import inspect
import itertools
import math
import operator
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from lightning_stable.cells import UGRNN
from lightning_stable.recurrence.forms import original_class
from lightning_stable.recurrence.registry import is_recurrent, recurrences_of
from lightning_stable.stability.inputs.sets import ActiveEntries, Box, FiniteSet, InputSet, LayerNormOutput

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
# The values stay what they are, and features stay features.
_PACKING = (nn.utils.rnn.pack_padded_sequence, nn.utils.rnn.pad_packed_sequence)
_PASS_THROUGH = ("contiguous", "float", "double", "to", "detach", "clone", _PACKING[0])
_CLAMPS = (torch.clamp, torch.clip, "clamp", "clip")
_INPLACE_OPERATORS = {f"i{name}" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")}
# With more ways to call a model than this, nothing is derived.
_MAX_TRACES = 16
_GIVEN = object()


def derive_input_sets(model: nn.Module, training: bool | None = None, state_bound: float = 1.0) -> dict[str, InputSet]:
    """Input sets of the recurrent modules of ``model`` whose inputs are certainly bounded, by module name.

    A model that cannot be traced gives an empty mapping. A recurrent module is left out if it is called with
    different inputs, or if its inputs depend on an optional argument or on the mode (training covers evaluation).

    Args:
        model: The model; it is not changed.
        training: Whether dropout is active; None asks each dropout layer.
        state_bound: States given to a recurrence below have entries of at most this size.
    """
    if is_recurrent(model):
        return {}
    modes = (True, False) if (model.training if training is None else training) else (False,)
    found: dict[str, InputSet | None] = {}
    for mode, arguments in itertools.product(modes, _argument_choices(model)):
        graph = _trace(model, mode, arguments)
        if graph is None:
            return {}
        for name, known in _Walk(model, graph, training, state_bound).input_sets().items():
            found[name] = known if _agree(known, found.get(name, known)) else None
    return {name: known for name, known in found.items() if known is not None}


def _agree(one: InputSet | None, other: InputSet | None) -> bool:
    def same(a: Any, b: Any) -> bool:
        if not isinstance(a, Tensor) or not isinstance(b, Tensor):
            return a is b or bool(a == b)
        return a is b or (not isinstance(a, nn.Parameter) and torch.equal(a, b))

    if one is None or other is None or type(one) is not type(other):
        return False
    return all(same(value, vars(other)[name]) for name, value in vars(one).items())


class _Proxy(fx.Proxy):
    """Records ``x += y`` as what it is; by itself Python would make it ``x = x + y``."""


for _name in _INPLACE_OPERATORS:
    _function = getattr(operator, _name)
    setattr(_Proxy, f"__{_name}__", lambda x, y, f=_function: x.tracer.create_proxy("call_function", f, (x, y), {}))


class _LeafTracer(fx.Tracer):
    # Otherwise in-place updates of buffers would be executed instead of recorded.
    proxy_buffer_attributes = True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_recurrent(m) or super().is_leaf_module(m, module_qualified_name)


def _argument_choices(model: nn.Module) -> list[dict[str, Any]]:
    """The ways to call a model that its control flow may tell apart: optional arguments left out, given, or flags."""
    try:
        defaults = {name: p.default for name, p in inspect.signature(model.forward).parameters.items()}
    except (TypeError, ValueError):
        return []
    options = [name for name, default in defaults.items() if default is None or isinstance(default, bool)]
    if 2 ** len(options) > _MAX_TRACES:
        return []
    choices = [(None, _GIVEN) if defaults[name] is None else (False, True) for name in options]
    calls = [dict(zip(options, values, strict=True)) for values in itertools.product(*choices)]
    return [{name: value for name, value in call.items() if value is not _GIVEN} for call in calls]


def _trace(model: nn.Module, mode: bool, arguments: dict[str, Any]) -> fx.Graph | None:
    # Tracing runs arbitrary user code on proxies: whatever fails, nothing is known.
    try:
        with _untouched(model), torch.random.fork_rng(devices=()):
            if mode != model.training:
                for module in model.modules():
                    module.training = mode
            return _LeafTracer(autowrap_functions=_PACKING).trace(model, concrete_args=arguments)
    except Exception:
        return None


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Whatever code keeps in attributes, buffers and containers (a carried state, a cache) is put back."""
    saved = [(module, dict(module.__dict__)) for module in model.modules()]
    for module, attributes in saved:
        module.__dict__.update({name: _scratch(value) for name, value in attributes.items()})
    try:
        yield
    finally:
        for module, attributes in saved:
            module.__dict__.clear()
            module.__dict__.update(attributes)


def _scratch(value: Any) -> Any:
    """A copy of what may be changed in place; parameters and everything else as they are."""
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        return value.detach().clone()
    if type(value) in (dict, OrderedDict):
        return type(value)((key, _scratch(item)) for key, item in value.items())
    return type(value)(value) if type(value) in (list, set) else value


class _Walk:
    """One graph of a model, walked back from the inputs of its recurrences."""

    def __init__(self, model: nn.Module, graph: fx.Graph, training: bool | None, state_bound: float) -> None:
        self.modules = dict(model.named_modules())
        self.graph, self.training, self.state_bound = graph, training, state_bound
        self.overwritten = self._overwritten()

    def input_sets(self) -> dict[str, InputSet | None]:
        """The input sets of the recurrent modules that are called; None if unknown or called more than once."""
        calls: dict[str, list[fx.Node]] = {}
        for node in self.graph.nodes:
            if node.op == "call_module" and is_recurrent(self._module(node)):
                calls.setdefault(str(node.target), []).append(node)
        return {
            name: self._fitting(self._set_of(nodes[0].args[0]), self._module(nodes[0]))
            if len(nodes) == 1 and nodes[0].args
            else None
            for name, nodes in calls.items()
        }

    @staticmethod
    def _fitting(known: InputSet | None, module: nn.Module) -> InputSet | None:
        """The set, unless transposing a single sequence has made features of its time steps."""
        if known is None or known.features is None:
            return known
        first = recurrences_of(module)[0]
        return known if not first.needs_drive or first.input_size == known.features else None

    def _module(self, node: fx.Node) -> nn.Module:
        module: nn.Module = self.modules[str(node.target)]
        return module

    def _overwritten(self) -> set[fx.Node]:
        """Values an in-place operation changes after they were computed, and whatever they may be views of."""
        found: set[fx.Node] = set()
        for node in self.graph.nodes:
            values = [node.kwargs.get("out"), node.args[0] if node.args and self._writes(node) else None]
            while values:
                value = values.pop()
                if isinstance(value, fx.Node):
                    found.add(value)
                    # The output of a layer with weights is a new tensor.
                    if value.op != "call_module" or not any(True for _ in self._module(value).parameters()):
                        values.append(value.args[0] if value.args else None)
        return found

    def _writes(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return bool(getattr(self._module(node), "inplace", False))
        if node.op not in ("call_function", "call_method") or node.kwargs.get("inplace"):
            return bool(node.kwargs.get("inplace"))
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        module = getattr(node.target, "__module__", None)
        if module == "_operator":
            return name in _INPLACE_OPERATORS
        # Functions with a positional `inplace`, like relu(x, True).
        return name.endswith("_") or (module == nn.functional.__name__ and any(arg is True for arg in node.args))

    def _set_of(self, value: Any) -> InputSet | None:
        """The set of values of a graph node along its last dimension, or None."""
        if not isinstance(value, fx.Node) or value in self.overwritten:
            return None
        node, source = value, value.args[0] if value.args else None
        if node.op == "call_module":
            return self._set_of_module(self._module(node), source)
        if node.op not in ("call_function", "call_method"):
            return None
        target = node.target
        if target in _BOUNDED_FUNCTIONS:
            return Box(*_BOUNDED_FUNCTIONS[target], label=getattr(target, "__name__", str(target)))
        if target in _CLAMPS:
            return _clamp(node)
        if target is nn.functional.one_hot:
            return ActiveEntries(1)
        if target in ("transpose", torch.transpose) and set(node.args[1:]) == {0, 1}:
            return self._set_of(source)
        if target in _PASS_THROUGH and not _rounds(node):
            return self._set_of(source)
        if target is operator.getitem and isinstance(source, fx.Node) and node.args[1] == 0:
            return self._output_set(source)
        return None

    def _set_of_module(self, module: nn.Module, source: Any) -> InputSet | None:
        if module._forward_hooks:  # they may replace the output
            return None
        if type(module) in _BOUNDED_MODULES:
            return Box(*_BOUNDED_MODULES[type(module)], label=type(module).__name__)
        if isinstance(module, nn.Hardtanh):
            return _box(module.min_val, module.max_val, "Hardtanh")
        # A weight that is computed from others would be seen as it is now, not as it will be.
        if isinstance(module, nn.Embedding) and module.max_norm is None and "weight" in module._parameters:
            return FiniteSet(module.weight, label=f"embedding table of {module.num_embeddings}")
        if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1 and "weight" in module._parameters:
            return LayerNormOutput(module.weight, module.bias, module.normalized_shape[0])
        if isinstance(module, nn.Identity):
            return self._set_of(source)
        if isinstance(module, nn.Dropout):
            inner = self._set_of(source)
            dropping = (module.training if self.training is None else self.training) and module.p > 0
            if inner is None or not dropping:
                return inner
            return inner.dropped(module.p) if module.p < 1 else None
        return None

    def _output_set(self, node: fx.Node) -> InputSet | None:
        """The output box of the bounded recurrent layers, of which ``node`` is a call."""
        module = self._module(node) if node.op == "call_module" else None
        if module is None or module._forward_hooks or node in self.overwritten:
            return None
        # A windowed form puts out states of the same run, started later.
        own = original_class(module)
        kinds = (kind for kind in (nn.RNN, nn.LSTM, nn.GRU, UGRNN) if issubclass(own, kind))
        kind = next((kind for kind in kinds if own.forward is kind.forward), None)
        tanh_rnn = kind is nn.RNN and module.nonlinearity == "tanh"
        if tanh_rnn or (kind is nn.LSTM and module.proj_size == 0):
            return Box(-1.0, 1.0, label=f"outputs of {type(module).__name__}")
        if kind in (nn.GRU, UGRNN):  # between its candidate and the state it was given
            bound = max(1.0, self.state_bound)
            return Box(-bound, bound, label=f"outputs of {kind.__name__}")
        return None


def _rounds(node: fx.Node) -> bool:
    dtypes = [value for value in (*node.args, *node.kwargs.values()) if isinstance(value, torch.dtype)]
    return any(dtype not in (torch.float32, torch.float64) for dtype in dtypes)


def _clamp(node: fx.Node) -> InputSet | None:
    bounds = dict(zip(("min", "max"), node.args[1:], strict=False)) | node.kwargs
    return _box(bounds.get("min"), bounds.get("max"), node.target if isinstance(node.target, str) else "clamp")


def _box(low: Any, high: Any, label: str) -> InputSet | None:
    numbers = isinstance(low, (int, float)) and isinstance(high, (int, float))
    if not numbers or not -math.inf < low <= high < math.inf:
        return None
    return Box(low, high, label=f"{label}({low:g}, {high:g})")
