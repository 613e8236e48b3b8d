"""Arguments that several callbacks take, checked in the constructor and against the model of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Real

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_stable import checks
from lightning_stable.recurrence import Recurrence, recurrences_by_module
from lightning_stable.recurrence.registry import gathered_model
from lightning_stable.stability.inputs.sets import InputBound, as_input_set


def module_patterns(modules: str | Iterable[str] | None) -> list[str] | None:
    """Return the patterns of module names; None stands for all modules.

    Raises:
        TypeError: If ``modules`` holds something other than strings.
        ValueError: If there is no pattern.
    """
    patterns = checks.patterns("modules", modules)
    if patterns == []:
        raise ValueError("`modules` must name at least one pattern, or be None for all modules. Got [].")
    return patterns


def checked_input_bound(input_bound: InputBound) -> InputBound:
    """Return ``input_bound`` as it was given, a number of NumPy as Python's own.

    Whether it names recurrences of a model is for the model to say.

    Raises:
        TypeError: If it is no bound.
        ValueError: If it is a bound that no input can have.
    """
    if input_bound is not None:
        if isinstance(input_bound, Mapping) and (others := [key for key in input_bound if not isinstance(key, str)]):
            raise TypeError(f"`input_bound` must have the names of recurrences as keys. Got {others[0]!r}.")
        for bound in input_bound.values() if isinstance(input_bound, Mapping) else (input_bound,):
            as_input_set(bound)
    return float(input_bound) if isinstance(input_bound, Real) else input_bound


def fitting_recurrences(
    model: nn.Module, modules: list[str] | None, input_bound: InputBound = None
) -> dict[str, list[Recurrence]]:
    """Return the recurrences of the model of a run, by the name of their module.

    Raises:
        MisconfigurationException: If there is none, a pattern matches none, a bound is for none of them, or recurrent
            weights are parametrized.
    """
    try:
        with gathered_model(model):
            found = recurrences_by_module(model, modules)
    except ValueError as error:
        raise MisconfigurationException(str(error)) from error
    names = found.keys() | {recurrence.name for group in found.values() for recurrence in group}
    for key in input_bound if isinstance(input_bound, Mapping) else ():
        if key not in names:
            raise MisconfigurationException(
                f"`input_bound` names no recurrence. Got key {key!r}; there are {sorted(names)}."
            )
    return found


def bound_inside(input_bound: InputBound, module_name: str) -> InputBound:
    """Return what ``input_bound`` says about one recurrent module, by the names that its layers have inside it."""
    if not isinstance(input_bound, Mapping):
        return input_bound
    prefix = f"{module_name}." if module_name else ""
    inside = {key.removeprefix(prefix): bound for key, bound in input_bound.items() if key.startswith(prefix)}
    if module_name in input_bound:
        inside[""] = input_bound[module_name]
    return inside or None
