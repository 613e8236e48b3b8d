"""Nothing is measured on numbers that are none; the message says which they are."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from lightning_stable import truncation_profile
from lightning_stable.diagnostics import measure_state_gradients
from lightning_stable.diagnostics.jacobians import gradient_norms, lyapunov_exponents
from tests.nets import net

MEASUREMENTS: list[Callable[..., Any]] = [
    truncation_profile,
    measure_state_gradients,
    gradient_norms,
    lyapunov_exponents,
]
OF_RUNS = MEASUREMENTS[1:]


@pytest.mark.parametrize("measure", MEASUREMENTS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["rnn", "lstm", "gru_cell"])
def test_inputs(measure: Callable[..., Any], value: float, name: str) -> None:
    inputs = torch.zeros(5, 2, 3, dtype=torch.float64)
    inputs[3, 1, 0] = value
    with pytest.raises(ValueError, match=r"^`inputs` must be finite in torch.float64, as the weights. Got NaN or Inf"):
        measure(net(name), inputs)


@pytest.mark.parametrize("measure", MEASUREMENTS)
def test_packed_inputs_and_complex_ones(measure: Callable[..., Any]) -> None:
    rows = [torch.zeros(5, 3, dtype=torch.float64), torch.full((2, 3), torch.nan, dtype=torch.float64)]
    with pytest.raises(ValueError, match=r"^`inputs` must be finite"):
        measure(net("gru"), pack_sequence(rows))
    with pytest.raises(ValueError, match=r"^`inputs` must be real numbers of at least 16 bits. Got torch.complex128"):
        measure(net("gru"), torch.zeros(5, 2, 3, dtype=torch.complex128))


@pytest.mark.parametrize("measure", MEASUREMENTS)
@pytest.mark.parametrize("parameter", ["weight_ih", "weight_hh", "bias_ih", "bias_hh"])
def test_weights(measure: Callable[..., Any], parameter: str) -> None:
    module: nn.Module = net("lstm", num_layers=2)
    with torch.no_grad():
        getattr(module, f"{parameter}_l1")[1] = torch.nan
    with pytest.raises(ValueError, match=f"Got NaN or Inf in '{parameter}_l1'"):
        measure(module, torch.zeros(5, 2, 3, dtype=torch.float64))


@pytest.mark.parametrize("measure", OF_RUNS)
@pytest.mark.parametrize("part", [0, 1])
def test_start_states(measure: Callable[..., Any], part: int) -> None:
    state: list[Tensor] = [torch.zeros(1, 2, 5, dtype=torch.float64) for _ in range(2)]
    state[part][0, 1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"^`state` must be finite"):
        measure(net("lstm"), torch.zeros(5, 2, 3, dtype=torch.float64), state=tuple(state))


@pytest.mark.parametrize("measure", OF_RUNS)
def test_inputs_that_overflow_in_the_dtype_of_the_weights(measure: Callable[..., Any]) -> None:
    inputs = torch.full((5, 2, 3), 1e39, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^`inputs` must be finite in torch.float32"):
        measure(net("gru", dtype=torch.float32), inputs)
