import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lightning_stable.datamodules import WikiText2DataModule
from lightning_stable.datamodules.splits import SPLITS
from tests.datamodules.test_text import TorchtextVocab

TEXT = {
    "train": " = Robert <unk> = \n \n Robert was an actor . \n" * 500,
    "valid": " = A film = \n" * 200,
    "test": " a play \n" * 200,
}


def write(folder: Path, pattern: str = "wiki.{}.tokens") -> Path:
    for split, text in TEXT.items():
        (folder / pattern.format(split)).write_text(text, encoding="utf-8")
    return folder


def ready(data: WikiText2DataModule) -> WikiText2DataModule:
    data.prepare_data()
    data.setup()
    return data


def decode(data: WikiText2DataModule, split: Any) -> list[str]:
    itos = data.vocab.get_itos()
    return [itos[index] for index in data.stream(split)]


def check(data: WikiText2DataModule) -> None:
    line = ["=", "Robert", "<unk>", "=", "<eos>", "<eos>", "Robert", "was", "an", "actor", ".", "<eos>"]
    assert decode(data, "train") == line * 500
    assert decode(data, "valid") == ["=", "A", "film", "=", "<eos>"] * 200
    assert decode(data, "test") == ["a", "play", "<eos>"] * 200
    assert set(data.vocab.get_itos()) == {*line, "A", "film", "a", "play"}


@pytest.mark.parametrize("pattern", ["wiki.{}.tokens", "{}.txt"])
def test_files(tmp_path: Path, pattern: str) -> None:
    check(ready(WikiText2DataModule(write(tmp_path, pattern))))


def test_default_batches(tmp_path: Path) -> None:
    data = ready(WikiText2DataModule(write(tmp_path)))
    assert next(iter(data.train_dataloader()))[0].shape == (20, 35)
    assert next(iter(data.val_dataloader()))[0].shape == (10, 35)
    assert next(iter(data.test_dataloader()))[0].shape == (10, 35)


def test_a_tokenizer_and_a_vocabulary_of_torchtext(tmp_path: Path) -> None:
    vocab = TorchtextVocab(["<eos>", "robert", "<unk>"], default_index=2)
    data = ready(WikiText2DataModule(write(tmp_path), tokenizer=lambda line: line.lower().split(), vocab=vocab))
    assert data.vocab is vocab
    assert data.stream("train")[:8].tolist() == [2, 1, 2, 2, 0, 0, 1, 2]


def test_options_reach_the_vocabulary(tmp_path: Path) -> None:
    data = ready(WikiText2DataModule(write(tmp_path), vocab_from="train", min_frequency=600))
    assert set(data.vocab.get_itos()) == {"<unk>", "<eos>", "=", "Robert"}


@pytest.mark.parametrize("split", SPLITS)
def test_a_folder_that_lacks_a_split(tmp_path: Path, split: str) -> None:
    (write(tmp_path, "{}.txt") / f"{split}.txt").unlink()
    message = rf"`data_dir` must hold the {split} split; put it there as wiki\.{split}\.tokens or {split}\.txt\. Got"
    with pytest.raises(ValueError, match=message):
        ready(WikiText2DataModule(tmp_path))


def test_an_empty_split(tmp_path: Path) -> None:
    (write(tmp_path) / "wiki.valid.tokens").write_text("")
    with pytest.raises(ValueError, match=r"wiki\.valid\.tokens"):
        ready(WikiText2DataModule(tmp_path))


class Hub(ModuleType):
    """Stands in for Hugging Face datasets: rows of lines with their ends, blank ones without."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__("datasets")
        self.error = error
        self.asked: list[tuple[str, ...]] = []

    def load_dataset(self, path: str, name: str, *, split: str) -> list[dict[str, str]]:
        if self.error is not None:
            raise self.error
        self.asked.append((path, name, split))
        lines = TEXT[{"validation": "valid"}.get(split, split)].splitlines(keepends=True)
        return [{"text": line if line.strip() else ""} for line in lines]


def test_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = Hub()
    monkeypatch.setitem(sys.modules, "datasets", hub)
    data = WikiText2DataModule()
    data.prepare_data()
    assert hub.asked == [("Salesforce/wikitext", "wikitext-2-v1", split) for split in ("train", "validation", "test")]
    data.setup()
    check(data)
    from_files = ready(WikiText2DataModule(write(tmp_path)))
    assert all(torch.equal(data.stream(split), from_files.stream(split)) for split in SPLITS)


@pytest.mark.parametrize(
    "error", [ConnectionError("offline"), ValueError("unknown builder"), FileNotFoundError("gone")]
)
def test_no_network_says_which_files_to_put_where(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setitem(sys.modules, "datasets", Hub(error))
    with pytest.raises(ValueError, match=rf"give `data_dir`, .*wiki\.train\.tokens or train\.txt.*Got: {error}"):
        WikiText2DataModule().prepare_data()


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-stable\[text\]', or give `data_dir`"):
        WikiText2DataModule().prepare_data()
