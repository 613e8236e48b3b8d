"""Plain text files as a language modelling task."""

from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Literal

from lightning_stable.datamodules.language_modeling import (
    SPLITS,
    LanguageModelingDataModule,
    Split,
    Tokenizer,
)
from lightning_stable.datamodules.vocabulary import Vocabulary


def split_words(line: str) -> list[str]:
    """Return the words of a line, cut at white space."""
    return line.split()


def read_lines(name: str, path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file without their ends; a byte order mark is skipped.

    Args:
        name: the argument the path came from, for error messages.
        path: the file.

    Raises:
        ValueError: if the file is missing, empty or not UTF-8.
    """
    if not path.is_file():
        raise ValueError(f"`{name}` must be an existing text file; check the path. Got {str(path)!r}.")
    if path.stat().st_size == 0:
        raise ValueError(f"`{name}` must hold text. Got the empty file {str(path)!r}.")
    with path.open(encoding="utf-8-sig") as file:
        try:
            for line in file:
                yield line.rstrip("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"`{name}` must be UTF-8; convert it. Got {str(path)!r}: {error}.") from error


def find_file(folder: Path, split: str, names: Sequence[str]) -> Path:
    """Return the first file of a folder that has one of the names.

    Args:
        folder: where to look.
        split: what the file is for, for error messages.
        names: the names, the usual one first.

    Raises:
        ValueError: if there is none.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else "no such folder"
    raise ValueError(
        f"`data_dir` must hold the {split} split; put it there as {' or '.join(names)}. Got {str(folder)!r}: {found}."
    )


class TextDataModule(LanguageModelingDataModule):
    """Any three UTF-8 text files, streamed in columns.

    The defaults are the usual protocol for WikiText-2 and the Penn Treebank: words between white space, ``<eos>`` per
    line (blank lines included), one vocabulary of all three files.

    Args:
        data_dir: a folder with ``train.txt``, ``valid.txt`` and ``test.txt``; or leave it out and give the three files:
        train: text to train on.
        valid: text for validation.
        test: text for the test.
        tokenizer: turns a line into its tokens.
        vocab: a ready vocabulary, such as a ``torchtext.vocab.Vocab``; by default one is built.
        vocab_from: build the vocabulary from the ``"train"`` file or from ``"all"`` three.
        min_frequency: rarer tokens are left out of a vocabulary that is built.
        batch_size: columns per device in training.
        eval_batch_size: columns per device in validation and test.
        chunk_length: time steps per batch.

    Raises:
        ValueError: if neither or both of ``data_dir`` and the three files are given, or another argument is wrong; in
            ``setup``, if a file is missing, empty or not UTF-8.
    """

    def __init__(
        self,
        data_dir: str | PathLike[str] | None = None,
        *,
        train: str | PathLike[str] | None = None,
        valid: str | PathLike[str] | None = None,
        test: str | PathLike[str] | None = None,
        tokenizer: Tokenizer = split_words,
        vocab: Vocabulary | None = None,
        vocab_from: Literal["train", "all"] = "all",
        min_frequency: int = 1,
        batch_size: int = 20,
        eval_batch_size: int = 10,
        chunk_length: int = 35,
    ) -> None:
        super().__init__(
            tokenizer=tokenizer,
            vocab=vocab,
            vocab_from=vocab_from,
            min_frequency=min_frequency,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            chunk_length=chunk_length,
        )
        files = (train, valid, test)
        given = [file for file in files if file is not None]
        if len(given) != (3 if data_dir is None else 0):
            raise ValueError(
                "Give either `data_dir` or all of `train`, `valid` and `test`. "
                f"Got data_dir={data_dir!r}, train={train!r}, valid={valid!r}, test={test!r}."
            )
        if data_dir is not None:
            given = [Path(data_dir) / f"{split}.txt" for split in SPLITS]
        self._paths = {split: Path(file) for split, file in zip(SPLITS, given, strict=True)}

    def lines(self, split: Split) -> Iterable[str]:
        """Return the lines of a file."""
        return read_lines(split, self._paths[split])
