"""The adapter of every recurrent module, and the search for all recurrences of a model."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar, overload

import torch
from torch import nn

from lightning_stable import checks
from lightning_stable.cells import UGRNN, IntersectionRNN, LeakyRNN, MinGRU, MinLSTM
from lightning_stable.recurrence.base import Recurrence
from lightning_stable.recurrence.foreign import REPLACED, forward_obstacle
from lightning_stable.recurrence.forms import original_class
from lightning_stable.recurrence.gru import GRURecurrence
from lightning_stable.recurrence.input_gated import MinGRURecurrence, MinLSTMRecurrence
from lightning_stable.recurrence.intersection import IntersectionRecurrence
from lightning_stable.recurrence.leaky_rnn import LeakyRNNRecurrence
from lightning_stable.recurrence.lstm import LSTMRecurrence
from lightning_stable.recurrence.rnn import RNNRecurrence
from lightning_stable.recurrence.stored_weights import check_stored_weights
from lightning_stable.recurrence.ugrnn import UGRNNRecurrence
from lightning_stable.sharded import Shards, as_written

Factory = Callable[[nn.Module, str], Sequence[Recurrence]]
_AdapterT = TypeVar("_AdapterT", bound=type[Recurrence])
# Bases of torch's recurrent layers by name: the quantized ones share no class with the others.
_TORCH_BASES = {"RNNBase", "RNNCellBase", "LSTM", "LSTMCell"}
_REGISTRY: dict[type[nn.Module], Factory] = {}
# Classes whose `forward` wraps that of another: by declaration, not by trial.
_LIKE: dict[type[nn.Module], type[nn.Module]] = {}


@overload
def register_recurrence(module_type: type[nn.Module]) -> Callable[[_AdapterT], _AdapterT]: ...


@overload
def register_recurrence(module_type: type[nn.Module], *, like: type[nn.Module]) -> None: ...


def register_recurrence(
    module_type: type[nn.Module], *, like: type[nn.Module] | None = None
) -> Callable[[_AdapterT], _AdapterT] | None:
    """Return a class decorator through which modules of ``module_type`` get this adapter, or register a wrapper.

    The adapter is constructed as ``Adapter(module, name=...)``, one recurrence per module. A module that holds
    several layers or directions calls :func:`register_recurrence_factory` instead.

    A subclass of a registered class needs no entry of its own unless its ``forward`` does more than pass inputs and
    state to ``super().forward`` and return what that returns. With ``like`` you vouch for a ``forward`` that cannot be
    tried (it needs another argument) or acts outside the recurrence (it norms the outputs): its steps are those of
    ``like``, with the stored weights.

    Args:
        module_type: The class of the modules.
        like: The base of ``module_type`` whose ``forward`` it wraps; nothing is returned then.

    Raises:
        TypeError: If ``module_type`` is no class of modules, or no subclass of ``like``.
        ValueError: If no adapter is registered for ``like``.

    Example:
        >>> @register_recurrence(MyCell)
        ... class MyRecurrence(Recurrence):
        ...     cell = "my-cell"
        ...     def step(self, inputs, state): ...
        ...     def initial_state(self, inputs): ...
        ...     def contraction(self, weights, drive, *, norm=None, state_bound=1.0): ...
        >>> register_recurrence(LSTMWithLengths, like=nn.LSTM)
    """
    if like is not None:
        if not isinstance(like, type):
            raise TypeError(f"`like` must be a class of modules. Got {checks.shown(like)}.")
        if not (isinstance(module_type, type) and issubclass(module_type, like)):
            raise TypeError(f"`module_type` must be a subclass of `like`, {like!r}. Got {module_type!r}.")
        registered = _registered(like)
        if registered is None or module_type is like:
            raise ValueError(f"`like` must be a base of {module_type.__name__} that is registered. Got {like!r}.")
        register_recurrence_factory(module_type, _REGISTRY[registered])
        _LIKE[module_type] = like
        return None

    _check_class(module_type)

    def decorate(adapter: _AdapterT) -> _AdapterT:
        register_recurrence_factory(module_type, lambda module, name: [adapter(module, name=name)])
        return adapter

    return decorate


def register_recurrence_factory(module_type: type[nn.Module], factory: Factory) -> None:
    """Register ``factory(module, name) -> recurrences``, ordered by layer, forward before backward.

    Raises:
        TypeError: If ``module_type`` is not a class of modules.
    """
    _check_class(module_type)
    _REGISTRY[module_type] = checks.function("factory", factory)
    _LIKE.pop(module_type, None)


def _check_class(module_type: object) -> None:
    if not (isinstance(module_type, type) and issubclass(module_type, nn.Module)):
        raise TypeError(f"`module_type` must be a subclass of torch.nn.Module. Got {checks.shown(module_type)}.")


def is_recurrent(module: nn.Module) -> bool:
    """Return whether an adapter is registered for this module's class or one of its bases."""
    return registered_type(checks.module("module", module)) is not None


def registered_type(module: nn.Module) -> type[nn.Module] | None:
    """Return the class of this module, or its nearest base, for which an adapter is registered; None without one."""
    return _registered(type(module))


def base_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class whose ``forward`` is the recurrence of a class: itself, or what its own ``forward`` wraps.

    Raises:
        ValueError: If no adapter is registered.
    """
    registered = _registered(kind)
    if registered is None:
        raise ValueError(f"The class must be that of a recurrent module. Got {kind.__name__}.")
    return base_class(_LIKE[registered]) if registered in _LIKE else registered


def wrapper_obstacle(module: nn.Module) -> str | None:
    """Return why a recurrent module may not compute what its base class does, as a clause; None if it does.

    What was declared by ``register_recurrence(..., like=...)`` is tried here all the same.
    """
    base = base_class(original_class(module))
    return forward_obstacle(module, base, lambda twin: _REGISTRY[base](twin, ""))


def _registered(kind: type[nn.Module]) -> type[nn.Module] | None:
    return next((base for base in kind.__mro__ if base in _REGISTRY), None)


def recurrences_of(module: nn.Module, name: str = "") -> list[Recurrence]:
    """Return the recurrences of one recurrent module, ordered by layer, forward before backward.

    Raises:
        ValueError: If no adapter is registered; its class has a ``forward`` that does more than wrap the one an
            adapter is registered for; or its weights are not stored as they are used, but recomputed from others.
    """
    checks.module("module", module)
    name, registered = checks.label("name", name), registered_type(module)
    if registered is None:
        inside = ", ".join(map(repr, recurrent_modules(module)))
        advice = f"pass its {inside}" if inside else "register one with lightning_stable.register_recurrence"
        raise ValueError(
            f"No recurrence is registered for modules of type {type(module).__name__}. Got {name or 'the module'!r}; "
            f"{advice}."
        )
    factory = _REGISTRY[registered]
    recurrences = list(factory(module, name))
    if torch.compiler.is_compiling():
        return recurrences  # a trace, whose stand-ins for the parameters are in no list of torch's layers
    for recurrence in recurrences:
        check_stored_weights(recurrence)
    if reason := forward_obstacle(module, registered, lambda twin: factory(twin, "")):
        kind = original_class(module).__name__
        vouch = (
            f"If its steps are those of {registered.__name__} all the same, call lightning_stable."
            f"register_recurrence({kind}, like={registered.__name__}); if not, register an adapter of its own"
        )
        if REPLACED in reason:
            vouch = "Define it in a subclass and register that with lightning_stable.register_recurrence"
        raise ValueError(
            f"A recurrent module must compute what its adapter for {registered.__name__} describes: its `forward` may "
            "pass inputs and state to `super().forward` once and return what that returns. Got "
            f"{name or 'the module'!r}, a {kind}: {reason}. {vouch}, or leave it out where a function takes `modules`."
        )
    return recurrences


def recurrent_modules(module: nn.Module) -> dict[str, nn.Module]:
    """Return the outermost recurrent modules inside ``module`` (itself included) by name; cells may hold cells."""
    checks.module("module", module)
    recurrent = {name: part for name, part in module.named_modules() if is_recurrent(part)}

    def is_inside(name: str) -> bool:
        return any(name != other and (other == "" or name.startswith(other + ".")) for other in recurrent)

    return {name: part for name, part in recurrent.items() if not is_inside(name)}


def find_recurrences(module: nn.Module, patterns: str | Iterable[str] | None = None) -> list[Recurrence]:
    """Return all recurrences inside ``module`` (itself included), in the order of ``named_modules``.

    Args:
        module: Any module; recurrent modules may be nested at any depth.
        patterns: Shell-style patterns of module names (``"encoder.*"``); None takes all.

    Raises:
        TypeError: If ``module`` is no module, or ``patterns`` are no names.
        ValueError: If there is no recurrence, a pattern matches no recurrent module, a module is none that can be
            judged, as in :func:`recurrences_of`, or, without patterns, there is a recurrent layer of torch's without an
            adapter, such as a quantized one.
    """
    outer = recurrent_modules(module)
    if not outer:
        raise ValueError(
            f"No recurrence found in {type(module).__name__}. Got modules of types "
            f"{sorted({type(m).__name__ for m in module.modules()})}; register a cell of your own with "
            "lightning_stable.register_recurrence."
        )
    chosen = checks.patterns("modules", patterns)
    if chosen is not None:
        outer = _select(outer, chosen)
    elif unknown := _unknown(module, outer):
        name, part = next(iter(unknown.items()))
        raise ValueError(
            f"All recurrent modules must have an adapter. Got {name or 'the module'!r}, a {type(part).__module__}."
            f"{type(part).__name__}; register one with lightning_stable.register_recurrence, or name the others where "
            "a function takes `modules`."
        )
    return [recurrence for name, m in outer.items() for recurrence in recurrences_of(m, name)]


@contextmanager
def gathered_model(module: nn.Module) -> Iterator[Shards]:
    """Make the weights of all recurrences whole inside the block, if they are sharded, and keep what is written.

    What ``fully_shard`` has laid over the model is taken off as well, so that its ``forward`` can be traced. No forward
    of the model may be on its way. A collective operation if there are shards.

    Raises:
        TypeError: If ``module`` is no module.
        ValueError: If the model is wrapped in FullyShardedDataParallel.
    """
    checks.module("module", module)
    shards = Shards(module, recurrent_modules(module).values())
    with shards.gathered(), as_written(module):
        yield shards


def recurrences_by_module(
    module: nn.Module, patterns: str | Iterable[str] | None = None
) -> dict[str, list[Recurrence]]:
    """Return the recurrences of :func:`find_recurrences` by the name of the recurrent module that holds them."""
    grouped: dict[str, list[Recurrence]] = {}
    for recurrence in find_recurrences(module, patterns):
        grouped.setdefault(recurrence.module_name, []).append(recurrence)
    return grouped


def _select(modules: dict[str, nn.Module], patterns: list[str]) -> dict[str, nn.Module]:
    if not patterns:
        raise ValueError(
            f"`modules` must name recurrent modules, or be None for all. Got []; there are {sorted(modules)}."
        )
    for pattern in patterns:
        if not fnmatch.filter(modules, pattern):
            raise ValueError(
                f"`modules` pattern matches no recurrent module. Got {pattern!r}; there are {sorted(modules)}."
            )
    return {name: m for name, m in modules.items() if any(fnmatch.fnmatchcase(name, p) for p in patterns)}


def _unknown(module: nn.Module, outer: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the recurrent layers of torch's, quantized ones among them, that have no adapter and are in none."""

    def is_torchs(part: nn.Module) -> bool:
        return any(
            base.__name__ in _TORCH_BASES and base.__module__.startswith("torch.") for base in type(part).__mro__
        )

    known = {id(part) for recurrent in outer.values() for part in recurrent.modules()}
    return {name: part for name, part in module.named_modules() if id(part) not in known and is_torchs(part)}


def _stack_factory(adapter: type[Recurrence]) -> Factory:
    """Return a factory for ``nn.RNNBase``: each layer and direction with torch's name ``l0``, ``l0_reverse``, ..."""

    def factory(module: nn.Module, name: str) -> list[Recurrence]:
        assert isinstance(module, nn.RNNBase)
        prefix = f"{name}." if name else ""
        directions = ("forward", "backward") if module.bidirectional else ("forward",)
        return [
            adapter(
                module,
                name=f"{prefix}l{layer}{'_reverse' if direction == 'backward' else ''}",
                module_name=name,
                layer=layer,
                direction=direction,
                suffix=f"_l{layer}{'_reverse' if direction == 'backward' else ''}",
                input_dropout=module.dropout if layer else 0.0,
            )
            for layer in range(module.num_layers)
            for direction in directions
        ]

    return factory


for _layer, _cell, _adapter in (
    (nn.RNN, nn.RNNCell, RNNRecurrence),
    (nn.LSTM, nn.LSTMCell, LSTMRecurrence),
    (nn.GRU, nn.GRUCell, GRURecurrence),
    (UGRNN, None, UGRNNRecurrence),
    (IntersectionRNN, None, IntersectionRecurrence),
    (LeakyRNN, None, LeakyRNNRecurrence),
    (MinGRU, None, MinGRURecurrence),
    (MinLSTM, None, MinLSTMRecurrence),
):
    register_recurrence_factory(_layer, _stack_factory(_adapter))
    if _cell is not None:
        register_recurrence(_cell)(_adapter)
