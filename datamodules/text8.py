"""text8: the first hundred million characters of a cleaned Wikipedia."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_stable import checks
from lightning_stable.datamodules.language_modeling import LanguageModelingDataModule
from lightning_stable.datamodules.splits import SPLITS, Split
from lightning_stable.datamodules.vocabulary import Alphabet
from lightning_stable.files import unpacked

SYMBOLS = " abcdefghijklmnopqrstuvwxyz"
SIZES: dict[Split, int] = {"train": 90_000_000, "valid": 5_000_000, "test": 5_000_000}


class Text8DataModule(LanguageModelingDataModule):
    """text8 in characters, streamed in columns: 90, 5 and 5 million of them.

    Put the file ``text8``, or ``text8.zip`` as it is distributed, into ``data_dir``. Its 27 symbols are the space and
    the letters a to z; there are no lines. The text lies in memory as bytes.

    Args:
        data_dir: Folder with the file.
        limit: Characters of each split that are used, from its beginning; None for all.
        batch_size: Columns per device in training.
        chunk_length: Time steps per batch.
        kwargs: The other arguments of :class:`~lightning_stable.datamodules.LanguageModelingDataModule`, but for those
            of a vocabulary and the ``tokenizer``: the symbols are fixed.

    Raises:
        TypeError: If an argument, which the message names, has a wrong type.
        ValueError: If an argument, which the message names, is out of its range; in ``setup``, if the file is missing
            or is not text8.
    """

    def __init__(
        self,
        data_dir: str | PathLike[str],
        *,
        limit: int | None = None,
        batch_size: int = 128,
        chunk_length: int = 180,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            tokenizer=list,
            vocab=Alphabet(SYMBOLS),
            vocab_from="all",
            min_frequency=1,
            batch_size=batch_size,
            chunk_length=chunk_length,
            **kwargs,
        )
        self.data_dir = checks.path("data_dir", data_dir)
        self.limit = None if limit is None else checks.integer("limit", limit)

    def lines(self, split: Split) -> Iterable[str]:
        """Return the text of a split as its only line."""
        symbols = self.vocab.get_itos()
        return ["".join(symbols[index] for index in self.stream(split).tolist())]

    def setup(self, stage: str | None = None) -> None:
        """Read the file, once."""
        if self._streams:
            return
        pieces = torch.split(read_text8(self.data_dir), [SIZES[split] for split in SPLITS])
        self._streams = {split: piece[: self.limit].clone() for split, piece in zip(SPLITS, pieces, strict=True)}


def read_text8(folder: Path) -> Tensor:
    """Return the ids of all characters, uint8.

    Raises:
        ValueError: If the file is missing, damaged, or has another size or other characters than text8.
    """
    plain, packed = folder / "text8", folder / "text8.zip"
    if plain.is_file():
        path = plain
        with plain.open("rb") as file:
            content = file.read(sum(SIZES.values()) + 1)
    elif packed.is_file():
        path = packed
        try:
            with zipfile.ZipFile(packed) as archive:
                content = unpacked(archive, "text8", sum(SIZES.values()))
        except (zipfile.BadZipFile, KeyError, ValueError, NotImplementedError) as error:
            raise ValueError(f"`data_dir` must hold a whole text8.zip. Got {str(path)!r}: {error}.") from error
    else:
        raise ValueError(f"`data_dir` must hold text8 or text8.zip; put one there. Got {str(folder)!r} without them.")
    if len(content) != sum(SIZES.values()):
        found = len(content) if path == packed else path.stat().st_size
        raise ValueError(f"text8 has {sum(SIZES.values())} characters. Got {found} in {str(path)!r}.")
    codes = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    ids = torch.full((256,), 255, dtype=torch.uint8)
    ids[list(SYMBOLS.encode())] = torch.arange(len(SYMBOLS), dtype=torch.uint8)
    # In blocks: an index of int64 takes eight times the memory of the text.
    ids = torch.cat([ids[block.long()] for block in torch.split(codes, 1 << 24)])
    if int(ids.max()) >= len(SYMBOLS):
        raise ValueError(f"text8 has spaces and letters a to z only. Got other characters in {str(path)!r}.")
    return ids
