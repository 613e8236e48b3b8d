"""The initialisation of models that are to be stable."""

import math
from copy import deepcopy

import pytest
import torch
from torch import nn

from lightning_stable import project_
from lightning_stable.cells import UGRNN, IntersectionRNN
from lightning_stable.recurrence import find_recurrences
from lightning_stable.stability import spread_time_scales_


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, UGRNN, IntersectionRNN])
def test_leaks_are_spread_and_recurrent_weights_small(cell: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    module = cell(4, 400, num_layers=2)
    before = deepcopy(module)
    assert spread_time_scales_(module, 20.0) is module
    for old, new in zip(find_recurrences(before), find_recurrences(module), strict=True):
        gates, leak = len(new.gates), new.gates.index(new.leak)
        torch.testing.assert_close(new.parameters()["weight_hh"], old.parameters()["weight_hh"] / 20)
        assert torch.equal(new.parameters()["weight_ih"], old.parameters()["weight_ih"])
        biases = new.parameters()["bias_ih"].detach().chunk(gates)
        constants = 1 / (1 - biases[leak].sigmoid())
        assert 1 < constants.min() < 1.3
        assert 19 < constants.max() <= 20
        assert constants.mean() == pytest.approx(10.5, rel=0.1)
        for index, (bias, was) in enumerate(zip(biases, old.parameters()["bias_ih"].chunk(gates), strict=True)):
            assert torch.equal(bias, was) == (index != leak)


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_the_first_projection_leaves_more(cell: type[nn.RNNBase]) -> None:
    def kept(module: nn.RNNBase) -> float:
        (recurrence,) = find_recurrences(module)
        before = recurrence.recurrent_blocks(recurrence.weights()).values()
        project_(module, 0.99, input_bound=1.0)
        after = recurrence.recurrent_blocks(recurrence.weights()).values()
        return min(((new * old).sum() / old.square().sum()).item() for new, old in zip(after, before, strict=True))

    torch.manual_seed(0)
    module = cell(8, 64)
    assert kept(spread_time_scales_(deepcopy(module))) > 1.5 * kept(module)


@pytest.mark.parametrize("wrong", [nn.RNN(3, 4), nn.GRU(3, 4, bias=False), nn.Sequential(nn.LSTM(3, 4), nn.RNN(4, 4))])
def test_what_has_no_gates_or_biases_is_refused_unchanged(wrong: nn.Module) -> None:
    before = [value.clone() for value in wrong.parameters()]
    with pytest.raises(ValueError, match=r"`module` must have recurrent layers with gates and biases only\. Got '"):
        spread_time_scales_(wrong)
    assert all(map(torch.equal, before, wrong.parameters()))


@pytest.mark.parametrize("longest", [1.0, 0.0, math.inf])
def test_the_longest_has_a_range(longest: float) -> None:
    with pytest.raises(ValueError, match=r"`longest` must be a number in \(1, inf\)"):
        spread_time_scales_(nn.GRU(3, 4), longest)
