import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lightning_stable.datamodules import DictVocabulary, TextDataModule, unigram_perplexity
from lightning_stable.datamodules.splits import SPLITS

TRAIN = "the cat sat\n\non the mat\n" * 40
VALID = "the dog sat\n" * 40
TEST = "a cat ran\n" * 40
SMALL: dict[str, Any] = {"batch_size": 3, "eval_batch_size": 2, "chunk_length": 5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    return tmp_path


class TorchtextVocab(nn.Module):
    """Behaves as torchtext.vocab.Vocab does: a module that fails on unknown tokens unless it has a default index."""

    def __init__(self, itos: list[str], default_index: int | None = None) -> None:
        super().__init__()
        self.itos, self.default_index = itos, default_index

    def forward(self, tokens: list[str]) -> list[int]:
        return [self[token] for token in tokens]

    def __getitem__(self, token: str) -> int:
        if token in self.itos:
            return self.itos.index(token)
        if self.default_index is None:
            raise RuntimeError(f"Token {token} not found and default index is not set")
        return self.default_index

    def __len__(self) -> int:
        return len(self.itos)

    def get_itos(self) -> list[str]:
        return self.itos


def decode(data: TextDataModule, split: Any) -> list[str]:
    itos = data.vocab.get_itos()
    return [itos[index] for index in data.stream(split)]


def test_stream_is_the_file_with_line_ends(folder: Path) -> None:
    data = TextDataModule(folder)
    data.setup()
    expected = [token for line in TRAIN.splitlines() for token in [*line.split(), "<eos>"]]
    assert decode(data, "train") == expected
    assert expected.count("<eos>") == 120  # blank lines included


def test_three_paths_equal_a_folder(folder: Path) -> None:
    by_folder = TextDataModule(folder)
    by_files = TextDataModule(train=folder / "train.txt", valid=str(folder / "valid.txt"), test=folder / "test.txt")
    for data in (by_folder, by_files):
        data.setup("fit")
    for split in SPLITS:
        assert torch.equal(by_folder.stream(split), by_files.stream(split))


def test_vocabulary_of_all_splits_or_of_the_training_split(folder: Path) -> None:
    everything, train_only = TextDataModule(folder), TextDataModule(folder, vocab_from="train")
    for data in (everything, train_only):
        data.setup()
    assert {"dog", "ran"} <= set(everything.vocab.get_itos())
    assert not {"dog", "ran"} & set(train_only.vocab.get_itos())
    assert "<unk>" in decode(train_only, "test")
    assert "<unk>" not in decode(everything, "test")


def test_min_frequency_reaches_the_vocabulary(folder: Path) -> None:
    data = TextDataModule(folder, min_frequency=60)
    data.setup()
    assert set(data.vocab.get_itos()) == {"<unk>", "<eos>", "the", "cat", "sat"}


def test_any_tokenizer(folder: Path) -> None:
    data = TextDataModule(folder, tokenizer=list)
    data.setup()
    assert decode(data, "test")[:10] == [*"a cat ran", "<eos>"]


def test_torchtext_vocabulary_is_used_as_it_is(folder: Path) -> None:
    vocab = TorchtextVocab(["the", "<eos>", "cat", "<unk>"], default_index=3)
    data = TextDataModule(folder, vocab=vocab)
    data.setup()
    assert data.vocab is vocab
    assert data.stream("train")[:4].tolist() == [0, 2, 3, 1]


def test_byte_order_mark_and_carriage_returns_are_no_tokens(folder: Path) -> None:
    (folder / "train.txt").write_bytes(b"\xef\xbb\xbf" + TRAIN.replace("\n", "\r\n").encode())
    data = TextDataModule(folder, tokenizer=list)
    data.setup()
    assert not {"\ufeff", "\r", "\n"} & set(data.vocab.get_itos())


def test_default_batches(folder: Path) -> None:
    for name in ("train", "valid", "test"):
        (folder / f"{name}.txt").write_text(TRAIN * 4, encoding="utf-8")
    data = TextDataModule(folder)
    data.setup()
    assert next(iter(data.train_dataloader()))[0].shape == (20, 35)
    assert next(iter(data.val_dataloader()))[0].shape == (10, 35)
    assert next(iter(data.test_dataloader()))[1].shape == (10, 35)


def test_loaders_read_their_split(folder: Path) -> None:
    data = TextDataModule(folder, **SMALL)
    data.setup()
    for split, loader, columns in (
        ("train", data.train_dataloader(), 3),
        ("valid", data.val_dataloader(), 2),
        ("test", data.test_dataloader(), 2),
    ):
        first = next(iter(loader))[0]
        assert first.shape == (columns, 5)
        assert torch.equal(first[0], data.stream(split)[:5])  # type: ignore[arg-type]


def test_every_device_reads_its_own_columns(folder: Path) -> None:
    data = TextDataModule(folder, **SMALL)
    data.setup()
    loaders = []
    for rank in range(2):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        loaders.append(data.train_dataloader())
    rows = torch.cat([loader.columns for loader in loaders])
    assert torch.equal(rows.flatten(), data.stream("train")[: rows.numel()])
    assert rows.size(0) == 6


def test_setup_reads_once(folder: Path) -> None:
    data = TextDataModule(folder)
    data.setup("fit")
    vocab, stream = data.vocab, data.stream("train")
    data.setup("test")
    assert data.vocab is vocab
    assert data.stream("train") is stream


def test_unigram_perplexity_is_that_of_the_split(folder: Path) -> None:
    data = TextDataModule(folder)
    data.setup()
    for split in ("valid", "test"):
        expected = unigram_perplexity(data.stream("train"), data.stream(split), len(data.vocab))
        assert data.unigram_perplexity(split) == expected
    assert data.unigram_perplexity() == data.unigram_perplexity("test") != data.unigram_perplexity("valid")


def test_survives_pickling(folder: Path) -> None:
    data = TextDataModule(folder, **SMALL)
    data.setup()
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy.stream("train"), data.stream("train"))


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_missing_file(folder: Path, split: str) -> None:
    (folder / f"{split}.txt").unlink()
    with pytest.raises(ValueError, match=rf"`{split}` must be an existing text file.*Got '.*{split}\.txt'"):
        TextDataModule(folder).setup()


def test_empty_file(folder: Path) -> None:
    (folder / "valid.txt").write_text("")
    with pytest.raises(ValueError, match=r"`valid` must hold text\. Got the empty file"):
        TextDataModule(folder).setup()


def test_not_utf8(folder: Path) -> None:
    (folder / "test.txt").write_bytes("café\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"`test` must be UTF-8; convert it\. Got"):
        TextDataModule(folder).setup()


def test_split_too_short(folder: Path) -> None:
    (folder / "valid.txt").write_text("too short\n")
    data = TextDataModule(folder)
    data.setup()
    with pytest.raises(ValueError, match=r"The valid split cannot be batched\..*Got 3 tokens"):
        data.val_dataloader()


@pytest.mark.parametrize(
    ("data_dir", "files"),
    [
        (None, {}),
        (None, {"train": "a", "valid": "b"}),
        ("folder", {"train": "a"}),
        ("folder", {"train": "a", "valid": "b", "test": "c"}),
    ],
)
def test_folder_or_three_files(data_dir: str | None, files: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"Either `data_dir` or all of `train`, .* must .* Got"):
        TextDataModule(data_dir, **files)  # type: ignore[arg-type]


def test_vocabulary_without_an_unknown_token(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"`vocab` must .*Got none for \['cat', 'mat', 'on', 'sat'\]"):
        TextDataModule(folder, vocab=TorchtextVocab(["<eos>", "the"])).setup()


def test_vocabulary_without_the_line_end(folder: Path) -> None:
    with pytest.raises(ValueError, match="`vocab` must hold '<eos>'"):
        TextDataModule(folder, vocab=DictVocabulary(["<unk>"])).setup()


@pytest.mark.parametrize("result", ["a string", None, [1, 2]])
def test_wrong_tokenizer_result(folder: Path, result: object) -> None:
    with pytest.raises(TypeError, match=r"`tokenizer` must return a list of strings\. Got"):
        TextDataModule(folder, tokenizer=lambda line: result).setup()  # type: ignore[arg-type, return-value]


def test_wrong_split(folder: Path) -> None:
    data = TextDataModule(folder)
    data.setup()
    with pytest.raises(ValueError, match=r"`split` must be one of .* Got 'dev'"):
        data.stream("dev")  # type: ignore[arg-type]


def test_before_setup(folder: Path) -> None:
    data = TextDataModule(folder)
    with pytest.raises(ValueError, match=r"`vocab` is built by `setup\(\)`"):
        _ = data.vocab
    with pytest.raises(ValueError, match=r"read by `setup\(\)`"):
        data.train_dataloader()
