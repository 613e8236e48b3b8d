"""What holds of all data modules that draw their sequences; their own tests say what they draw."""

import pickle
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from lightning_stable.datamodules import (
    AddingDataModule,
    ArithmeticDataModule,
    CopyMemoryDataModule,
    LinearSystemDataModule,
    MemoryThroughputDataModule,
    ParenthesesDataModule,
)
from lightning_stable.datamodules.splits import SPLITS
from tests.helpers import trainer

SMALL: dict[str, Any] = {"train_size": 10, "valid_size": 4, "test_size": 3, "batch_size": 4}
MODULES = [
    AddingDataModule,
    ArithmeticDataModule,
    CopyMemoryDataModule,
    LinearSystemDataModule,
    MemoryThroughputDataModule,
    ParenthesesDataModule,
]
modules = pytest.mark.parametrize("module", MODULES)


def ready(module: Any, **kwargs: Any) -> Any:
    data = module(**SMALL | kwargs)
    data.setup()
    return data


def equal(first: Any, second: Any, split: str) -> bool:
    return all(map(torch.equal, first.tensors(split), second.tensors(split)))


@modules
def test_the_defaults_work(module: Any) -> None:
    data = module()
    data.setup()
    assert len(next(iter(data.train_dataloader()))[0]) == 32
    assert [len(data.tensors(split)[0]) for split in SPLITS] == list(data.sizes.values())


@modules
def test_batches_are_those_of_the_split(module: Any) -> None:
    data = ready(module)
    loaders = {"train": data.train_dataloader(), "valid": data.val_dataloader(), "test": data.test_dataloader()}
    for split, sizes in {"train": [4, 4, 2], "valid": [4], "test": [3]}.items():
        batches = list(loaders[split])
        assert [len(inputs) for inputs, _ in batches] == sizes
        seen, given = (torch.cat([x.flatten(1) for x, _ in batches]), data.tensors(split)[0].flatten(1))
        assert torch.equal(seen, given) == (split != "train")
        assert sorted(seen.tolist()) == sorted(given.tolist())


@modules
def test_the_seed_determines_everything(module: Any) -> None:
    first, again, other = ready(module, seed=3), ready(module, seed=3), ready(module, seed=4)
    for split in SPLITS:
        assert equal(first, again, split)
        assert not equal(first, other, split)
    loaders = [data.train_dataloader() for data in (first, again)]
    epochs = [[torch.cat([x for x, _ in loader]) for loader in loaders] for _ in range(2)]
    assert all(torch.equal(*orders) for orders in epochs)
    assert not torch.equal(epochs[0][0], epochs[1][0])


@modules
def test_splits_are_different_and_independent_of_the_sizes_of_the_others(module: Any) -> None:
    data, larger = ready(module), ready(module, train_size=20)
    assert equal(data, larger, "valid")
    assert equal(data, larger, "test")
    rows = [tuple(row) for split in SPLITS for row in data.tensors(split)[0].flatten(1).tolist()]
    assert len(set(rows)) == 17


@modules
def test_the_global_random_state_is_left_alone(module: Any) -> None:
    before = torch.get_rng_state()
    data = ready(module)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        list(loader)
    assert torch.equal(torch.get_rng_state(), before)


@modules
def test_setup_draws_once_and_survives_pickling(module: Any) -> None:
    data = ready(module)
    inputs = data.tensors("train")[0]
    data.setup("test")
    assert data.tensors("train")[0] is inputs
    assert equal(pickle.loads(pickle.dumps(data)), data, "test")


class Count(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.seen, self.weight = 0, torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.seen += len(batch[0])
        return (self.weight - batch[1].float()).square().mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@modules
def test_a_trainer_takes_it(module: Any, tmp_path: Path) -> None:
    model = Count()
    trainer(tmp_path).fit(model, datamodule=module(**SMALL))
    assert model.seen == 10


@modules
def test_wrong_split_and_missing_setup(module: Any) -> None:
    with pytest.raises(ValueError, match=r"`split` must be one of .* Got 'dev'"):
        ready(module).tensors("dev")
    with pytest.raises(ValueError, match=r"drawn by `setup\(\)`"):
        module().train_dataloader()
