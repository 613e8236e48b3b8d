from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_stable.datamodules import AddingDataModule, CopyMemoryDataModule
from lightning_stable.datamodules.padded import Pair
from lightning_stable.models import SequenceRegressor
from tests.helpers import trainer
from tests.models.examples import CORES, loader, numbers, regressor, scored

CLASSES = {"output_size": 4, "loss": "cross-entropy"}


def classes(pairs: list[Pair], size: int) -> list[Pair]:
    return [(inputs, (targets.sum(-1) * 2).long() % size) for inputs, targets in pairs]


def of_the_last_step(pairs: list[Pair]) -> list[Pair]:
    return [(inputs, targets[-1]) for inputs, targets in pairs]


@torch.no_grad()
def reference(model: SequenceRegressor, pairs: list[Pair]) -> float:
    """Number by number, sequence after sequence."""
    losses: list[float] = []
    for inputs, targets in pairs:
        predictions = model.eval()(inputs[None])[0].double()
        every = targets.dim() == (1 if model.loss == "cross-entropy" else 2)
        steps = zip(predictions, targets, strict=True) if every else [(predictions[-1], targets)]
        for predicted, target in steps:
            if model.loss == "cross-entropy":
                losses.append(-predicted.log_softmax(0)[target].item())
            else:
                losses += [(p - t).item() ** 2 for p, t in zip(predicted, target, strict=True)]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
@pytest.mark.parametrize("core", ["lstm", "gru-k3", "tcn"])
def test_logged_is_the_mean_over_all_targets(core: str, loss: str, last: bool, tmp_path: Path) -> None:
    kwargs = CORES[core] | (CLASSES if loss == "cross-entropy" else {})
    model, splits = regressor(**kwargs), [numbers(), numbers(1)]
    splits = [classes(pairs, 4) for pairs in splits] if loss == "cross-entropy" else splits
    splits = [of_the_last_step(pairs) for pairs in splits] if last else splits
    logged = scored(tmp_path, model, [loader(pairs) for pairs in splits])
    for index, pairs in enumerate(splits):
        expected = reference(model, pairs)
        assert logged[index][f"test_loss/dataloader_idx_{index}"] == pytest.approx(expected, rel=1e-5)
        inputs, targets = next(iter(loader(pairs, len(pairs))))
        model.log = lambda *_, **__: None  # type: ignore[method-assign]
        assert model.training_step((inputs, targets), 0).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("core", CORES)
def test_every_core_has_its_receptive_field(core: str) -> None:
    model, inputs = regressor(**CORES[core]).double(), torch.randn(1, 41, 3).double().requires_grad_()
    predictions = model(inputs)
    assert predictions.shape == (1, 41, 2)
    (gradient,) = torch.autograd.grad(predictions[0, -1].sum(), inputs)
    field = model.receptive_field
    assert gradient[0].any(-1).nonzero()[0].item() == (0 if field is None else 41 - field)


def test_ids_are_encoded_as_zeros_and_ones(tmp_path: Path) -> None:
    model, ids = regressor(), torch.randint(3, (2, 8))
    expected = model(F.one_hot(ids, 3).float())
    assert torch.equal(model(ids), expected)
    predicted = trainer(tmp_path).predict(model, DataLoader([ids, (ids, ids)], batch_size=None))  # type: ignore[arg-type]
    for part in predicted:  # type: ignore[union-attr]
        torch.testing.assert_close(part, expected)


@pytest.mark.parametrize(
    ("kwargs", "targets"),
    [
        ({}, torch.zeros(2, 8, 3)),
        ({}, torch.zeros(2, 7, 2)),
        ({}, torch.zeros(2, 1)),
        ({}, torch.zeros(2)),
        (CLASSES, torch.zeros(2, 7, dtype=torch.long)),
        (CLASSES, torch.zeros(3, dtype=torch.long)),
        (CLASSES, torch.zeros(2, 8, 4, dtype=torch.long)),
    ],
)
def test_targets_of_another_shape(kwargs: dict[str, Any], targets: Tensor) -> None:
    with pytest.raises(ValueError, match=r"`targets` must belong to every step or to the last one\. Got shape \("):
        regressor(**kwargs).training_step((torch.zeros(2, 8, 3), targets), 0)


def test_adding_and_copy_memory_are_its_tasks(tmp_path: Path) -> None:
    sizes = {"train_size": 4, "valid_size": 3, "test_size": 7, "batch_size": 3}
    adding = AddingDataModule(length=6, **sizes)
    copy = CopyMemoryDataModule(delay=3, copied=2, **sizes)
    one = SequenceRegressor(2, 1)
    other = SequenceRegressor(copy.num_classes, copy.num_classes, loss="cross-entropy")
    for model, data in ((one, adding), (other, copy)):
        nn.init.zeros_(model.head.weight)
        nn.init.zeros_(model.head.bias)
        (logged,) = trainer(tmp_path).test(model, data, verbose=False)  # type: ignore[arg-type]
        _, targets = data.tensors("test")
        guess = targets.square().mean() if model is one else torch.tensor(float(copy.num_classes)).log()
        assert logged["test_loss"] == pytest.approx(guess.item(), rel=1e-6)
