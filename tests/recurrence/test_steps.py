"""``Recurrence.step`` is torch's own layer, for every cell, layer and direction."""

import pytest
import torch
from torch import Tensor, nn

from lightning_stable.recurrence import Recurrence, recurrences_of
from tests.nets import CELLS, LAYERS, net

EXACT = {"rtol": 0, "atol": 1e-12}


def run(recurrence: Recurrence, inputs: Tensor) -> Tensor:
    """Outputs of one directed layer over ``(time, batch, features)``, in the order of the inputs."""
    steps = inputs if recurrence.direction == "forward" else inputs.flip(0)
    state, outputs = recurrence.initial_state(inputs[0]), []
    for x in steps:
        state = recurrence.step(x, state)
        outputs.append(recurrence.output(state))
    result = torch.stack(outputs)
    return result if recurrence.direction == "forward" else result.flip(0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_steps_are_torchs_layer(name: str, bidirectional: bool, bias: bool) -> None:
    module = net(name, scale=2, num_layers=2, bidirectional=bidirectional, bias=bias)
    inputs = torch.randn(7, 4, 3, dtype=torch.float64)
    recurrences = recurrences_of(module, "core")
    assert [(r.layer, r.direction) for r in recurrences] == [
        (layer, direction) for layer in (0, 1) for direction in ("forward", "backward")[: 1 + bidirectional]
    ]
    outputs = inputs
    for layer in (0, 1):
        here = [r for r in recurrences if r.layer == layer]
        assert {r.input_size for r in here} == {outputs.shape[-1]}
        outputs = torch.cat([run(r, outputs) for r in here], dim=-1)
    torch.testing.assert_close(outputs, module(inputs)[0], **EXACT)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", CELLS)
def test_steps_are_torchs_cell(name: str, bias: bool) -> None:
    module = net(name, scale=2, bias=bias)
    (recurrence,) = recurrences_of(module)
    x, state = torch.randn(4, 3, dtype=torch.float64), recurrence.initial_state(torch.zeros(4, 3, dtype=torch.float64))
    state = tuple(torch.randn_like(part) for part in state)
    expected = module(x, state if isinstance(module, nn.LSTMCell) else state[0])
    torch.testing.assert_close(
        recurrence.step(x, state), expected if isinstance(expected, tuple) else (expected,), **EXACT
    )


@pytest.mark.parametrize("name", LAYERS | CELLS)
def test_the_zero_state_is_torchs_default(name: str) -> None:
    module = net(name)
    (recurrence,) = recurrences_of(module)
    x = torch.randn(4, 3, dtype=torch.float64)
    result = module(x[None]) if isinstance(module, nn.RNNBase) else module(x)
    after = recurrence.step(x, recurrence.initial_state(x))
    last = result[1] if isinstance(module, nn.RNNBase) else result
    returned = after[: recurrence.state_parts]
    for mine, theirs in zip(returned, last if isinstance(last, tuple) else (last,), strict=True):
        torch.testing.assert_close(mine, theirs.reshape(mine.shape), **EXACT)


def test_weights_are_copies_and_blocks_are_views() -> None:
    module = net("lstm", bias=False)
    (recurrence,) = recurrences_of(module)
    weights = recurrence.weights()
    assert set(weights) == {"weight_ih", "weight_hh"}
    for block in recurrence.recurrent_blocks(weights).values():
        block.zero_()
    assert not weights["weight_hh"].any()
    assert module.weight_hh_l0.all()
