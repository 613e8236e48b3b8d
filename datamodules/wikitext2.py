"""WikiText-2: two million words of good and featured Wikipedia articles (Merity et al., 2016)."""

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from lightning_stable.datamodules.language_modeling import LanguageModelingDataModule, Split, Tokenizer
from lightning_stable.datamodules.text import find_file, read_lines, split_words
from lightning_stable.datamodules.vocabulary import Vocabulary

HUB = ("Salesforce/wikitext", "wikitext-2-v1")
HUB_SPLITS: dict[Split, str] = {"train": "train", "valid": "validation", "test": "test"}


def file_names(split: Split) -> list[str]:
    """Return the names a file of this split may have."""
    return [f"wiki.{split}.tokens", f"{split}.txt"]


def load_hub(split: Split) -> Any:
    """Return the rows of a split from the Hugging Face hub, or from its cache once they were loaded.

    Raises:
        ModuleNotFoundError: if ``datasets`` is missing.
        ValueError: if the hub cannot be reached and the cache does not hold it.
    """
    files = " or ".join(file_names(split))
    try:
        load_dataset = import_module("datasets").load_dataset
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "`datasets` loads WikiText-2; install the extra: pip install 'lightning-stable[text]', or give `data_dir` "
            f"with {files} and the like."
        ) from error
    try:
        return load_dataset(*HUB, split=HUB_SPLITS[split])
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"WikiText-2 could not be loaded from {HUB[0]}, {HUB[1]}. Without a network give `data_dir`, a folder that "
            f"holds every split, the {split} split as {files}. Got: {error}."
        ) from error


class WikiText2DataModule(LanguageModelingDataModule):
    """WikiText-2, streamed in columns.

    The defaults are the usual protocol: words between white space, ``<eos>`` per line (blank lines included), one
    vocabulary of all three splits, in which rare words are ``<unk>`` from the outset.

    Args:
        data_dir: folder with ``wiki.train.tokens``, ``wiki.valid.tokens`` and ``wiki.test.tokens``, or ``train.txt``,
            ``valid.txt`` and ``test.txt``. By default ``Salesforce/wikitext``, ``wikitext-2-v1`` is loaded by Hugging
            Face ``datasets`` (the ``text`` extra), which keeps it in its cache.
        tokenizer: turns a line into its tokens.
        vocab: a ready vocabulary, such as a ``torchtext.vocab.Vocab``; by default one is built.
        vocab_from: build the vocabulary from the ``"train"`` split or from ``"all"`` three.
        min_frequency: rarer tokens are left out of a vocabulary that is built.
        batch_size: columns per device in training.
        eval_batch_size: columns per device in validation and test.
        chunk_length: time steps per batch.

    Raises:
        ValueError: naming the argument that has a wrong type or range; in ``setup``, if a file is missing, empty or not
            UTF-8; in ``prepare_data``, if the hub cannot be reached.
        ModuleNotFoundError: in ``prepare_data``, if ``datasets`` is missing and no ``data_dir`` is given.
    """

    def __init__(
        self,
        data_dir: str | Path | None = None,
        *,
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
        self.data_dir = None if data_dir is None else Path(data_dir)

    def prepare_data(self) -> None:
        """Load the splits into the cache of ``datasets``, unless there is a ``data_dir``."""
        if self.data_dir is None:
            for split in HUB_SPLITS:
                load_hub(split)

    def lines(self, split: Split) -> Iterable[str]:
        """Return the lines of a split."""
        if self.data_dir is None:
            return [str(row["text"]).rstrip("\n") for row in load_hub(split)]
        return read_lines(split, find_file(self.data_dir, split, file_names(split)))
