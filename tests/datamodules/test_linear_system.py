from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.data import _update_dataloader
from torch import Tensor, nn
from torch.utils.data import DistributedSampler, RandomSampler, SequentialSampler

from lightning_stable.datamodules import LinearSystemDataModule
from lightning_stable.datamodules.splits import SPLITS
from tests.helpers import trainer

SMALL: dict[str, Any] = {"length": 12, "train_size": 10, "valid_size": 4, "test_size": 3, "batch_size": 4}


def ready(**kwargs: Any) -> LinearSystemDataModule:
    data = LinearSystemDataModule(**SMALL | kwargs)
    data.setup()
    return data


def equal(first: LinearSystemDataModule, second: LinearSystemDataModule, split: str) -> bool:
    return all(map(torch.equal, first.tensors(split), second.tensors(split)))  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9, 1, 1.2])
@pytest.mark.parametrize("state_size", [1, 2, 8])
def test_the_rate_is_the_spectral_radius(rate: float, state_size: int) -> None:
    radius = torch.linalg.eigvals(ready(rate=rate, state_size=state_size).system.A).abs().max().item()
    assert radius == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize("split", SPLITS)
def test_targets_follow_the_equations(split: Any) -> None:
    data = ready(state_size=5, input_size=3, output_size=2, noise=0.0)
    a, b, c, d = data.system
    x, y = data.tensors(split)
    for inputs, targets in zip(x.double(), y, strict=True):
        state = torch.zeros(5, dtype=torch.float64)
        for x_t, y_t in zip(inputs, targets, strict=True):
            state = a @ state + b @ x_t
            torch.testing.assert_close(y_t, (c @ state + d @ x_t).float())


def test_noise_has_the_standard_deviation_asked_for_and_is_new_at_every_entry() -> None:
    clean, noisy = (ready(noise=noise, train_size=300) for noise in (0.0, 0.5))
    (x, y), (same, z) = clean.tensors("train"), noisy.tensors("train")
    assert torch.equal(x, same)
    noise = z - y
    assert noise.std().item() == pytest.approx(0.5, rel=0.05)
    assert noise.unique().numel() > 0.99 * noise.numel()


def test_unstable_outputs_grow_with_time() -> None:
    y = ready(rate=1.3, length=60, noise=0.0).tensors("train")[1]
    assert y[:, -10:].abs().mean() > 1e3 * y[:, :10].abs().mean()


def test_batches_are_pairs_of_float32_with_the_batch_first() -> None:
    data = ready(input_size=3, output_size=2)
    for loader, sizes in (
        (data.train_dataloader(), [4, 4, 2]),
        (data.val_dataloader(), [4]),
        (data.test_dataloader(), [3]),
    ):
        batches = list(loader)
        assert [len(x) for x, _ in batches] == sizes
        for x, y in batches:
            assert x.shape[1:] == (12, 3)
            assert y.shape[1:] == (12, 2)
            assert x.dtype == y.dtype == torch.float32
    assert isinstance(data.train_dataloader().sampler, RandomSampler)
    assert isinstance(data.val_dataloader().sampler, SequentialSampler)


def test_the_seed_determines_the_system() -> None:
    first, again, other = ready(seed=3), ready(seed=3), ready(seed=4)
    assert all(map(torch.equal, first.system, again.system))
    assert not any(map(torch.equal, first.system, other.system))


class Regressor(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.readout = nn.RNN(4, 8, batch_first=True), nn.Linear(8, 2)
        self.losses: list[float] = []

    def loss(self, batch: list[Tensor]) -> Tensor:
        x, y = batch
        return (self.readout(self.recurrent(x)[0]) - y).square().mean()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def test_a_trainer_fits_and_tests(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data, model = LinearSystemDataModule(**SMALL | {"train_size": 64}), Regressor()
    run = trainer(tmp_path, max_epochs=5, num_sanity_val_steps=0)
    run.fit(model, datamodule=data)
    assert model.losses[-1] < model.losses[0]
    assert "val_loss" in run.callback_metrics
    (metrics,) = run.test(model, datamodule=data, verbose=False)
    assert "test_loss" in metrics


def test_lightning_deals_the_sequences_out_to_the_devices() -> None:
    """Lightning rebuilds the loader around a DistributedSampler from the arguments it was made with."""
    data = ready()
    seen = []
    for rank in range(2):
        sampler: Any = DistributedSampler(data.train_dataloader().dataset, 2, rank)  # type: ignore[arg-type]
        seen += [x for x, _ in _update_dataloader(data.train_dataloader(), sampler)]
    assert {tuple(x.flatten().tolist()) for x in torch.cat(seen)} == {
        tuple(x.flatten().tolist()) for x in data.tensors("train")[0]
    }


def test_outputs_that_overflow_are_refused() -> None:
    data = LinearSystemDataModule(rate=3.0, length=200)
    with pytest.raises(ValueError, match=r"`length` must keep an unstable system within float32.*Got length=200"):
        data.setup()
