import math
import zipfile
from pathlib import Path

import pytest
import torch

from lightning_stable.datamodules import Text8DataModule, text8

TEXT = "the quick brown fox jumps over the lazy dog " * 20


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"train": len(TEXT) - 200, "valid": 100, "test": 100}
    monkeypatch.setattr(text8, "SIZES", sizes)


def module(folder: Path, limit: int | None = None) -> Text8DataModule:
    return Text8DataModule(folder, limit=limit, batch_size=2, eval_batch_size=2, chunk_length=7)


def test_sizes_are_those_of_the_usual_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert list(text8.SIZES.values()) == [90_000_000, 5_000_000, 5_000_000]


@pytest.mark.parametrize("packed", [False, True])
def test_the_text_comes_back(tmp_path: Path, packed: bool) -> None:
    if packed:
        with zipfile.ZipFile(tmp_path / "text8.zip", "w") as archive:
            archive.writestr("text8", TEXT)
    else:
        (tmp_path / "text8").write_text(TEXT)
    data = module(tmp_path)
    data.setup()
    assert "".join(line for split in ("train", "valid", "test") for line in data.lines(split)) == TEXT
    assert data.vocab_size == 27
    assert data.stream("train").dtype == torch.uint8
    inputs, targets = next(iter(data.train_dataloader()))
    assert inputs.dtype == targets.dtype == torch.int64
    symbols = data.vocab.get_itos()
    assert "".join(symbols[index] for index in inputs[0]) == TEXT[:7]
    assert "".join(symbols[index] for index in targets[0]) == TEXT[1:8]
    assert 1 < data.unigram_perplexity("valid") < 27
    assert math.isfinite(data.unigram_perplexity())


def test_a_limit_cuts_every_split(tmp_path: Path) -> None:
    (tmp_path / "text8").write_text(TEXT)
    data = module(tmp_path, limit=50)
    data.setup()
    assert [len(data.stream(split)) for split in ("train", "valid", "test")] == [50, 50, 50]
    assert data.lines("valid") == [TEXT[-200:-150]]


def test_files_that_are_not_text8(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`data_dir` must hold text8 or text8\.zip"):
        module(tmp_path).setup()
    (tmp_path / "text8.zip").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match=r"must hold a whole text8\.zip"):
        module(tmp_path).setup()
    (tmp_path / "text8").write_text(TEXT[:-1])
    with pytest.raises(ValueError, match=rf"has {len(TEXT)} characters\. Got {len(TEXT) - 1}"):
        module(tmp_path).setup()
    (tmp_path / "text8").write_text("T" + TEXT[1:])
    with pytest.raises(ValueError, match="letters a to z only"):
        module(tmp_path).setup()
