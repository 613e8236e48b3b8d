"""Every argument of every public class refuses what is not meant for it, by name."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule

from lightning_stable import datamodules as public
from tests.constructors import (
    BOOLEAN,
    CHOICE,
    NONNEGATIVE,
    PATH,
    POSITIVE,
    SEED,
    SIZE_OF_EFFECT,
    Kind,
    cases,
    defaults,
    of_numpy,
    parser,
    refused,
)

GOOD: dict[str, dict[str, Any]] = {
    "ATISDataModule": {"data_dir": "folder"},
    "BucketBatchSampler": {"lengths": [3, 1], "batch_size": 1},
    "ColumnStream": {"stream": torch.arange(9), "batch_size": 1, "chunk_length": 2},
    "DictVocabulary": {"tokens": ["<unk>"]},
    "PennTreebankDataModule": {"data_dir": "folder"},
    "TextDataModule": {"data_dir": "folder"},
    "Text8DataModule": {"data_dir": "folder"},
}
# They hold what they are made of and check nothing; and what can only be subclassed is walked as its subclasses are.
UNCHECKED = {"DownloadError", "LinearSystem", "PaddedBatch", "Vocabulary"}
CLASSES = {
    name: value
    for name, value in ((name, getattr(public, name)) for name in public.__all__)
    if isinstance(value, type) and not inspect.isabstract(value) and name not in UNCHECKED
}
DATA_MODULES = {name: value for name, value in CLASSES.items() if issubclass(value, LightningDataModule)}

SIZES = """
    batch_size chunk_length copied delay eval_batch_size input_size kinds length limit min_frequency output_size
    patterns state_size steps_per_epoch symbols test_size train_size valid_size world_size
"""
KINDS: dict[str, Kind] = {
    **dict.fromkeys(SIZES.split(), POSITIVE),
    "bucket": BOOLEAN,
    "data_dir": PATH,
    "digits": POSITIVE,
    "lengths": ((3, "31"), ([],)),
    "level": CHOICE,
    "name": CHOICE,
    "noise": NONNEGATIVE,
    "rank": NONNEGATIVE,
    "rate": SIZE_OF_EFFECT,
    "seed": SEED,
    "shuffle": BOOLEAN,
    "stream": ((3, [1, 2, 3]), ()),
    "tokenizer": ((3, None), ()),
    "tokens": ((3, "<unk>"), ()),
    "vary_length": BOOLEAN,
    "vocab": ((3, {"<unk>": 0}), ()),
    "vocab_from": CHOICE,
    **dict.fromkeys(("train", "valid", "test"), ((), ("folder/file",))),  # beside `data_dir`
}
SPECIAL: dict[tuple[str, str], Kind] = {
    ("ATISDataModule", "digits"): BOOLEAN,
    ("AddingDataModule", "length"): ((1.5, True, "3"), (0, 1)),
    ("ArithmeticDataModule", "digits"): ((1.5, True, "3"), (0, 18)),
    ("LinearSystemDataModule", "noise"): SIZE_OF_EFFECT,
    ("MemoryThroughputDataModule", "delay"): NONNEGATIVE,
}


@cases([(value, GOOD.get(name, {})) for name, value in CLASSES.items()], KINDS)
def test_bad_arguments(constructor: Callable[..., Any], good: dict[str, Any], name: str, kind: Kind) -> None:
    refused(constructor, good, name, SPECIAL.get((constructor.__name__, name), kind))


@pytest.mark.parametrize("name", ["train", "valid", "test"])
def test_files_of_a_text_are_paths(name: str) -> None:
    refused(public.TextDataModule, dict.fromkeys(("train", "valid", "test"), "file"), name, PATH)


def test_every_rank_is_one_of_the_processes() -> None:
    for name in ("BucketBatchSampler", "ColumnStream"):
        refused(CLASSES[name], {**GOOD[name], "world_size": 2}, "rank", ((), (-1, 2)))


@pytest.mark.parametrize("name", DATA_MODULES)
def test_numbers_of_numpy_become_plain(name: str) -> None:
    """They would end up in whatever is pickled or printed."""
    good = GOOD.get(name, {})
    data = DATA_MODULES[name](**of_numpy(defaults(DATA_MODULES[name]) | {"seed": 3}) | good)
    assert data.seed == 3
    assert not any(isinstance(value, np.generic) for value in vars(data).values())


@pytest.mark.parametrize("name", DATA_MODULES)
def test_the_command_line_offers_the_arguments_of_the_base(name: str) -> None:
    options = parser(DATA_MODULES[name])
    good = [f"--of.{key}={value}" for key, value in GOOD.get(name, {}).items()]
    assert options.parse_args([*good, "--of.seed=4"]).of.seed == 4
    for wrong in ("--of.seeds=4", "--of.seed=four"):
        with pytest.raises(Exception, match="seed"):
            options.parse_args([*good, wrong])
    assert "Seed of" in options.format_help()  # the docstring of the base
