"""One part of the projection at a time."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_stable.experiments.cost.ablations import BoundLeakAlone, HoldAtZero
from lightning_stable.stability import Box

UNITS, FEATURES = 5, 3


class Model(LightningModule):
    def __init__(self, cell: type[nn.RNNBase], *, scale: float = 4.0) -> None:
        super().__init__()
        self.core = cell(FEATURES, UNITS, batch_first=True)
        with torch.no_grad():
            for value in self.core.parameters():
                value.mul_(scale)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.core(batch)[0].square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def trained(cell: type[nn.RNNBase], callback: Callback | None) -> nn.RNNBase:
    torch.manual_seed(0)
    model, batches = Model(cell), 2 * torch.rand(3, 4, 6, FEATURES) - 1
    arguments = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, callbacks=callback, enable_model_summary=False, **arguments)  # type: ignore[arg-type]
    trainer.fit(model, torch.utils.data.DataLoader(list(batches), batch_size=None))
    return model.core


@pytest.mark.parametrize(("cell", "leak"), [(nn.LSTM, 1), (nn.GRU, 1)])
def test_the_leak_gate_alone_is_bounded(cell: type[nn.RNNBase], leak: int) -> None:
    """Its largest value over all inputs in the box and all states; nothing else is touched."""
    core = trained(cell, BoundLeakAlone(0.7, Box(-1.0, 1.0)))
    gates = len(core.weight_ih_l0) // UNITS
    parts = {name: value.detach().chunk(gates) for name, value in core.named_parameters()}
    top = sum(parts[name][leak].abs().sum(1) for name in ("weight_ih_l0", "weight_hh_l0"))
    top = top + parts["bias_ih_l0"][leak] + parts["bias_hh_l0"][leak]
    assert top.sigmoid().max() <= 0.7 + 1e-5
    assert top.sigmoid().max() >= 0.69
    assert parts["weight_hh_l0"][gates - 1].abs().sum(1).max() > 3  # of a projection little would be left


def test_the_recurrent_weights_of_some_gates_are_held_at_zero() -> None:
    blocks = trained(nn.LSTM, HoldAtZero("ig")).weight_hh_l0.chunk(4)
    assert [bool((block == 0).all()) for block in blocks] == [True, False, True, False]
    assert not trained(nn.GRU, HoldAtZero()).weight_hh_l0.any()
