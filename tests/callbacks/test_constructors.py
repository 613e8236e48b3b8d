"""Every public constructor refuses a bad argument at once, with one class of error and one form of message."""

import inspect
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import nn

from lightning_stable import callbacks
from lightning_stable.stability import Box
from tests.constructors import of_numpy

NAN = float("nan")
NO_TEXT: dict[Any, type[Exception]] = {3: TypeError, (): TypeError, "": ValueError}
POSITIVE: dict[Any, type[Exception]] = {0: ValueError, -1: ValueError, True: TypeError, 1.5: TypeError, "2": TypeError}
ODD = object()

# Bad values of each argument, with what they raise. The same name means the same thing in every callback.
BAD: dict[str, dict[Any, type[Exception]]] = {
    "window": {**POSITIVE, None: TypeError},
    "max_window": {**POSITIVE, None: TypeError},
    "max_lag": {**POSITIVE, None: TypeError},
    "num_batches": {**POSITIVE, None: TypeError},
    "num_restarts": {**POSITIVE, None: TypeError},
    "seed": {-1: ValueError, 2**63: ValueError, True: TypeError, 1.5: TypeError, None: TypeError},
    "weight": {-1.0: ValueError, NAN: ValueError, float("inf"): ValueError, "large": TypeError, None: TypeError},
    "every_n_steps": {**POSITIVE, None: TypeError},
    "every_n_epochs": {**POSITIVE, None: TypeError},
    "histograms_every_n_epochs": POSITIVE,
    "rate": {1.5: ValueError, 0: ValueError, -0.5: ValueError, NAN: ValueError, "0.9": TypeError, None: TypeError},
    "tolerance": {0: ValueError, -1.0: ValueError, float("inf"): ValueError, "small": TypeError, True: TypeError},
    "coverage": {0: ValueError, 1.5: ValueError, NAN: ValueError, "most": TypeError, True: TypeError},
    "confidence": {0: ValueError, 1.5: ValueError, NAN: ValueError, "high": TypeError, None: TypeError},
    "gate_bound": {0.999: ValueError, 0: ValueError, "half": TypeError, True: TypeError},
    "state_bound": {-0.5: ValueError, float("inf"): ValueError, "1": TypeError, None: TypeError},
    "name": {**NO_TEXT, None: TypeError},
    "monitor": {**NO_TEXT, None: TypeError},
    "loss": NO_TEXT,
    "guaranteed": {1: TypeError, "yes": TypeError, None: TypeError},
    "derived": {1: TypeError, "yes": TypeError, None: TypeError},
    "modules": {3: TypeError, (3,): TypeError, ("core", None): TypeError},
    "figures": {3: TypeError, ODD: TypeError},
    "twin": {3: TypeError, "copy": TypeError, nn.LSTM(1, 1): TypeError},
    "predictions": {3: TypeError, "logits": TypeError},
    "input_bound": {-1.0: ValueError, float("inf"): ValueError, "wide": TypeError, ODD: TypeError},
}
# Lightning's own, a name of the cell's (which shows with the model), and what has no bad value.
UNCHECKED = {"kwargs", "norm", "method"}
REQUIRED: dict[str, dict[str, Any]] = {
    "FeedForwardShadowCallback": {"window": 2},
    "TruncationPenaltyCallback": {"window": 2},
}

CONSTRUCTORS = [getattr(callbacks, name) for name in callbacks.__all__]
CASES = [
    (constructor, argument, value, error)
    for constructor in CONSTRUCTORS
    for argument in inspect.signature(constructor).parameters
    for value, error in BAD.get(argument, {}).items()
]


@pytest.mark.parametrize("constructor", CONSTRUCTORS)
def test_every_argument_is_in_the_table(constructor: Any) -> None:
    assert set(inspect.signature(constructor).parameters) <= BAD.keys() | UNCHECKED
    constructor(**REQUIRED.get(constructor.__name__, {}))


@pytest.mark.parametrize(("constructor", "argument", "value", "error"), CASES)
def test_a_bad_argument(constructor: Any, argument: str, value: Any, error: type[Exception]) -> None:
    arguments = REQUIRED.get(constructor.__name__, {}) | {argument: value}
    with pytest.raises((TypeError, ValueError)) as caught:
        constructor(**arguments)
    assert caught.type is error
    message = str(caught.value)
    assert message.startswith(f"`{argument}` must ")
    assert f"Got {value!r}" in message


@pytest.mark.parametrize("constructor", [c for c in CONSTRUCTORS if "modules" in inspect.signature(c).parameters])
def test_patterns_are_one_or_several(constructor: Any) -> None:
    required = REQUIRED.get(constructor.__name__, {})
    one, several = (constructor(**required, modules=given).modules for given in ("core", iter(["core"])))
    assert one == several == ["core"]
    assert constructor(**required).modules is None


@pytest.mark.parametrize("constructor", [c for c in CONSTRUCTORS if "input_bound" in inspect.signature(c).parameters])
def test_bounds_of_several_recurrences(constructor: Any) -> None:
    for bound in (1.0, torch.ones(3), Box(-1.0, 2.0), {"core": 1.0, "core.l1": Box(-1.0, 2.0)}, {}):
        assert constructor(input_bound=bound).input_bound is bound
    with pytest.raises(ValueError, match=r"`input_bound` must be finite and nonnegative\. Got -1\.0"):
        constructor(input_bound={"core": 1.0, "encoder": -1.0})


@pytest.mark.parametrize("constructor", CONSTRUCTORS)
def test_numbers_of_numpy_become_plain(constructor: Any) -> None:
    parameters = inspect.signature(constructor).parameters
    plain = {name: value.default for name, value in parameters.items()} | REQUIRED.get(constructor.__name__, {})
    plain |= {"input_bound": 2.0} if "input_bound" in parameters else {}
    plain |= {"coverage": 0.9} if "coverage" in parameters else {}
    plain |= {"gate_bound": 0.75} if "gate_bound" in parameters else {}
    given = of_numpy(plain)
    assert given
    made = constructor(**given)
    kept = vars(made) | (asdict(made.constraint) if hasattr(made, "constraint") else {})
    assert {type(kept[name]) for name in given} <= {int, float}
    assert {name: kept[name] for name in given} == {name: plain[name] for name in given}


def test_no_pattern_at_all() -> None:
    with pytest.raises(ValueError, match=r"`modules` must name at least one pattern, .* Got \[\]"):
        callbacks.StabilityProjectionCallback(modules=[])
