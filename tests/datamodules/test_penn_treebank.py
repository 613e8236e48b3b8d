import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_stable.datamodules import PennTreebankDataModule
from tests.datamodules.test_text import TorchtextVocab

# As in the real files, every line begins and ends with a space.
TEXT = {
    "train": " no it was n't <unk> monday \n mr. N says so \n",
    "valid": " it was black monday \n",
    "test": " <unk>  said it \n",
}
REPEAT = 300


def write(folder: Path, pattern: str = "ptb.{}.txt") -> Path:
    for split, text in TEXT.items():
        (folder / pattern.format(split)).write_text(text * REPEAT, encoding="utf-8")
    return folder


def ready(folder: Path, **options: Any) -> PennTreebankDataModule:
    data = PennTreebankDataModule(folder, **options)
    data.prepare_data()
    data.setup()
    return data


def decode(data: PennTreebankDataModule, split: Any) -> list[str]:
    itos = data.vocab.get_itos()
    return [itos[index] for index in data.stream(split)]


@pytest.mark.parametrize("pattern", ["ptb.{}.txt", "{}.txt"])
def test_words(tmp_path: Path, pattern: str) -> None:
    data = ready(write(tmp_path, pattern))
    train = ["no", "it", "was", "n't", "<unk>", "monday", "<eos>", "mr.", "N", "says", "so", "<eos>"]
    assert decode(data, "train") == train * REPEAT
    assert decode(data, "valid") == ["it", "was", "black", "monday", "<eos>"] * REPEAT
    assert set(data.vocab.get_itos()) == {*train, "black", "said"}


def test_characters(tmp_path: Path) -> None:
    data = ready(write(tmp_path), level="character")
    assert decode(data, "train") == [*"no_it_was_n't_<unk>_monday", "<eos>", *"mr._N_says_so", "<eos>"] * REPEAT
    assert decode(data, "valid") == [*"it_was_black_monday", "<eos>"] * REPEAT
    assert decode(data, "test") == [*"<unk>_said_it", "<eos>"] * REPEAT
    # By hand: letters a b c d i k l m n o r s t u w y, N, the signs ' . < > _ and the line end.
    assert len(data.vocab) == 16 + 1 + 5 + 1
    assert [len(data.stream(split)) for split in ("train", "valid", "test")] == [  # type: ignore[arg-type]
        REPEAT * (26 + 1 + 13 + 1),
        REPEAT * (19 + 1),
        REPEAT * (13 + 1),
    ]
    assert len(data.vocab(["<eos>", "_"])) == 2


def test_default_batches(tmp_path: Path) -> None:
    words, characters = (ready(write(tmp_path), level=level) for level in ("word", "character"))
    assert next(iter(words.train_dataloader()))[0].shape == (20, 35)
    assert next(iter(words.val_dataloader()))[0].shape == (10, 35)
    (tmp_path / "ptb.train.txt").write_text(TEXT["train"] * 1000)
    characters = ready(tmp_path, level="character")
    assert next(iter(characters.train_dataloader()))[0].shape == (128, 150)
    assert next(iter(characters.val_dataloader()))[0].shape == (10, 150)


def test_lengths_vary_in_training_alone(tmp_path: Path) -> None:
    options: dict[str, Any] = {"level": "character", "batch_size": 4, "eval_batch_size": 2, "chunk_length": 64}
    data = ready(write(tmp_path), vary_length=True, seed=1, **options)
    fixed = ready(tmp_path, **options)

    def lengths(loader: Any) -> list[int]:
        return [inputs.size(1) for inputs, _ in loader]

    train = data.train_dataloader()
    first = lengths(train)
    train.set_epoch(1)
    assert first != lengths(train) != lengths(fixed.train_dataloader()) != first
    assert lengths(data.val_dataloader()) == lengths(fixed.val_dataloader())
    assert lengths(ready(tmp_path, vary_length=True, seed=1, **options).train_dataloader()) == first
    assert lengths(ready(tmp_path, vary_length=True, seed=2, **options).train_dataloader()) != first


def test_a_given_vocabulary(tmp_path: Path) -> None:
    vocab = TorchtextVocab(["<eos>", "o", "?"], default_index=2)
    data = ready(write(tmp_path), level="character", vocab=vocab)
    assert data.vocab is vocab
    assert data.stream("train")[:3].tolist() == [2, 1, 2]


def test_survives_pickling(tmp_path: Path) -> None:
    data = ready(write(tmp_path), level="character")
    assert torch.equal(pickle.loads(pickle.dumps(data)).stream("test"), data.stream("test"))


@pytest.mark.parametrize("split", list(TEXT))
def test_missing_and_empty_files(tmp_path: Path, split: str) -> None:
    path = write(tmp_path) / f"ptb.{split}.txt"
    path.write_text("")
    with pytest.raises(ValueError, match=rf"`{split}` must hold text.*ptb\.{split}\.txt"):
        ready(tmp_path)
    path.unlink()
    message = rf"`data_dir` must hold the {split} split; put it there as ptb\.{split}\.txt or {split}\.txt\. Got"
    with pytest.raises(ValueError, match=message):
        ready(tmp_path)
