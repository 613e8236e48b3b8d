"""Slot filling on the Airline Travel Information System corpus (ATIS)."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lightning_stable import checks
from lightning_stable.datamodules.padded import Pair
from lightning_stable.datamodules.sequences import SequenceDataModule
from lightning_stable.datamodules.splits import Split
from lightning_stable.datamodules.text_files import find_file, read_lines
from lightning_stable.datamodules.vocabulary import DictVocabulary

STEMS: dict[Split, tuple[str, ...]] = {
    "train": ("atis-2.train", "train"),
    "valid": ("atis-2.dev", "dev", "valid"),
    "test": ("atis.test", "test"),
}
SUFFIXES = (".iob", ".w-intent.iob", ".csv")
OUTSIDE = "O"
# Every tenth utterance validates where the corpus comes without a split for it.
HELD_OUT = 10

# Of a file with a word per line: the word, the tag, and what stands between them or after them.
_MOST_COLUMNS = 3
_TAG = re.compile(r"O|[BI]-.+")
_DIGIT = re.compile(r"\d")


class Utterance(NamedTuple):
    """The words of an utterance and the slot tag of each, in the BIO scheme."""

    words: list[str]
    tags: list[str]


def read_utterances(path: Path) -> list[Utterance]:
    r"""Read an ``.iob`` file or a CSV file with the columns text and slots.

    An ``.iob`` file has an utterance per line, ``BOS w1 .. wn EOS<TAB>O t1 .. tn O``, or a word per line, as CoNLL's
    files do: the word and its tag, with one column more before or after the tag, and a blank line after each utterance.

    ``BOS`` and ``EOS`` may be missing. They are dropped, with their tags, of which the last may be the intent of the
    utterance instead of ``O``. Between utterances of a line each, blank lines are skipped.

    Args:
        path: The file; one that ends in ``.csv`` is read as CSV.

    Raises:
        ValueError: If a line, which the message names, has no tags, another number of words than of tags, tags of
            another scheme, or more columns than others; or if the file is empty, is not UTF-8 or lacks a column.
    """
    rows = _csv_rows(path) if path.suffix == ".csv" else _iob_rows(path)
    utterances = [_utterance(f"{path}, line {line}", text, slots) for line, text, slots in rows]
    if not utterances:
        raise ValueError(f"The file must hold utterances. Got none in {str(path)!r}.")
    return utterances


def _iob_rows(path: Path) -> Iterator[tuple[int, str, str]]:
    lines = [(number, line.strip()) for number, line in enumerate(read_lines("data_dir", path), 1)]
    written = [line for _, line in lines if line]
    if any(map(_is_token, written)) and not any(map(_is_utterance, written)):
        yield from _token_rows(path, lines)
        return
    for number, line in lines:
        if line:
            text, _, slots = line.partition("\t")
            yield number, text, slots


def _is_token(line: str) -> bool:
    """Whether a line may be one word with its tag; an utterance of one word may look like this, too."""
    several_words = "\t" in line and len(line.partition("\t")[0].split()) > 1
    return 1 < len(line.split()) <= _MOST_COLUMNS and not several_words


def _is_utterance(line: str) -> bool:
    """Whether a line is an utterance of several words."""
    text, _, slots = line.partition("\t")
    return 1 < len(text.split()) <= len(slots.split())


def _token_rows(path: Path, lines: list[tuple[int, str]]) -> Iterator[tuple[int, str, str]]:
    """Join the lines of each utterance of a file with a word per line."""
    tokens = [(number, line.split()) for number, line in lines]
    width = len(next(columns for _, columns in tokens if columns))
    for number, columns in tokens:
        if columns and (len(columns) != width or width > _MOST_COLUMNS):
            raise ValueError(
                f"A file with a word per line must have the same 2 or 3 columns in each, separated by blanks. "
                f"Got {len(columns)} after lines with {width} in {path}, line {number}."
            )
    if len(tokens) > 1 and all(columns for _, columns in tokens):
        raise ValueError(
            f"A file with a word per line must have a blank line after each utterance; utterances of a single word "
            f"need BOS and EOS. Got {len(tokens)} lines and none that is blank in {path}, line {len(tokens)}."
        )
    # The column after the tag is the intent; the one before it, the part of speech.
    is_second = all(_TAG.fullmatch(columns[1]) for _, columns in tokens if columns)
    is_last = all(_TAG.fullmatch(columns[-1]) for _, columns in tokens if columns)
    column = 1 if is_second and not is_last else -1
    for number, columns in tokens:
        if columns and not _TAG.fullmatch(columns[column]):
            raise ValueError(f"Tags must be O, B-slot or I-slot. Got {columns[column]!r} in {path}, line {number}.")
    utterance: list[tuple[int, list[str]]] = []
    for number, columns in [*tokens, (0, [])]:
        if columns:
            utterance.append((number, columns))
        elif utterance:
            words, tags = zip(*((columns[0], columns[column]) for _, columns in utterance), strict=True)
            yield utterance[0][0], " ".join(words), " ".join(tags)
            utterance = []


def _csv_rows(path: Path) -> Iterator[tuple[int, str, str]]:
    # The reader gets lines with their ends, which a quoted field may hold.
    reader = csv.DictReader(f"{line}\n" for line in read_lines("data_dir", path))
    if missing := {"text", "slots"} - set(reader.fieldnames or ()):
        raise ValueError(f"{str(path)!r} must have the columns text and slots. Got none named {sorted(missing)}.")
    for row in reader:
        yield reader.line_num, row["text"] or "", row["slots"] or ""


def _utterance(place: str, text: str, slots: str) -> Utterance:
    words, tags = text.split(), slots.split()
    intent = bool(tags) and not _TAG.fullmatch(tags[-1])
    if intent and len(tags) == len(words) + 1:
        tags.pop()
    if not words or len(words) != len(tags):
        raise ValueError(
            f"An utterance must have one tag per word, in a column of their own. "
            f"Got {len(words)} words and {len(tags)} tags in {place}."
        )
    first, last = int(words[0] == "BOS"), len(words) - (words[-1] == "EOS")
    words, tags = words[first:last], tags[first:last]
    if not words:
        raise ValueError(f"An utterance must have words between BOS and EOS. Got none in {place}.")
    if wrong := [tag for tag in tags if not _TAG.fullmatch(tag)]:
        raise ValueError(f"Tags must be O, B-slot or I-slot. Got {wrong[0]!r} in {place}.")
    return Utterance(words, tags)


def _labels(utterances: Iterable[Utterance]) -> set[str]:
    return {tag for utterance in utterances for tag in utterance.tags}


class ATISDataModule(SequenceDataModule):
    """Labels each word of a spoken request with the slot it fills.

    Words are lower-cased, and those that training does not have become ``<unk>``. Batches are
    :class:`~lightning_stable.datamodules.padded.PaddedBatch`: ``inputs`` word ids, ``targets`` label ids, int64 of
    shape ``(batch, time)``, padded with 0 and with -100, which ``cross_entropy`` ignores.

    Some labels of validation and test never occur in training. They too have ids, after those of training, so that
    the chunks they belong to are counted as misses; a model has an output for each of ``num_labels``, though nothing
    teaches it these.

    The corpus is not downloaded: put its files into ``data_dir``.

    Args:
        data_dir: Folder with ``atis-2.train.iob``, ``atis-2.dev.iob`` and ``atis.test.iob``, or ``train``, ``dev`` (or
            ``valid``) and ``test`` with ``.iob`` or ``.csv``; see :func:`read_utterances` for both formats. Without a
            file for validation every tenth training utterance is kept for it.
        min_frequency: Words that are rarer in training become ``<unk>``.
        digits: Write every digit as 0, so that the form of a flight number or time unseen in training is familiar.
        kwargs: The arguments of :class:`~lightning_stable.datamodules.SequenceDataModule`.

    Attributes:
        vocab: After ``setup``: the words of training.
        labels: After ``setup``: the labels by id, O first, those of training before the others.

    Raises:
        TypeError: If an argument, which the message names, has a wrong type.
        ValueError: If an argument, which the message names, is out of its range; in ``setup``, if a file is missing or
            empty, or a line is wrong.
    """

    target_padding = -100.0
    vocab: DictVocabulary
    labels: list[str]

    def __init__(self, data_dir: str | Path, *, min_frequency: int = 1, digits: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.data_dir = checks.path("data_dir", data_dir)
        self.min_frequency = checks.integer("min_frequency", min_frequency)
        self.digits = checks.boolean("digits", digits)

    @property
    def vocab_size(self) -> int:
        """The number of word ids."""
        return len(self.vocab)

    @property
    def num_labels(self) -> int:
        """The number of labels of all splits."""
        return len(self.labels)

    def read(self) -> dict[Split, list[Pair]]:
        """Read the files; collect words and labels."""
        splits = self._utterances()
        train = _labels(splits["train"]) | {OUTSIDE}
        others = _labels(splits["valid"] + splits["test"]) - train
        self.labels = [OUTSIDE, *sorted(train - {OUTSIDE}), *sorted(others)]
        self.vocab = DictVocabulary.build(
            (word for utterance in splits["train"] for word in self._words(utterance)), min_frequency=self.min_frequency
        )
        ids = {label: index for index, label in enumerate(self.labels)}
        return {
            split: [
                (torch.tensor(self.vocab(self._words(one))), torch.tensor([ids[tag] for tag in one.tags]))
                for one in utterances
            ]
            for split, utterances in splits.items()
        }

    def _words(self, utterance: Utterance) -> list[str]:
        words = [word.lower() for word in utterance.words]
        return [_DIGIT.sub("0", word) for word in words] if self.digits else words

    def _utterances(self) -> dict[Split, list[Utterance]]:
        names = {split: [stem + suffix for suffix in SUFFIXES for stem in stems] for split, stems in STEMS.items()}
        without_valid = not any((self.data_dir / name).is_file() for name in names["valid"])
        if without_valid:
            del names["valid"]
        splits = {split: read_utterances(find_file(self.data_dir, split, names[split])) for split in names}
        if without_valid:
            train = splits["train"]
            if len(train) < HELD_OUT:
                raise ValueError(
                    f"`data_dir` must hold {STEMS['valid'][0]}.iob, or at least {HELD_OUT} training utterances, every "
                    f"tenth of which then validates. Got {len(train)} in {str(self.data_dir)!r}."
                )
            splits["valid"] = train[HELD_OUT - 1 :: HELD_OUT]
            splits["train"] = [one for index, one in enumerate(train, 1) if index % HELD_OUT]
        return splits
