"""Networks with certified windows, shared by the tests of the bounds."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_stable import project_
from lightning_stable.recurrence import find_recurrences
from lightning_stable.stability import InputSet, SupNorm
from lightning_stable.stability.inputs.resolve import resolve_sources
from lightning_stable.stability.window_bounds import WindowBounds, window_bounds
from tests.nets import NORMS, net

B = SupNorm(2.0)
ROUNDING = 1 + 1e-9
CASES = [(name, norm) for name, norms in NORMS.items() for norm in norms]


def stable(name: str, rate: float = 0.9, norm: str | None = None, **kwargs: Any) -> nn.Module:
    module = net(name, **kwargs)
    project_(module, rate, input_bound=B, norm=norm)
    return module


def bounds_of(module: nn.Module, inputs: InputSet | None = B, **kwargs: Any) -> WindowBounds:
    recurrences = find_recurrences(module)
    (bounds,) = window_bounds(recurrences, resolve_sources(module, recurrences, inputs), **kwargs)
    return bounds


def linear(weight: float = 0.6, **kwargs: Any) -> nn.Module:
    """A relu network of single positive units is linear on positive inputs, and its bounds are attained."""
    module = net("relu", inputs=1, units=1, **kwargs)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            backward = 0.8 if name.endswith("reverse") else 1.0
            parameter.fill_({"weight_hh": weight, "weight_ih": 0.7}.get(name[:9], 0.1) * backward)
            if name.startswith("weight_ih"):
                parameter[:, 1:] /= 3  # the two directions of the layer below are not alike
    return module


def powers(rate: float, count: int) -> Tensor:
    return rate ** torch.arange(1, count + 1, dtype=torch.float64)
