"""The adapter of every recurrent module, and the search for all recurrences of a model."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from torch import nn
from torch.nn.utils import parametrize

from lightning_stable import checks
from lightning_stable.cells import UGRNN, IntersectionRNN
from lightning_stable.recurrence.base import Recurrence
from lightning_stable.recurrence.gru import GRURecurrence
from lightning_stable.recurrence.intersection import IntersectionRecurrence
from lightning_stable.recurrence.lstm import LSTMRecurrence
from lightning_stable.recurrence.rnn import RNNRecurrence
from lightning_stable.recurrence.ugrnn import UGRNNRecurrence

Factory = Callable[[nn.Module, str], Sequence[Recurrence]]
_AdapterT = TypeVar("_AdapterT", bound=type[Recurrence])
_REGISTRY: dict[type[nn.Module], Factory] = {}


def register_recurrence(module_type: type[nn.Module]) -> Callable[[_AdapterT], _AdapterT]:
    """Return a class decorator through which modules of ``module_type`` (and subclasses) get this adapter.

    The adapter is constructed as ``Adapter(module, name=...)``, one recurrence per module. A module that holds
    several layers or directions calls :func:`register_recurrence_factory` instead.

    Example:
        >>> @register_recurrence(MyCell)
        ... class MyRecurrence(Recurrence):
        ...     cell = "my-cell"
        ...     def step(self, inputs, state): ...
        ...     def initial_state(self, inputs): ...
        ...     def contraction(self, weights, drive, *, norm=None, state_bound=1.0): ...
    """

    def decorate(adapter: _AdapterT) -> _AdapterT:
        register_recurrence_factory(module_type, lambda module, name: [adapter(module, name=name)])
        return adapter

    return decorate


def register_recurrence_factory(module_type: type[nn.Module], factory: Factory) -> None:
    """Register ``factory(module, name) -> recurrences``, ordered by layer, forward before backward.

    Raises:
        TypeError: If ``module_type`` is not a class of modules.
    """
    if not (isinstance(module_type, type) and issubclass(module_type, nn.Module)):
        raise TypeError(f"`module_type` must be a subclass of torch.nn.Module. Got {module_type!r}.")
    _REGISTRY[module_type] = factory


def is_recurrent(module: nn.Module) -> bool:
    """Return whether an adapter is registered for this module's class or one of its bases."""
    return registered_type(module) is not None


def registered_type(module: nn.Module) -> type[nn.Module] | None:
    """Return the class of this module, or its nearest base, for which an adapter is registered; None without one."""
    return next((base for base in type(module).__mro__ if base in _REGISTRY), None)


def recurrences_of(module: nn.Module, name: str = "") -> list[Recurrence]:
    """Return the recurrences of one recurrent module, ordered by layer, forward before backward.

    Raises:
        ValueError: If no adapter is registered, or its weights are parametrized or normed: such weights are
            recomputed from other parameters at every use, so changing them in place would be lost.
    """
    factory = _factory(module)
    if factory is None:
        raise ValueError(
            f"No recurrence is registered for modules of type {type(module).__name__}. Got {name or 'the module'!r}; "
            "register one with lightning_stable.register_recurrence."
        )
    recurrences = list(factory(module, name))
    for recurrence in recurrences:
        _check_plain_parameters(recurrence)
    return recurrences


def recurrent_modules(module: nn.Module) -> dict[str, nn.Module]:
    """Return the outermost recurrent modules inside ``module`` (itself included) by name; cells may hold cells."""
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
        TypeError: If ``patterns`` are no names.
        ValueError: If there is no recurrence, a pattern matches no recurrent module, or weights are parametrized.
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
    return [recurrence for name, m in outer.items() for recurrence in recurrences_of(m, name)]


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


def _factory(module: nn.Module) -> Factory | None:
    registered = registered_type(module)
    return None if registered is None else _REGISTRY[registered]


def _check_plain_parameters(recurrence: Recurrence) -> None:
    module = recurrence.module
    for role in recurrence.roles:
        name = role + recurrence.suffix
        normed = f"{name}_g" in module._parameters or f"{name}_orig" in module._parameters
        if normed or (parametrize.is_parametrized(module) and parametrize.is_parametrized(module, name)):
            raise ValueError(
                f"Recurrent weights must be plain parameters. Got a parametrized or normed {name!r} in "
                f"{recurrence.name!r}: remove the parametrization (torch.nn.utils.parametrize.remove_parametrizations "
                "or torch.nn.utils.remove_weight_norm) first."
            )


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
):
    register_recurrence_factory(_layer, _stack_factory(_adapter))
    if _cell is not None:
        register_recurrence(_cell)(_adapter)
