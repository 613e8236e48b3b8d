"""Plain text files as a language modelling task."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from typing import Any

from lightning_stable import checks
from lightning_stable.datamodules.language_modeling import LanguageModelingDataModule
from lightning_stable.datamodules.splits import SPLITS, Split
from lightning_stable.datamodules.text_files import read_lines


class TextDataModule(LanguageModelingDataModule):
    """Any three UTF-8 text files, streamed in columns.

    The defaults are the usual protocol for WikiText-2 and the Penn Treebank: words between white space, ``<eos>`` per
    line (blank lines included), one vocabulary of all three files.

    Args:
        data_dir: Folder with ``train.txt``, ``valid.txt`` and ``test.txt``. None if the three files are passed instead.
        train: Text to train on.
        valid: Text for validation.
        test: Text for the test.
        kwargs: The arguments of :class:`~lightning_stable.datamodules.LanguageModelingDataModule`.

    Raises:
        TypeError: If an argument, which the message names, has a wrong type.
        ValueError: If neither or both of ``data_dir`` and the three files are passed, or another argument is out of its
            range; in ``setup``, if a file is missing, empty or not UTF-8.
    """

    def __init__(
        self,
        data_dir: str | PathLike[str] | None = None,
        *,
        train: str | PathLike[str] | None = None,
        valid: str | PathLike[str] | None = None,
        test: str | PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        files: dict[Split, str | PathLike[str] | None] = {"train": train, "valid": valid, "test": test}
        folder = None if data_dir is None else checks.path("data_dir", data_dir)
        for split, file in files.items():
            if file is not None:
                checks.path(split, file)
        if [file is None for file in files.values()] != [data_dir is not None] * len(SPLITS):
            raise ValueError(
                "Either `data_dir` or all of `train`, `valid` and `test` must be passed. "
                f"Got data_dir={data_dir!r}, train={train!r}, valid={valid!r}, test={test!r}."
            )
        if folder is not None:
            files = {split: folder / f"{split}.txt" for split in SPLITS}
        self._paths = {split: checks.path(split, file) for split, file in files.items()}

    def lines(self, split: Split) -> Iterable[str]:
        """Return the lines of a file."""
        return read_lines(split, self._paths[split])
