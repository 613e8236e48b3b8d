from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_stable import project_, truncate
from lightning_stable.truncation import truncate_at_least
from tests.nets import net

CELLS = ["rnn", "lstm", "proj", "gru"]


def parts(state: Any) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("window", [1, 2, 4, 9])
@pytest.mark.parametrize("time", [1, 8, 9, 23, 40])
def test_outputs_see_at_least_the_window_and_less_than_three(cell: str, window: int, time: int) -> None:
    layer = net(cell, num_layers=2).float()
    twin = truncate_at_least(layer, window)
    inputs = torch.randn(time, 2, 3)
    expected, state = twin(inputs)
    whole, whole_state = layer(inputs)
    assert expected.shape == whole.shape
    assert [part.shape for part in parts(state)] == [part.shape for part in parts(whole_state)]
    for position in range(time):
        changed = inputs.clone()
        changed[position] += 1.0
        differs = (twin(changed)[0] != expected).flatten(1).any(1)
        assert not differs[:position].any()
        assert differs[position : position + window].all()
        # Only the first chunk, up to three windows long, reaches farther.
        assert not differs[position + 3 * window :].any()


@pytest.mark.parametrize("cell", CELLS)
def test_where_the_chunks_begin(cell: str) -> None:
    """An output is that of torch's layer on the window - 1 inputs before its chunk and the chunk so far."""
    layer, window = net(cell), 3
    inputs = torch.randn(17, 2, 3, dtype=torch.float64)
    outputs, state = truncate_at_least(layer, window)(inputs)
    first = 17 - 4 * 3
    torch.testing.assert_close(outputs[:first], layer(inputs[:first])[0])
    for begin in range(first, 17, window):
        alone, after = layer(inputs[begin - window + 1 : begin + window])
        torch.testing.assert_close(outputs[begin : begin + window], alone[window - 1 :])
    for ours, theirs in zip(parts(state), parts(after), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("cell", CELLS)
def test_layouts_and_a_given_start(cell: str) -> None:
    layer = net(cell, num_layers=2)
    first = net(cell, num_layers=2, batch_first=True)
    first.load_state_dict(layer.state_dict())
    inputs = torch.randn(20, 2, 3, dtype=torch.float64)
    start = layer(inputs)[1]
    twin, twin_first = truncate_at_least(layer, 4), truncate_at_least(first, 4)
    outputs, state = twin(inputs, start)
    other, other_state = twin_first(inputs.transpose(0, 1), start)
    torch.testing.assert_close(other.transpose(0, 1), outputs)
    torch.testing.assert_close(parts(other_state), parts(state))
    assert not torch.equal(outputs[0], twin(inputs)[0][0])
    alone = twin(inputs[:, 0], tuple(p[:, 0] for p in start) if isinstance(start, tuple) else start[:, 0])
    torch.testing.assert_close(alone[0], outputs[:, 0])
    torch.testing.assert_close(parts(alone[1]), tuple(part[:, 0] for part in parts(state)))


def test_the_bound_of_the_window_holds() -> None:
    layer = net("rnn", units=8, scale=3.0)
    project_(layer, 0.9)
    inputs = torch.randn(60, 2, 3, dtype=torch.float64)
    whole = layer(inputs)[0]
    error = (truncate_at_least(layer, 5)(inputs)[0] - whole).norm(dim=-1).max()
    assert 0 < error <= 0.9**5 * whole.norm(dim=-1).max()


def test_a_module_around_it_and_a_twin_of_a_twin() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 4)).double()
    twin = truncate_at_least(truncate(model, 7), 2)
    assert twin.state_dict().keys() == model.state_dict().keys()
    assert isinstance(twin[1], nn.LSTM)
    assert twin[1].window == 2
    torch.testing.assert_close(
        twin(torch.ones(9, 1, 3, dtype=torch.float64))[0],
        truncate_at_least(model, 2)(torch.ones(9, 1, 3, dtype=torch.float64))[0],
    )


@pytest.mark.parametrize("module", [nn.LSTMCell(3, 4), nn.GRU(3, 4, bidirectional=True)])
def test_what_it_does_not_do(module: nn.Module) -> None:
    with pytest.raises(ValueError, match="use `truncate`"):
        truncate_at_least(module, 3)
    with pytest.raises(ValueError, match="`window` must be a positive integer"):
        truncate_at_least(module, 0)
