"""Tracing ``forward`` once, with every torch layer and every recurrence as a leaf, and noticing where a trace lies.

A traced value stands for every value, so whatever Python code learns from it is wrong for some. Values therefore refuse
to be looked at; what they cannot notice is found in the bytecode of the functions that run (:mod:`bytecode`), in the
functions of torch that are called on real tensors, and in the states of the random generators of Python and NumPy.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable
from types import MethodDescriptorType
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import PackedSequence

from lightning_stable.copying import compiled_original
from lightning_stable.recurrence.registry import is_recurrent
from lightning_stable.stability.inputs.tracing.effects import FACTORIES
from lightning_stable.stability.inputs.tracing.generators import (
    equal_numbers,
    equal_states,
    random_states,
    set_random_states,
)
from lightning_stable.stability.inputs.tracing.memory import Memory, State
from lightning_stable.stability.inputs.tracing.modules import is_torchs
from lightning_stable.stability.inputs.tracing.real_tensors import RealTensors
from lightning_stable.stability.inputs.tracing.refusal import Refusal
from lightning_stable.stability.inputs.tracing.user_code import UserCode, raised_by_user
from lightning_stable.stability.inputs.tracing.values import TENSOR_PROPERTIES, Value

# Functions in Python or of Python that take traced values: recorded as they are called, not traced through.
_WRAPPED = (
    *(nn.utils.rnn.pack_padded_sequence, nn.utils.rnn.pad_packed_sequence),
    *(math.sqrt, math.log, math.exp, math.ceil, math.floor),
    *(*FACTORIES, torch.as_tensor),
)


class Call(NamedTuple):
    """A way to call a model that its control flow may tell apart.

    Attributes:
        training: The mode every module is in; None leaves each as it is.
        grad: Whether gradients are recorded.
        flags: Values of arguments with a boolean default.
        absent: Names of the arguments, and of what is taken from arguments, that are None.
        denied: Answers to ``isinstance`` that are False, as sentences.
    """

    training: bool | None = None
    grad: bool = True
    flags: tuple[tuple[str, bool], ...] = ()
    absent: frozenset[str] = frozenset()
    denied: frozenset[str] = frozenset()


class Outcome(NamedTuple):
    """What one trace shows.

    Attributes:
        sources: Names of the values that a caller may leave out or give as None.
        asked: Answers to ``isinstance`` that may as well be False, as sentences.
        state: What the next call finds.
        result: What was read from the graph.
    """

    sources: set[str]
    asked: set[str]
    state: State
    result: Any


class _Tracer(fx.Tracer):
    # Otherwise in-place updates of buffers would be executed instead of recorded.
    proxy_buffer_attributes = True

    def __init__(self, memory: Memory, call: Call, state: State, code: UserCode) -> None:
        super().__init__()
        # Also where they are called as functions of their module.
        self._autowrap_search = [nn.utils.rnn, math, torch]
        self._autowrap_function_ids = {id(function) for function in _WRAPPED}
        self.memory, self.call, self.state, self.code = memory, call, state, code
        self.absent = call.absent
        self.refusal: Refusal | None = None
        # Values that were given or kept, and what was taken from them: they may be anything.
        self.opaque: dict[fx.Node, str] = {}
        self.sources: set[str] = set()
        self.asked: set[str] = set()
        self.before: list[Any] = []

    def refuse(self, reason: str) -> Refusal:
        """Remember a refusal: the code that is traced may swallow the exception."""
        self.refusal = self.refusal or Refusal(reason)
        return self.refusal

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Value(node, self)

    def class_of(self, value: fx.Proxy, asked: Any) -> type | None:
        """What a value answers if it is asked whether it is an ``asked``; None where nothing can be said."""
        with self.code.paused():
            node = value.node
            module = self.root.get_submodule(str(node.target)) if node.op == "call_module" else None
            if module is not None and any(is_torchs(module, kind) for kind in (nn.RNN, nn.LSTM, nn.GRU)):
                return tuple
            if asked is not Tensor and (asked is not PackedSequence or node in self.opaque):
                return None
            answer = f"{node.name} is a {asked.__name__}"
            self.asked.add(answer)
            return object if answer in self.call.denied else asked

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        with self.code.paused():
            return is_recurrent(m) or super().is_leaf_module(m, module_qualified_name)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        # torch hands some methods of real tensors on as functions.
        if isinstance(target, MethodDescriptorType) and issubclass(Tensor, target.__objclass__):
            kind, target = "call_method", target.__name__
        with self.code.paused():
            return self._proxy_of(super().create_proxy(kind, target, args, kwargs, *rest, **more), kind, target, args)

    def _proxy_of(self, proxy: Any, kind: str, target: Any, args: Any) -> Any:
        first = proxy.node.args[0] if proxy.node.args else None
        if not isinstance(first, fx.Node) or first not in self.opaque:
            return proxy
        if target is getattr and args[1] not in TENSOR_PROPERTIES:
            self.opaque[proxy.node] = f"{self.opaque[first]}.{args[1]}"
        # A key may lead to anything; a slice of a tensor is a tensor, and so is what its methods return.
        taken = target is operator.getitem and isinstance(proxy.node.args[1], (int, str))
        if taken or (kind == "call_method" and not hasattr(Tensor, target)):
            name = f"{self.opaque[first]}.{target if kind == 'call_method' else ''}{proxy.node.args[1:]}"
            return self._opaque(proxy, name)
        return proxy

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        positional: list[Any] = [self.root]
        keywords: dict[str, Any] = {}
        flags = dict(self.call.flags)
        for name, parameter in list(inspect.signature(root_fn).parameters.items())[1:]:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            value = flags[name] if name in flags else self._placeholder(name)
            if parameter.kind is parameter.KEYWORD_ONLY:
                keywords[name] = value
            else:
                positional.append(value)
        self.memory.install(self.state, lambda name: self._placeholder(f"kept_{name}"))
        self.before = self.memory.read()

        def forward() -> Any:
            with self.code:
                return root_fn(*positional, **keywords)

        return forward, []

    def _placeholder(self, name: str) -> Any:
        target = name if name.isidentifier() else "kept"
        return self._opaque(super().create_proxy("placeholder", target, (), {}), name)

    def _opaque(self, proxy: Any, name: str) -> Any:
        self.opaque[proxy.node] = name
        self.sources.add(name)
        return None if name in self.absent else proxy


class Tracing:
    """Traces of one model, which is as it was after each of them.

    Args:
        model: The model.

    Attributes:
        code: The user code that has run.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._memory = model, Memory(model)
        self.code = UserCode(self._memory)
        self._modules, self._parameters = list(model.modules()), list(model.parameters())
        originals = ((module, compiled_original(module)) for module in self._modules)
        self._compiled = [(module, original) for module, original in originals if original is not None]
        self._random = random_states()

    def trace(self, call: Call, state: State, read: Callable[[fx.Graph], Any]) -> Outcome:
        """Trace one call.

        Args:
            call: How the model is called.
            state: What earlier calls have left.
            read: Called with the graph while the model is still as the call has left it.

        Raises:
            Refusal: If the trace does not show what a call does.
        """
        tracer = _Tracer(self._memory, call, state, self.code)
        real = RealTensors(tracer.refuse, self.code, self._parameters)
        self.code.refuse = tracer.refuse
        try:
            for module in self._modules:
                vars(module)["training"] = module.training if call.training is None else call.training
                # Compiled code cannot be traced, and does what `forward` does.
                if "_compiled_call_impl" in vars(module):
                    vars(module)["_compiled_call_impl"] = None
            for module, original in self._compiled:
                vars(module)["forward"] = original
            graph = self._graph(tracer, real)
            result = read(graph)
            after = self._memory.state_after(tracer.before, state)
        finally:
            self._memory.restore()
            with torch.no_grad():
                real.restore()
            states = random_states()
            if not equal_states(self._random, states):
                set_random_states(self._random)
        if not equal_numbers(self._random, states):
            tracer.refuse("`forward` draws random numbers, which change its course from call to call")
        if tracer.refusal is not None:
            raise tracer.refusal
        return Outcome(tracer.sources, tracer.asked, after, result)

    def _graph(self, tracer: _Tracer, real: RealTensors) -> fx.Graph:
        """The graph; of a call that fails as far as it gets."""
        try:
            with torch.set_grad_enabled(tracer.call.grad), real:
                graph = tracer.trace(self._model)
        except Refusal:
            raise
        except Exception as error:
            if tracer.refusal is None and not _fails_by_itself(error, tracer.call):
                message = str(error).partition("\n")[0]
                raise Refusal(f"`forward` cannot be traced ({type(error).__name__}: {message})") from None
            graph = tracer.graph
        if tracer.refusal is not None:
            raise tracer.refusal
        return graph


def _fails_by_itself(error: Exception, call: Call) -> bool:
    """Whether a real call would fail as well: the model raised the error itself, or something was None."""
    return (bool(call.absent) and "NoneType" in str(error)) or raised_by_user(error)
