import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_stable.datamodules import PerceptronCapacityDataModule, RandomFunctionDataModule
from lightning_stable.models import SequenceRegressor
from tests.helpers import trainer

modules = pytest.mark.parametrize("module", [PerceptronCapacityDataModule, RandomFunctionDataModule])


def ready(module: Any, **kwargs: Any) -> Any:
    data = module(**kwargs)
    data.setup()
    return data


@modules
def test_every_loader_gives_the_same_patterns(module: Any) -> None:
    data = ready(module, patterns=7, length=3, input_size=2, steps_per_epoch=4)
    inputs, targets = data.tensors()
    assert inputs.shape == (7, 3, 2)
    assert targets.shape == (7, 1)
    assert inputs.dtype == targets.dtype == torch.float32
    for loader, times in ((data.train_dataloader(), 4), (data.val_dataloader(), 1), (data.test_dataloader(), 1)):
        batches = list(loader)
        assert len(batches) == len(loader) == times
        assert all(torch.equal(x, inputs) and torch.equal(y, targets) for x, y in batches)


@modules
def test_the_seed_determines_everything_and_nothing_else_changes(module: Any) -> None:
    before = torch.get_rng_state()
    first, again, other = (ready(module, seed=seed).tensors() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))


@modules
def test_setup_draws_once_and_survives_pickling(module: Any) -> None:
    data = ready(module)
    inputs = data.tensors()[0]
    data.setup("test")
    assert data.tensors()[0] is inputs
    assert torch.equal(pickle.loads(pickle.dumps(data)).tensors()[0], inputs)


def test_inputs_and_labels_are_fair_and_independent() -> None:
    inputs, labels = ready(PerceptronCapacityDataModule, patterns=20_000).tensors()
    assert set(inputs.unique().tolist()) == {-1.0, 1.0}
    assert set(labels.unique().tolist()) == {0.0, 1.0}
    everything = torch.cat([inputs.flatten(1), labels], 1)
    assert (labels.mean() - 0.5).abs() < 0.02
    assert inputs.mean(0).abs().max() < 0.03
    assert torch.corrcoef(everything.T).fill_diagonal_(0).abs().max() < 0.04


def test_values_are_uniform() -> None:
    values = ready(RandomFunctionDataModule, patterns=20_000).tensors()[1].double()
    assert values.abs().max() <= 1
    for quantile in (0.1, 0.5, 0.9):
        assert abs((values < 2 * quantile - 1).double().mean().item() - quantile) < 0.02
    assert values.square().mean().item() == pytest.approx(1 / 3, rel=0.02)


def test_a_model_learns_labels_by_heart_and_says_how_many_bits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = PerceptronCapacityDataModule(patterns=40, length=2, steps_per_epoch=150)
    model = SequenceRegressor(8, 1, loss="binary", cell="gru", hidden_size=12, learning_rate=0.03)
    fitted = trainer(tmp_path)
    fitted.fit(model, datamodule=data)
    (metrics,) = fitted.test(model, datamodule=data, verbose=False)
    predicted = model(data.tensors()[0])[:, -1] > 0
    assert torch.equal(predicted, data.tensors()[1].bool())
    assert metrics["test_bits"] == 40
    assert fitted.validate(model, datamodule=data, verbose=False)[0]["val_bits"] == 40


@modules
def test_missing_setup(module: Any) -> None:
    with pytest.raises(ValueError, match=r"drawn by `setup\(\)`"):
        module().train_dataloader()
