"""The Penn Treebank as Mikolov et al. (2010) prepared it for language models, in words or characters."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from lightning_stable import checks
from lightning_stable.datamodules.language_modeling import LanguageModelingDataModule, split_words
from lightning_stable.datamodules.splits import Split
from lightning_stable.datamodules.text_files import find_file, read_lines
from lightning_stable.datamodules.vocabulary import UNKNOWN, Alphabet, Vocabulary

Level = Literal["word", "character"]


def characters_of_words(line: str) -> list[str]:
    """Return the characters of a line, its words joined by ``_``."""
    return list("_".join(line.split()))


TOKENIZERS = {"word": split_words, "character": characters_of_words}
# Columns in training and time steps per chunk.
SIZES = {"word": (20, 35), "character": (128, 150)}


class PennTreebankDataModule(LanguageModelingDataModule):
    """The Penn Treebank (PTB), streamed in columns.

    The text is licensed and not downloaded: put your copy into ``data_dir``.

    At the level of words: words between white space, ``<eos>`` per line, one vocabulary of all three splits. At the
    level of characters: each line stripped, its words joined by ``_``, ``<eos>`` per line, which makes 50 symbols and
    5,017k, 393k and 442k of them in the three splits. Another character PTB, of 5,059k symbols, keeps the spaces at
    the ends of the lines; its figures do not compare. (Read a copy whose characters are already set apart by spaces
    with ``level="word"``.)

    Args:
        data_dir: Folder with ``ptb.train.txt``, ``ptb.valid.txt`` and ``ptb.test.txt``, or ``train.txt``, ``valid.txt``
            and ``test.txt``: the text in words.
        level: Predict ``"word"`` or ``"character"``.
        batch_size: Columns per device in training; by default 20 for words and 128 for characters.
        chunk_length: Time steps per batch; by default 35 for words and 150 for characters.
        kwargs: The other arguments of :class:`~lightning_stable.datamodules.LanguageModelingDataModule`, but for
            ``tokenizer``, ``vocab_from`` and ``min_frequency``, which belong to the protocol.

    Raises:
        TypeError: If an argument, which the message names, has a wrong type.
        ValueError: If an argument, which the message names, is out of its range; in ``setup``, if a file is missing,
            empty or not UTF-8.
    """

    def __init__(
        self,
        data_dir: str | Path,
        *,
        level: Level = "word",
        batch_size: int | None = None,
        chunk_length: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.level = checks.choice("level", level, list(TOKENIZERS))
        columns, length = SIZES[self.level]
        super().__init__(
            tokenizer=TOKENIZERS[self.level],
            vocab_from="all",
            min_frequency=1,
            batch_size=columns if batch_size is None else batch_size,
            chunk_length=length if chunk_length is None else chunk_length,
            **kwargs,
        )
        self.data_dir = checks.path("data_dir", data_dir)

    def build_vocab(self, tokens: Iterable[str]) -> Vocabulary:
        """Return all words, or all symbols of the text and no other."""
        words = super().build_vocab(tokens)
        # No character is unknown, and a symbol that never occurs would take its share of every prediction.
        return words if self.level == "word" else Alphabet(token for token in words.get_itos() if token != UNKNOWN)

    def lines(self, split: Split) -> Iterable[str]:
        """Return the lines of a file."""
        return read_lines(split, find_file(self.data_dir, split, [f"ptb.{split}.txt", f"{split}.txt"]))
