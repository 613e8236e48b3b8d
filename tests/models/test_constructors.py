"""Every argument of every public model refuses what is not meant for it, by name."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from lightning_stable import models as public
from tests.constructors import (
    BOOLEAN,
    CHOICE,
    POSITIVE,
    RATE_OF_LEARNING,
    SHARE,
    Kind,
    cases,
    defaults,
    of_numpy,
    parser,
    refused,
)
from tests.helpers import ONLY_WEIGHTS, trainer

GOOD: dict[str, dict[str, Any]] = {
    "LanguageModel": {"vocab_size": 7},
    "MusicModel": {"keys": 2},
    "SequenceRegressor": {"input_size": 3, "output_size": 2},
    "SlotTagger": {"vocab_size": 7, "labels": ["O", "B-x"]},
}
SMALL = {"hidden_size": 4, "embedding_size": 4, "dropout": 0.25, "learning_rate": 0.5}
# What is walked as its subclasses are.
BASES = {"CoreModel"}
MODELS: dict[str, type[L.LightningModule]] = {
    name: value
    for name, value in ((name, getattr(public, name)) for name in public.__all__)
    if isinstance(value, type) and name not in BASES
}
SIZES = """
    embedding_size hidden_size input_size kernel_size keys num_layers output_size vocab_size window
"""
KINDS: dict[str, Kind] = {
    **dict.fromkeys(SIZES.split(), POSITIVE),
    "bidirectional": BOOLEAN,
    "cell": CHOICE,
    "core": ((3,), ("lstm",)),
    "dropout": SHARE,
    "input_dropout": ((True, "half"), (-0.1, 1.0)),
    "key_frequencies": ((0.5, "ab", [0.5, "x"]), ([0.5], [0.5, 1.5], [0.0, 0.5])),
    "labels": (("OB", 3, ["O", 3]), ([], ["O", "x"])),
    "learning_rate": RATE_OF_LEARNING,
    "level": CHOICE,
    "longest_time_constant": ((True, "long"), (1.0, 0, math.nan, math.inf)),
    "loss": CHOICE,
    "normalize": BOOLEAN,
    "residual": BOOLEAN,
    "tie_weights": BOOLEAN,
    "unknown_rate": SHARE,
}


@cases([(MODELS[name], GOOD[name]) for name in MODELS], KINDS)
def test_bad_arguments(constructor: Callable[..., Any], good: dict[str, Any], name: str, kind: Kind) -> None:
    # The numbers of a list are refused one by one.
    told = tuple(tuple(value for value in values if not isinstance(value, list)) for values in kind)
    refused(constructor, good | ({"core": "tcn"} if name == "kernel_size" else {}), name, told)  # type: ignore[arg-type]
    for error, values in zip((TypeError, ValueError), kind, strict=True):
        for value in values:
            if isinstance(value, list):
                with pytest.raises(error, match=rf"`{name}` must .* Got ") as raised:
                    constructor(**good | {name: value})
                assert any(repr(part) in str(raised.value) for part in (value, *value))


@pytest.mark.parametrize("name", MODELS)
def test_hyperparameters_are_plain_whatever_the_arguments_were(name: str, tmp_path: Path) -> None:
    """So ``torch.load`` reads the checkpoint without executing anything, and loggers write numbers."""
    every = defaults(MODELS[name])
    asked = {**every, **SMALL, **GOOD[name]} | ({"key_frequencies": [0.25, 0.5]} if name == "MusicModel" else {})
    plain = {key: value for key, value in asked.items() if key in every}
    lists = {key: np.array(value) for key, value in plain.items() if key == "key_frequencies"}
    model = MODELS[name](**plain | of_numpy(plain) | lists)
    assert not any(isinstance(value, np.generic) for value in vars(model).values())

    run = trainer(tmp_path)
    run.strategy.connect(model)
    run.save_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    for saved in (torch.load(tmp_path / "model.ckpt", weights_only=True)["hyper_parameters"], model.hparams_initial):
        assert saved == plain
        assert {key: type(value) for key, value in saved.items()} == {key: type(plain[key]) for key in plain}
    restored = MODELS[name].load_from_checkpoint(tmp_path / "model.ckpt", **ONLY_WEIGHTS)
    assert restored.hparams == model.hparams


@pytest.mark.parametrize("name", MODELS)
def test_the_command_line_offers_the_arguments_of_the_base(name: str) -> None:
    options = parser(MODELS[name])
    good = [f"--of.{key}={value}" for key, value in GOOD[name].items()]
    assert options.parse_args([*good, "--of.num_layers=2"]).of.num_layers == 2
    for wrong in ("--of.layers=2", "--of.num_layers=two"):
        with pytest.raises(Exception, match="layers"):
            options.parse_args([*good, wrong])
    assert "Number of layers" in re.sub(r"\s+", " ", options.format_help())  # the docstring of the base
