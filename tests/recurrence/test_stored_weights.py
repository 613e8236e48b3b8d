"""Weights that are not those a module stores, or computes with, are refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_stable import certify, project_, truncate
from lightning_stable.recurrence import find_recurrences, recurrences_of
from tests.nets import net
from tests.recurrence.wrappers import LowRankCell, WeightDrop


class Halving(nn.Module):
    def forward(self, value: Tensor) -> Tensor:
        return value / 2


def parametrized(name: str) -> nn.Module:
    layer = nn.GRU(3, 4)
    parametrize.register_parametrization(layer, name, Halving())
    return layer


def plain_tensor() -> nn.Module:
    cell = nn.GRUCell(3, 4)
    weight = cell.weight_hh.detach().clone()
    del cell.weight_hh
    cell.weight_hh = weight
    return cell


def stale() -> nn.Module:
    """A layer whose parameter is another tensor than the one torch computes with."""
    layer = nn.LSTM(3, 4)
    layer._parameters["weight_hh_l0"] = nn.Parameter(torch.zeros(16, 4))
    return layer


def masked() -> nn.Module:
    layer = nn.LSTM(3, 4)
    layer._flat_weights = [weight * 2 for weight in layer._flat_weights]
    return layer


def as_buffer() -> nn.Module:
    layer = nn.RNN(3, 4)
    weight = layer.weight_hh_l0.detach().clone()
    del layer.weight_hh_l0
    layer.register_buffer("weight_hh_l0", weight)
    return layer


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: WeightDrop(3, 4), r"a plain tensor as 'weight_hh_l0' in 'core\.l0', beside \['weight_hh_l0_raw'\]"),
        (lambda: LowRankCell(3, 4), r"a plain tensor as 'weight_hh' in 'core': store"),
        (plain_tensor, r"a plain tensor as 'weight_hh' in 'core': store the weights in use as a parameter"),
        (lambda: parametrized("weight_hh_l0"), r"a parametrized or normed 'weight_hh_l0' in 'core\.l0'"),
        (lambda: parametrized("weight_ih_l0"), r"a parametrized or normed 'weight_ih_l0' in 'core\.l0'"),
        (lambda: parametrized("bias_hh_l0"), r"a parametrized or normed 'bias_hh_l0' in 'core\.l0'"),
        (stale, r"'weight_hh_l0' in 'core\.l0', which is not the tensor in `_flat_weights`"),
        (masked, r"'weight_ih_l0' in 'core\.l0', which is not the tensor in `_flat_weights`"),
        (as_buffer, r"'weight_hh_l0' in 'core\.l0', which is not the tensor in `_flat_weights`"),
    ],
)
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_refused(make: Callable[[], nn.Module], reason: str) -> None:
    model = nn.ModuleDict({"core": make()})
    for verb in (certify, project_, lambda model, input_bound: truncate(model, 2)):
        with pytest.raises(ValueError, match=rf"Recurrent weights must be plain parameters\. Got {reason}"):
            verb(model, input_bound=1.0)


def test_weights_in_a_functional_call() -> None:
    """Torch's layers compute with the stored weights all the same, the windows would not."""
    twin = truncate(net("lstm"), 2)
    weights = {name: 2 * value.detach() for name, value in twin.named_parameters()}
    with pytest.raises(ValueError, match=r"torch\.func\.functional_call does not reach a recurrent layer"):
        torch.func.functional_call(twin, weights, (torch.randn(5, 1, 3).double(),))


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_layers_that_were_cast_copied_or_assigned_to_are_none_of_these(name: str) -> None:
    layer = net(name, num_layers=2)
    layer.to(torch.float32).double()
    layer.load_state_dict({key: value.clone() for key, value in layer.state_dict().items()}, assign=True)
    layer.weight_hh_l0 = nn.Parameter(0.1 * layer.weight_hh_l0.detach())
    assert len(recurrences_of(layer)) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor")
def test_quantized_layers_are_not_passed_over() -> None:
    model = nn.ModuleDict({"core": nn.LSTM(3, 4), "other": nn.GRU(3, 4)})
    model["core"] = torch.ao.nn.quantizable.LSTM(3, 4)
    with pytest.raises(ValueError, match=r"must have an adapter\. Got 'core', a torch\.ao\.nn\.quantizable.*LSTM;"):
        find_recurrences(model)
    assert [recurrence.name for recurrence in find_recurrences(model, "other")] == ["other.l0"]
