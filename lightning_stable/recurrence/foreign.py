"""Whether a subclass of a recurrent class still computes that class's recurrence.

A ``forward`` of its own may wrap ``super().forward`` and pack sequences around it, or compute something else. Its name
does not tell, so it is run: once for every class and its settings, on a copy with random weights and random inputs. It
is a wrapper if it calls ``super().forward`` once, with the inputs and the state it was given, and returns what that
returns, bit for bit.
"""

from __future__ import annotations

import enum
import inspect
import math
import random
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from textwrap import shorten
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lightning_stable.copying import copied, has_compiled_forward, parts_of
from lightning_stable.recurrence.base import Recurrence
from lightning_stable.recurrence.forms import Form, form_class, original_class
from lightning_stable.recurrence.stored_weights import check_stored_weights

Adapters = Callable[[nn.Module], Sequence[Recurrence]]

REPLACED = "was replaced on the instance"
NOT_CALLED = "it does not call `super().forward`"
# (training, size of the inputs, steps, batch): small and large, in both modes.
_RUNS = ((False, 1.0, 5, 3), (True, 20.0, 3, 2))
_MOST_VERDICTS = 256
_LONGEST_REASON = 200
_MOST_ITEMS = 64
_MOST_DRAWS = 4099  # large weights repeat their entries, which takes a fraction of the time
# What a subclass may override without changing what `forward` computes: `_flat_weights` are checked by themselves.
_HARMLESS = {
    *("__init__", "__setattr__", "__getstate__", "__setstate__", "__repr__", "_apply", "reset_parameters"),
    *("extra_repr", "flatten_parameters", "_init_flat_weights", "_update_flat_weights", "_weights_have_changed"),
    *("check_input", "check_hidden_size", "check_forward_args", "get_expected_hidden_size", "get_expected_cell_size"),
    "_replicate_for_data_parallel",
}
_CALLS = {"forward", "__call__", "_call_impl", "_wrapped_call_impl", "__getattr__", "__getattribute__"}
_names: dict[type[nn.Module], frozenset[str]] = {}
_verdicts: dict[Any, str | None] = {}


def forward_obstacle(module: nn.Module, base: type[nn.Module], adapters: Adapters) -> str | None:
    """Return why a module may not compute the recurrence of ``base``, as a clause; None if it does.

    Args:
        module: A module of class ``base`` or of a subclass. It is not changed.
        base: The class whose recurrence is known.
        adapters: Function that returns the recurrences of a copy of the module.
    """
    kind = original_class(module)
    replaced = _functions(base) & vars(module).keys()
    if replaced and not (replaced == {"forward"} and has_compiled_forward(module)):
        return f"`{min(replaced)}` {REPLACED}"
    if kind is base or base.forward is nn.Module.forward:
        return None  # what has no `forward` was registered for the sake of its subclasses
    overridden = _overridden(kind, base)
    if overridden - {"forward"}:
        return f"it overrides `{min(overridden - {'forward'})}`"
    if not overridden:
        return None
    key = (base, kind.forward, _settings(module))
    if key not in _verdicts:
        if len(_verdicts) >= _MOST_VERDICTS:
            _verdicts.clear()
        _verdicts[key] = _probe(module, base, adapters)
    return _verdicts[key]


def _functions(base: type[nn.Module]) -> frozenset[str]:
    """The names of all functions of a class on which its ``forward`` may depend."""
    if base not in _names:
        own = base.__mro__[: base.__mro__.index(nn.Module)]
        kinds = (types.FunctionType, property, staticmethod)
        names = {name for part in own for name, value in vars(part).items() if isinstance(value, kinds)}
        _names[base] = frozenset((names - _HARMLESS) | _CALLS)
    return _names[base]


def _overridden(kind: type[nn.Module], base: type[nn.Module]) -> set[str]:
    # Not cached: a `forward` may be assigned to a class at any time.
    return {name for name in _functions(base) if getattr(kind, name, None) is not getattr(base, name, None)}


# The settings on which a verdict depends ------------------------------------------------------------------------------
def _settings(module: nn.Module) -> Any:
    """What may change the course of ``forward`` besides the values of tensors, hashable."""
    return tuple((name, original_class(part), *_held(_attributes(part))) for name, part in module.named_modules())


def _attributes(module: nn.Module) -> dict[str, Any]:
    skipped = _form_attributes(type(module).made_of[1]) if isinstance(module, Form) else frozenset()
    attributes = {
        name: value
        for name, value in vars(module).items()
        if name not in skipped and name not in ("training", "_modules", "_compiled_call_impl") and "_hooks" not in name
    }
    attributes.pop("_flat_weights", None)
    attributes.pop("_flat_weight_refs", None)
    return attributes


def _form_attributes(form: type[Form]) -> frozenset[str]:
    own = form.__mro__[: form.__mro__.index(Form)]
    return frozenset(name for part in own for name in (*vars(part), *vars(part).get("__annotations__", ())))


def _held(value: Any, depth: int = 3) -> tuple[Any, ...]:
    kind = type(value)
    if isinstance(value, (bool, int, float, complex, str, bytes, enum.Enum, type, torch.dtype, torch.device)):
        return kind, value
    if isinstance(value, types.FunctionType):
        return kind, value
    if value is None or isinstance(value, (Tensor, nn.Module)) or not depth:
        return (kind,)
    if isinstance(value, Mapping):
        items: list[Any] = [part for pair in list(value.items())[:_MOST_ITEMS] for part in pair]
    elif isinstance(value, (tuple, list, set, frozenset)):
        items = list(value)[:_MOST_ITEMS]
    elif isinstance(value, types.MethodType):
        items = [value.__func__, value.__self__]
    else:
        items = [getattr(value, "__dict__", None)]
    return (kind, *(_held(item, depth - 1) for item in items))


# Running it -----------------------------------------------------------------------------------------------------------
class _Call(NamedTuple):
    """A call of the known ``forward``: what it was given, whether weights had changed, and what it returned."""

    inputs: Any
    state: Any
    changed: bool
    returned: Any


class _Recorder(Form):
    """Form that records the calls of the known ``forward``."""

    calls: list[_Call]
    adapters: Sequence[Recurrence]
    weights: list[Tensor]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the known ``forward`` and keep copies of all that goes in and out."""
        values = inspect.signature(super().forward).bind(*args, **kwargs).arguments
        inputs, state = [*map(_cloned, values.values()), None][:2]
        for adapter in self.adapters:
            check_stored_weights(adapter)
        changed = not _same(_weights(self.adapters), self.weights)
        returned = super().forward(*args, **kwargs)
        self.calls.append(_Call(inputs, state, changed, _cloned(returned)))
        return returned


def _probe(module: nn.Module, base: type[nn.Module], adapters: Adapters) -> str | None:
    device = next(iter(parts_of(Tensor, [vars(part) for part in module.modules()])), torch.empty(0)).device
    with _alone(device):
        try:
            # Hooks are left out: they may hold anything, such as the trainer.
            hooks = [value for part in module.modules() for key, value in vars(part).items() if key.endswith("_hooks")]
            twin = copied(module, {id(value): OrderedDict() for value in hooks if isinstance(value, dict)})
            vars(twin).pop("forward", None)
            twin.__class__ = form_class(original_class(module), base, _Recorder)
            assert isinstance(twin, _Recorder)
            return _first_reason(twin, adapters(twin))
        except Exception as error:  # whatever the class's own code runs into
            reason = shorten(f"{type(error).__name__}: {error}", _LONGEST_REASON, placeholder=" ...")
            return f"it could not be called as `forward` of {base.__name__} is ({reason})"


def _first_reason(twin: _Recorder, recurrences: Sequence[Recurrence]) -> str | None:
    generator = torch.Generator().manual_seed(0)
    like = next(iter(recurrences[0].parameters().values())).detach()

    def draw(*shape: int) -> Tensor:
        count = math.prod(shape)
        few = torch.randn(min(count, _MOST_DRAWS), generator=generator, dtype=torch.float32).to(like)
        return few.repeat(-(-count // _MOST_DRAWS))[:count].view(shape)

    held = list(parts_of(Tensor, [vars(part) for part in twin.modules()]))
    flags = [tensor for tensor in held if tensor.dtype == torch.bool]
    with torch.no_grad():  # a factor that is zero now need not stay so
        for tensor in held:
            if tensor.is_floating_point():
                tensor.copy_(0.3 * draw(*tensor.shape))
    twin.adapters, twin.weights = recurrences, [weight.clone() for weight in _weights(recurrences)]
    for (training, size, time, batch), flag in product(_RUNS, (False, True) if flags else (False,)):
        twin.train(training)
        for tensor in flags:
            tensor.fill_(flag)
        lead = _lead(twin, recurrences[0], time, batch)
        for with_state in (False, True, False):  # the last would show a state that was kept
            inputs = size * draw(*lead, recurrences[0].input_size)
            state = _state(recurrences, draw(batch, recurrences[0].input_size), draw) if with_state else None
            twin.calls = []
            with torch.set_grad_enabled(training):
                returned = twin.forward(_cloned(inputs), *([_cloned(state)] if with_state else []))
            if reason := _reason(twin.calls, inputs, state, returned):
                return reason + (", in training" if training else "")
    return None


def _lead(module: nn.Module, recurrence: Recurrence, time: int, batch: int) -> tuple[int, ...]:
    if not recurrence.takes_sequences:
        return (batch,)
    return (batch, time) if getattr(module, "batch_first", False) else (time, batch)


def _state(recurrences: Sequence[Recurrence], inputs: Tensor, draw: Callable[..., Tensor]) -> Any:
    """Return a random state as the module takes it."""
    first, count = recurrences[0], len(recurrences)
    shapes = [part.shape for part in first.initial_state(inputs)[: first.state_parts]]
    parts = tuple(draw(*((count,) if first.takes_sequences else ()), *shape) for shape in shapes)
    return parts if len(parts) > 1 else parts[0]


def _reason(calls: list[_Call], inputs: Tensor, state: Any, returned: Any) -> str | None:
    if len(calls) != 1:
        return f"it calls `super().forward` {len(calls)} times" if calls else NOT_CALLED
    (call,) = calls
    if not _same(call.inputs, inputs):
        return "it changes the inputs"
    if not (_same(call.state, state) or (state is None and not any(map(torch.any, parts_of(Tensor, [call.state]))))):
        return "it starts from a state of its own" if state is None else "it changes the state it is given"
    if call.changed:
        return "it changes the weights"
    return None if _same(call.returned, returned) else "it does not return what `super().forward` returns"


def _weights(recurrences: Sequence[Recurrence]) -> list[Tensor]:
    return [value.detach() for recurrence in recurrences for value in recurrence.parameters().values()]


def _cloned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_cloned, value))
    return type(value)(map(_cloned, value)) if isinstance(value, (tuple, list)) else value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = one.shape == other.shape and one.dtype == other.dtype
        return alike and (torch.equal(one, other) or torch.allclose(one, other, rtol=0, atol=0, equal_nan=True))
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(_same, one, other))
    return one is other


@contextmanager
def _alone(device: torch.device) -> Iterator[None]:
    """Leave all random states as they were, and let no surrounding mode or warning in or out."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            torch.inference_mode(False),
            torch.autocast(device.type, enabled=False),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
