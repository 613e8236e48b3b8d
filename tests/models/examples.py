"""A small example of each model of whole sequences, with data of uneven lengths, shared by the tests."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_stable.datamodules.padded import PaddedBatch, Pair, pad
from lightning_stable.datamodules.sequences import SequenceDataModule
from lightning_stable.datamodules.splits import Split
from lightning_stable.models import MusicModel, SequenceRegressor, SlotTagger
from tests.helpers import trainer

KEYS, WORDS = 5, 11
LABELS = ("O", "B-a", "I-a", "B-b", "I-b")
LENGTHS = (4, 9, 1, 7, 7, 2, 5)
CELLS = ("rnn", "irnn", "ugrnn", "gru", "lstm", "intersection", "leaky", "mingru", "minlstm")
RECURRENT: dict[str, dict[str, Any]] = {cell: {"cell": cell} for cell in CELLS}
CONVOLUTIONAL: dict[str, dict[str, Any]] = {core: {"core": core} for core in ("tcn", "gated-conv", "wavenet")}
WINDOWED = {f"{cell}-k3": {"cell": cell, "window": 3} for cell in RECURRENT}
CORES = RECURRENT | WINDOWED | CONVOLUTIONAL


def music(**kwargs: Any) -> MusicModel:
    torch.manual_seed(0)
    return MusicModel(KEYS, **{"hidden_size": 6, "num_layers": 2, "dropout": 0.0, **kwargs})


def slots(**kwargs: Any) -> SlotTagger:
    torch.manual_seed(0)
    sizes = {"embedding_size": 4, "hidden_size": 6, "num_layers": 2, "dropout": 0.0, "unknown_rate": 0.0}
    return SlotTagger(WORDS, LABELS, **{**sizes, **kwargs})


def regressor(**kwargs: Any) -> SequenceRegressor:
    torch.manual_seed(0)
    return SequenceRegressor(**{"input_size": 3, "output_size": 2, "hidden_size": 6, "num_layers": 2, **kwargs})


def rolls(seed: int = 0, lengths: tuple[int, ...] = LENGTHS) -> list[Pair]:
    generator = torch.Generator().manual_seed(seed)
    whole = [(torch.rand(length + 1, KEYS, generator=generator) < 0.4).float() for length in lengths]
    return [(roll[:-1], roll[1:]) for roll in whole]


def utterances(seed: int = 0, lengths: tuple[int, ...] = LENGTHS) -> list[Pair]:
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, length: int) -> Tensor:
        return torch.randint(high, (length,), generator=generator)

    return [(draw(WORDS, length), draw(len(LABELS), length)) for length in lengths]


def numbers(seed: int = 0) -> list[Pair]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.rand(8, 3, generator=generator), torch.rand(8, 2, generator=generator)) for _ in range(7)]


def loader(pairs: list[Pair], batch_size: int = 3) -> Any:
    """Batches of 3, 3 and 1: padded, or pairs if all are of one length."""
    even = len({len(inputs) for inputs, _ in pairs}) == 1
    return DataLoader(pairs, batch_size, collate_fn=None if even else pad)  # type: ignore[arg-type]


def spoiled(batch: PaddedBatch, seed: int = 1) -> PaddedBatch:
    """The batch with other padding, of inputs and targets."""
    generator = torch.Generator().manual_seed(seed)

    def spoil(values: Tensor) -> Tensor:
        if values.is_floating_point():
            other = 100 * torch.randn(values.shape, generator=generator)
        else:
            other = torch.randint(len(LABELS), values.shape, generator=generator)
        mask = batch.mask if values.dim() == 2 else batch.mask[..., None]
        return torch.where(mask, values, other)

    return batch._replace(inputs=spoil(batch.inputs), targets=spoil(batch.targets))


class Utterances(SequenceDataModule):
    """Utterances dealt out to the processes."""

    target_padding = -100.0

    def read(self) -> dict[Split, list[Pair]]:
        return {"train": utterances(), "valid": utterances(1), "test": utterances(2)}


def scored(path: Path, model: L.LightningModule, loaders: Any, **kwargs: Any) -> Any:
    return trainer(path, **kwargs).test(model, loaders, verbose=False)
