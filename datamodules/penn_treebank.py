"""The Penn Treebank as Mikolov et al. (2010) prepared it for language models, in words or characters."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from lightning_stable.datamodules.language_modeling import END_OF_LINE, LanguageModelingDataModule, Split
from lightning_stable.datamodules.text import find_file, read_lines, split_words
from lightning_stable.datamodules.vocabulary import UNKNOWN, DictVocabulary, Vocabulary

Level = Literal["word", "character"]


def characters_of_words(line: str) -> list[str]:
    """Return the characters of a line, its words joined by ``_``."""
    return list("_".join(line.split()))


TOKENIZERS = {"word": split_words, "character": characters_of_words}
# Columns, columns in evaluation, time steps per chunk.
SIZES = {"word": (20, 10, 35), "character": (128, 10, 150)}


class Alphabet:
    """A vocabulary of the symbols of a text and no other: it has no unknown token.

    Args:
        symbols: the symbols in the order of their ids.
    """

    def __init__(self, symbols: Iterable[str]) -> None:
        self._stoi = {symbol: index for index, symbol in enumerate(symbols)}

    def __call__(self, tokens: list[str]) -> list[int]:
        """Return one id per symbol."""
        return [self._stoi[token] for token in tokens]

    def __len__(self) -> int:
        """Return the number of ids."""
        return len(self._stoi)

    def get_itos(self) -> list[str]:
        """Return the symbols in the order of their ids."""
        return list(self._stoi)


class PennTreebankDataModule(LanguageModelingDataModule):
    """The Penn Treebank (PTB), streamed in columns.

    The text is licensed and not downloaded: put your copy into ``data_dir``.

    At the level of words: words between white space, ``<eos>`` per line, one vocabulary of all three splits. At the
    level of characters: each line stripped, its words joined by ``_``, ``<eos>`` per line, which makes 50 symbols and
    5,017k, 393k and 442k of them in the three splits. Another character PTB is about, of 5,059k symbols, with the
    spaces at the ends of the lines kept; its figures do not compare. (A copy that has its characters set apart by
    spaces already is read with ``level="word"``.)

    Args:
        data_dir: folder with ``ptb.train.txt``, ``ptb.valid.txt`` and ``ptb.test.txt``, or ``train.txt``, ``valid.txt``
            and ``test.txt``: the text in words.
        level: predict ``"word"`` or ``"character"``.
        vocab: a ready vocabulary, such as a ``torchtext.vocab.Vocab``; by default one is built of all splits.
        batch_size: columns per device in training; by default 20 for words and 128 for characters.
        eval_batch_size: columns per device in validation and test.
        chunk_length: time steps per batch; by default 35 for words and 150 for characters.
        vary_length: let the batches of training vary around this length by up to a quarter, anew in each epoch.
        seed: seed of these lengths.

    Raises:
        ValueError: naming the argument that has a wrong type or range; in ``setup``, if a file is missing, empty or not
            UTF-8.
    """

    def __init__(
        self,
        data_dir: str | Path,
        *,
        level: Level = "word",
        vocab: Vocabulary | None = None,
        batch_size: int | None = None,
        eval_batch_size: int | None = None,
        chunk_length: int | None = None,
        vary_length: bool = False,
        seed: int = 0,
    ) -> None:
        if level not in TOKENIZERS:
            raise ValueError(f"`level` must be one of {list(TOKENIZERS)}. Got {level!r}.")
        columns, eval_columns, length = SIZES[level]
        super().__init__(
            tokenizer=TOKENIZERS[level],
            vocab=vocab,
            batch_size=columns if batch_size is None else batch_size,
            eval_batch_size=eval_columns if eval_batch_size is None else eval_batch_size,
            chunk_length=length if chunk_length is None else chunk_length,
            vary_length=vary_length,
            seed=seed,
        )
        self.data_dir = Path(data_dir)
        self.level = level

    def build_vocab(self, tokens: Iterable[str]) -> Vocabulary:
        """Return all words, or all symbols of the text and no other."""
        words = DictVocabulary.build(tokens, specials=[END_OF_LINE])
        # No character is unknown, and a symbol that never occurs would take its share of every prediction.
        return words if self.level == "word" else Alphabet(token for token in words.get_itos() if token != UNKNOWN)

    def lines(self, split: Split) -> Iterable[str]:
        """Return the lines of a file."""
        return read_lines(split, find_file(self.data_dir, split, [f"ptb.{split}.txt", f"{split}.txt"]))
