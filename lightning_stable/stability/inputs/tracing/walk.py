"""Walking one graph back from the inputs of its recurrences to what bounds them."""

from __future__ import annotations

import math
import operator
from collections.abc import Set
from inspect import isfunction
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lightning_stable.cells import UGRNN, LeakyRNN, MinGRU, MinLSTM
from lightning_stable.recurrence.forms import original_class
from lightning_stable.recurrence.registry import is_recurrent, recurrences_of
from lightning_stable.stability.inputs.sets import ActiveEntries, Box, FiniteSet, InputSet, LayerNormOutput
from lightning_stable.stability.inputs.tracing.effects import Effects, name_of
from lightning_stable.stability.inputs.tracing.frames import users
from lightning_stable.stability.inputs.tracing.modules import is_torchs, obstacle, recurrence_obstacle
from lightning_stable.stability.inputs.tracing.refusal import Refusal

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
    F.tanh: _SYMMETRIC,
    "tanh": _SYMMETRIC,
    torch.sigmoid: _UNIT,
    F.sigmoid: _UNIT,
    "sigmoid": _UNIT,
    F.softmax: _UNIT,
    torch.softmax: _UNIT,
    "softmax": _UNIT,
    F.relu6: (0.0, 6.0),
}
# The values stay what they are, and features stay features.
_PASS_THROUGH = ("contiguous", "float", "double", "to", "detach", "clone", nn.utils.rnn.pack_padded_sequence)
_CLAMPS = (torch.clamp, torch.clip, "clamp", "clip")

# What is known about the inputs of a recurrent module.
Answer = InputSet | Refusal
# Cells whose state is a mean of what it was and a tanh.
_MEANS = (nn.GRU, UGRNN, LeakyRNN, MinGRU, MinLSTM)


class Walk:
    """One graph of a model, walked back from the inputs of its recurrences.

    Args:
        model: The model, in the state in which it was traced.
        graph: Its graph.
        dropping: The modules that drop entries if they are dropout layers, whatever mode was traced.
        state_bound: States given to a recurrence have entries of at most this size.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph, dropping: Set[nn.Module], state_bound: float) -> None:
        self._model, self._graph, self._dropping, self._state_bound = model, graph, dropping, state_bound
        self._modules = dict(model.named_modules())
        self._effects = Effects(graph, self._lookup)

    def input_sets(self) -> dict[str, Answer]:
        """The input sets of the recurrent modules that are called, or why there is none."""
        calls: dict[str, list[fx.Node]] = {}
        hidden: dict[str, Answer] = {}
        for node in self._graph.nodes:
            if isfunction(node.target) and users(node.target.__code__):
                raise Refusal(f"`{node.target.__name__}` is wrapped, so that no trace shows what it does")
            module = self._lookup(str(node.target)) if node.op in ("call_module", "get_attr") else None
            if node.op == "call_module" and module is not None and is_recurrent(module):
                calls.setdefault(str(node.target), []).append(node)
            elif isinstance(module, nn.Module):
                inside = set(module.modules())
                names = (name for name, inner in self._modules.items() if inner in inside and is_recurrent(inner))
                hidden |= dict.fromkeys(names, Refusal(f"{type(module).__name__} calls it out of sight"))
        return {name: self._answer(nodes) for name, nodes in calls.items()} | hidden

    def _answer(self, nodes: list[fx.Node]) -> Answer:
        node, module = nodes[0], self._lookup(str(nodes[0].target))
        try:
            if len(nodes) > 1:
                raise Refusal(f"`forward` calls it {len(nodes)} times")
            if (reason := recurrence_obstacle(module)) is not None:
                raise Refusal(reason)
            if not node.args:
                raise Refusal("its inputs are given by keyword")
            return _fitting(self._set_of(node.args[0]), module)
        except Refusal as refusal:
            return refusal

    def _lookup(self, target: str) -> Any:
        if target in self._modules:
            return self._modules[target]
        try:
            return operator.attrgetter(target)(self._model)
        except AttributeError:
            return None

    def _set_of(self, value: Any) -> InputSet:
        """The set of values of a graph node along its last dimension."""
        if not isinstance(value, fx.Node):
            raise Refusal("its inputs are no traced value")
        node, source = value, value.args[0] if value.args else None
        reason = obstacle(self._lookup(str(node.target))) if node.op == "call_module" else None
        if reason is not None:
            raise Refusal(reason)
        if self._effects.spoiled(node):
            raise Refusal("its inputs may be changed in place after they were computed")
        if node.op == "call_module":
            return self._set_of_module(self._lookup(str(node.target)), source)
        if node.op == "placeholder":
            raise Refusal(f"its inputs are an argument or are kept from an earlier call (`{node.name}`)")
        if node.op not in ("call_function", "call_method"):
            raise Refusal(f"its inputs are the tensor `{node.target}`")
        target = node.target
        if target in _BOUNDED_FUNCTIONS:
            return Box(*_BOUNDED_FUNCTIONS[target], label=name_of(target))
        if target in _CLAMPS:
            return _clamp(node)
        if target is F.one_hot:
            return ActiveEntries(1)
        if target in ("transpose", torch.transpose) and set(node.args[1:]) == {0, 1}:
            return self._set_of(source)
        if target in _PASS_THROUGH:
            _check_cast(node)
            return self._set_of(source)
        if target is operator.getitem and isinstance(source, fx.Node) and node.args[1] == 0:
            return self._output_set(source)
        raise Refusal(f"its inputs come from `{name_of(target)}`, whose values are not known to be bounded")

    def _set_of_module(self, module: Any, source: Any) -> InputSet:
        kind = type(module)
        if kind in _BOUNDED_MODULES and is_torchs(module, kind):
            return Box(*_BOUNDED_MODULES[kind], label=kind.__name__)
        if is_torchs(module, nn.Hardtanh):
            return _box(module.min_val, module.max_val, "Hardtanh")
        if is_torchs(module, nn.Embedding):
            if module.max_norm is not None:
                raise Refusal("the embedding before it renorms its table (`max_norm`)")
            label = f"embedding table of {module.num_embeddings}"
            return FiniteSet(self._weight(module), label=label, checked=False)
        if is_torchs(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
            bias = self._weight(module, "bias")
            return LayerNormOutput(self._weight(module), bias, module.normalized_shape[0])
        if is_torchs(module, nn.Identity):
            return self._set_of(source)
        if is_torchs(module, nn.Dropout):
            return self._dropped(module, self._set_of(source))
        raise Refusal(f"its inputs come from {kind.__name__}, whose outputs are not known to be bounded")

    def _weight(self, module: Any, name: str = "weight") -> Any:
        """A parameter of a layer as it is in every call."""
        # One that is computed from others would be seen as it is now, not as it will be.
        if name not in module._parameters:
            raise Refusal(f"the `{name}` of {type(module).__name__} is computed from other parameters")
        weight = module._parameters[name]
        if self._effects.spoiled_weight(weight):
            raise Refusal(f"`forward` changes the `{name}` of {type(module).__name__}")
        return weight

    def _dropped(self, module: Any, inner: InputSet) -> InputSet:
        probability = module.p
        if not isinstance(probability, (int, float)):
            raise Refusal("`forward` changes the probability of a dropout layer")
        if module not in self._dropping or probability == 0:
            return inner
        if probability >= 1:
            raise Refusal("dropout before it drops everything")
        return inner.dropped(probability)

    def _output_set(self, node: fx.Node) -> InputSet:
        """The output box of the bounded recurrent layers, of which ``node`` is a call."""
        module = self._lookup(str(node.target)) if node.op == "call_module" else None
        if module is None:
            raise Refusal("its inputs are part of a value that is not known to be bounded")
        if self._effects.spoiled(node):
            raise Refusal("its inputs may be changed in place after they were computed")
        # A windowed form (which says what it was made from) puts out states of the same run, started later.
        own, reason = original_class(module), recurrence_obstacle(module) if is_recurrent(module) else obstacle(module)
        if reason is not None:
            raise Refusal(reason)
        kinds = (kind for kind in (nn.RNN, nn.LSTM, *_MEANS) if issubclass(own, kind))
        kind = next((kind for kind in kinds if own.forward is kind.forward), None)
        tanh_rnn = kind is nn.RNN and module.nonlinearity == "tanh"
        if tanh_rnn or (kind is nn.LSTM and module.proj_size == 0):
            return Box(-1.0, 1.0, label=f"outputs of {type(module).__name__}")
        if kind in _MEANS:  # between its candidate and the state it was given
            bound = max(1.0, self._state_bound)
            return Box(-bound, bound, label=f"outputs of {kind.__name__}")
        raise Refusal(f"its inputs come from {own.__name__}, whose outputs are not known to be bounded")


def _fitting(inputs: InputSet, module: nn.Module) -> InputSet:
    """The set, unless transposing a single sequence has made features of its time steps."""
    first = recurrences_of(module)[0]
    if inputs.features is not None and first.needs_drive and first.input_size != inputs.features:
        raise Refusal(f"its inputs have {first.input_size} features and come from a layer of {inputs.features}")
    return inputs


def _check_cast(node: fx.Node) -> None:
    values = [*node.args[1:], *node.kwargs.values()]
    if any(isinstance(value, torch.dtype) and value not in (torch.float32, torch.float64) for value in values):
        raise Refusal("its inputs are rounded to a dtype of few digits")
    traced = [value for value in values if isinstance(value, fx.Node)]
    if node.target == "to" and not all(value.target is getattr and value.args[1] == "device" for value in traced):
        raise Refusal("its inputs are cast to the dtype of a traced value")


def _clamp(node: fx.Node) -> InputSet:
    bounds = dict(zip(("min", "max"), node.args[1:], strict=False)) | node.kwargs
    return _box(bounds.get("min"), bounds.get("max"), node.target if isinstance(node.target, str) else "clamp")


def _box(low: Any, high: Any, label: str) -> InputSet:
    numbers = isinstance(low, (int, float)) and isinstance(high, (int, float))
    if not numbers or not -math.inf < low <= high < math.inf:
        raise Refusal(f"`{label}` before it has no two finite bounds")
    return Box(low, high, label=f"{label}({low:g}, {high:g})")


def agree(one: InputSet, other: InputSet) -> bool:
    """Whether two sets are the same, live parameters being the same object."""

    def same(a: Any, b: Any) -> bool:
        if not isinstance(a, Tensor) or not isinstance(b, Tensor):
            return a is b or bool(a == b)
        return a is b or (not isinstance(a, nn.Parameter) and torch.equal(a, b))

    if type(one) is not type(other):
        return False
    return all(same(value, vars(other)[name]) for name, value in vars(one).items())
