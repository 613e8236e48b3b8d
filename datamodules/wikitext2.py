"""WikiText-2: two million words of good and featured Wikipedia articles (Merity et al., 2016)."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from lightning_stable import checks
from lightning_stable.datamodules.language_modeling import LanguageModelingDataModule
from lightning_stable.datamodules.splits import Split
from lightning_stable.datamodules.text_files import find_file, read_lines

HUB = ("Salesforce/wikitext", "wikitext-2-v1")
HUB_SPLITS: dict[Split, str] = {"train": "train", "valid": "validation", "test": "test"}


def file_names(split: Split) -> list[str]:
    """Return the names a file of this split may have."""
    return [f"wiki.{split}.tokens", f"{split}.txt"]


def load_hub(split: Split) -> Any:
    """Return the rows of a split from the Hugging Face hub, or from its cache once they were loaded.

    Raises:
        ModuleNotFoundError: If ``datasets`` is missing.
        ValueError: If the hub cannot be reached and the cache does not hold it.
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
        data_dir: Folder with ``wiki.train.tokens``, ``wiki.valid.tokens`` and ``wiki.test.tokens``, or ``train.txt``,
            ``valid.txt`` and ``test.txt``. By default Hugging Face ``datasets`` (the ``text`` extra) loads
            ``Salesforce/wikitext``, ``wikitext-2-v1`` and keeps it in its cache.
        kwargs: The arguments of :class:`~lightning_stable.datamodules.LanguageModelingDataModule`.

    Raises:
        TypeError: If an argument, which the message names, has a wrong type.
        ValueError: If an argument, which the message names, is out of its range; in ``setup``, if a file is missing,
            empty or not UTF-8; in ``prepare_data``, if the hub cannot be reached.
        ModuleNotFoundError: In ``prepare_data``, if ``datasets`` is missing and there is no ``data_dir``.
    """

    def __init__(self, data_dir: str | Path | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.data_dir = None if data_dir is None else checks.path("data_dir", data_dir)

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
