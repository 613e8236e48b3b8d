"""Deriving input sets from what ``forward`` does.

``torch.fx`` traces the model with every torch layer and every recurrence as a leaf; walking back from the input of a
recurrence through layers whose range is known (embeddings, dropout, LayerNorm, clamps, bounded nonlinearities) gives
the set. The model is traced in every way its control flow may tell apart: in both modes, with and without gradients,
with flags either way, with optional arguments given and left out, with either answer to whether a value is a tensor,
and as earlier calls may have left it. All traces must agree, and what a trace cannot follow is refused with a reason.

A derived set is not a declared one, because no trace sees everything. It is wrong, and only the check of the inputs in
a run notices, where

* something else than ``forward`` calls the recurrence (a ``training_step`` that goes past it), or changes the model's
  attributes between calls;
* a single sequence without a batch, with as many steps as features, is transposed by ``transpose(0, 1)``;
* an argument with a boolean default is given something else than a flag;
* Python reads what no trace has: the clock, environment variables, files, the internals of ``torch.fx``, or an object,
  a module or a global variable that other code changes;
* something is kept where no trace looks: in objects of the standard library (thread-local variables, queues, caches of
  functions), in compiled extensions, or by hooks and functions inside a layer of torch that is not on the way.
"""

from __future__ import annotations

import inspect
import itertools
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn

from lightning_stable.copying import compiled_original
from lightning_stable.recurrence.registry import is_recurrent
from lightning_stable.stability.inputs.sets import InputSet
from lightning_stable.stability.inputs.tracing.bytecode import uses
from lightning_stable.stability.inputs.tracing.memory import Entry, Mark, State, same
from lightning_stable.stability.inputs.tracing.modules import global_obstacle, obstacle
from lightning_stable.stability.inputs.tracing.refusal import Refusal
from lightning_stable.stability.inputs.tracing.trace import Call, Outcome, Tracing
from lightning_stable.stability.inputs.tracing.user_code import UserCode
from lightning_stable.stability.inputs.tracing.walk import Answer, Walk, agree

# With more ways to call a model than this, nothing is derived.
_MAX_TRACES = 128


class Derivation(NamedTuple):
    """What is known about the inputs of a model's recurrent modules without being told.

    Attributes:
        sets: Input sets by module name, with the guarantee ``"derived"``.
        reasons: For every recurrent module without a set a sentence: what stood in the way and what to declare.
    """

    sets: dict[str, InputSet]
    reasons: dict[str, str]


def derive(model: nn.Module, training: bool | None = None, state_bound: float = 1.0) -> Derivation:
    """Derive the input sets of the recurrent modules of ``model``; the model is not changed.

    Args:
        model: The model.
        training: Whether dropout is active (training covers evaluation); None asks each dropout layer.
        state_bound: States given to a recurrence below have entries of at most this size.
    """
    if (original := compiled_original(model)) is not None:
        return _inside("_orig_mod", derive(original, training, state_bound))
    names = _recurrent_names(model)
    answers: Mapping[str, Answer]
    try:
        answers = _answers(model, training, state_bound)
    except Refusal as refusal:
        answers = dict.fromkeys(names, refusal)
    except Exception as error:  # of any object that a model may hold
        answers = dict.fromkeys(names, Refusal(f"the model cannot be looked at ({type(error).__name__}: {error})"))
    sets = {name: value for name, value in answers.items() if isinstance(value, InputSet)}
    for value in sets.values():
        value.guarantee = "derived"
    never = Refusal("`forward` never calls it")
    reasons = {
        name: f"No inputs of {name or 'the model'!r} are derived: {answers.get(name, never)}; declare `input_bound`."
        for name in names
        if name not in sets
    }
    return Derivation(sets, reasons)


def _inside(name: str, derivation: Derivation) -> Derivation:
    """The same with the names that the modules have one level up."""

    def outside(key: str) -> str:
        return f"{name}.{key}".removesuffix(".")

    sets = {outside(key): value for key, value in derivation.sets.items()}
    return Derivation(sets, {outside(key): reason for key, reason in derivation.reasons.items()})


def derive_input_sets(model: nn.Module, training: bool | None = None, state_bound: float = 1.0) -> dict[str, InputSet]:
    """The sets of :func:`derive`."""
    return derive(model, training, state_bound).sets


def _recurrent_names(model: nn.Module) -> list[str]:
    """Names of the outermost recurrent modules."""
    names: list[str] = []
    for name, module in model.named_modules():
        if is_recurrent(module) and not any(outer == "" or name.startswith(f"{outer}.") for outer in names):
            names.append(name)
    return names


def _answers(model: nn.Module, training: bool | None, state_bound: float) -> dict[str, Answer]:
    """What every trace of the model agrees on, by the name of a recurrent module."""
    if is_recurrent(model):
        raise Refusal("the model is a recurrence itself, and nothing comes before it")
    reason = global_obstacle() or obstacle(model)
    if reason is not None:
        raise Refusal(reason)
    answers: dict[str, Answer] = {}
    for trace in _traces(model, training, state_bound):
        answers |= {name: _joined(answers.get(name, answer), answer) for name, answer in trace.items()}
    return answers


def _joined(one: Answer, other: Answer) -> Answer:
    """What two traces say about the same inputs: a set if both say the same one."""
    if isinstance(one, Refusal) or isinstance(other, Refusal):
        return one if isinstance(one, Refusal) else other
    return one if agree(one, other) else Refusal("its inputs depend on how `forward` is called")


def _traces(model: nn.Module, training: bool | None, state_bound: float) -> Iterator[dict[str, Answer]]:
    """Trace every call from every state in which calls leave the model."""
    tracing = Tracing(model)
    dropping = {module for module in model.modules() if (module.training if training is None else training)}
    optional, flags = _arguments(model)
    if 2 ** len(flags) > _MAX_TRACES:
        raise _too_many()
    choices = itertools.product((False, True), repeat=len(flags))
    ways = itertools.product(_modes(model, training), choices)
    calls = [Call(mode, flags=tuple(zip(flags, values, strict=True))) for mode, values in ways]
    agenda = _Agenda(calls, optional)
    while (following := agenda.following()) is not None:
        state, call = following
        outcome = tracing.trace(call, state, lambda graph: Walk(model, graph, dropping, state_bound).input_sets())
        agenda.learn(outcome, tracing.code)
        yield outcome.result


def _too_many() -> Refusal:
    return Refusal(f"there are more than {_MAX_TRACES} ways to call `forward` that its control flow may tell apart")


class _Agenda:
    """Which calls are still to be traced, and from which states.

    Args:
        calls: Calls with everything given.
        optional: Names of the arguments that may be left out.
    """

    def __init__(self, calls: list[Call], optional: set[str]) -> None:
        self._calls, self._optional, self._looks = calls, optional, (False, False)
        self._states: list[State] = []
        self._constants: dict[Entry, list[Any]] = {}
        self._entered: set[tuple[int, Call]] = set()
        self._pending: deque[tuple[int, Call]] = deque()
        self._traced: list[tuple[int, Call, set[str]]] = []
        self._current: tuple[int, Call] | None = None
        self._enter_state({})

    def following(self) -> tuple[State, Call] | None:
        """The next call and the state before it; None at the end.

        Raises:
            Refusal: If there are too many.
        """
        if not self._pending:
            return None
        if len(self._traced) == _MAX_TRACES:
            raise _too_many()
        self._current = self._pending.popleft()
        return self._states[self._current[0]], self._current[1]

    def learn(self, outcome: Outcome, code: UserCode) -> None:
        """Add what follows from the trace of the last call, given what the code looks at."""
        assert self._current is not None
        self._traced.append((*self._current, outcome.sources))
        for answer in sorted(outcome.asked - self._current[1].denied):
            self._enter(self._current[0], self._current[1]._replace(denied=self._current[1].denied | {answer}))
        looks = code.tests_none, code.asks_grad
        # What the code has not looked at before concerns earlier calls as well.
        for state, call, sources in self._traced[-1:] if looks == self._looks else self._traced:
            for name in sorted(sources if code.tests_none else sources & self._optional):
                self._enter(state, call._replace(absent=call.absent | {name}))
            if code.asks_grad:
                self._enter(state, call._replace(grad=not call.grad))
        self._looks = looks
        self._enter_state(outcome.state)

    def _enter(self, state: int, call: Call) -> None:
        if (state, call) not in self._entered:
            self._entered.add((state, call))
            self._pending.append((state, call))

    def _enter_state(self, state: State) -> None:
        state = {entry: self._widened(entry, value) for entry, value in state.items()}
        if not any(_same_state(state, other) for other in self._states):
            self._states.append(state)
            for call in self._calls:
                self._enter(len(self._states) - 1, call)

    def _widened(self, entry: Entry, value: Any) -> Any:
        """The value; or any value, if the entry has had another one (a counter has ever new ones)."""
        constants = self._constants.setdefault(entry, [])
        if value is not Mark.UNKNOWN and not any(same(value, constant) for constant in constants):
            constants.append(value)
        return Mark.UNKNOWN if len(constants) > 1 else value


def _same_state(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(same(value, other[entry]) for entry, value in one.items())


def _modes(model: nn.Module, training: bool | None) -> list[bool | None]:
    """The modes in which the model may be called; None for the one it is in, if its modules differ."""
    modes: list[bool | None] = [True, False] if (model.training if training is None else training) else [False]
    mixed = any(module.training != model.training for module in model.modules())
    return [*modes, None] if mixed and model.training in modes else modes


def _arguments(model: nn.Module) -> tuple[set[str], list[str]]:
    """The arguments of ``forward`` that default to None, and those that default to a flag."""
    forward = type(model).forward
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    code = getattr(inspect.unwrap(forward), "__code__", None)
    for parameter in parameters:
        variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if variable and (code is None or uses(code, parameter.name)):
            stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**"
            raise Refusal(f"`forward` uses `{stars}{parameter.name}`, which may be anything")
    optional = {parameter.name for parameter in parameters if parameter.default is None}
    return optional, [parameter.name for parameter in parameters if isinstance(parameter.default, bool)]
