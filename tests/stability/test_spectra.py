import pytest
import torch
from torch import nn

from lightning_stable import certify
from lightning_stable.recurrence import Recurrence, find_recurrences
from lightning_stable.stability.inputs.sets import Box
from lightning_stable.stability.spectra import layer_spectra

BOX = {"": Box(-torch.ones(3), torch.ones(3))}


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("state_bound", [1.0, 2.0])
def test_the_largest_unit_rate_is_the_certified_one(cell: type[nn.RNNBase], state_bound: float) -> None:
    torch.manual_seed(0)
    module = cell(3, 5, num_layers=2, bidirectional=True)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.3)
    spectra = layer_spectra(find_recurrences(module), BOX, state_bound)
    report = certify(module, input_bound=1.0, norm="row", state_bound=state_bound)
    assert list(spectra) == [f"{layer.name}/unit_rates" for layer in report.layers]
    for layer in report.layers:
        rates = spectra[f"{layer.name}/unit_rates"]
        assert rates.shape == (5,)
        assert rates.unique().numel() > 1
        assert rates.max().item() == layer.rate


def test_singular_values_of_a_matrix_without_gates() -> None:
    module = nn.RNN(3, 5)
    (values,) = layer_spectra(find_recurrences(module), {}).values()
    assert torch.allclose(values, torch.linalg.svdvals(module.weight_hh_l0.detach().double()))


def test_unknown_inputs_and_cells_without_unit_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    recurrences = find_recurrences(nn.GRU(3, 5))
    (rates,) = layer_spectra(recurrences, {}).values()
    assert rates.isinf().all()
    monkeypatch.setattr(type(recurrences[0]), "unit_rates", Recurrence.unit_rates)
    assert layer_spectra(recurrences, BOX) == {}
