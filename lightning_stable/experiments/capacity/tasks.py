"""The tasks: a data module, the model that goes with it, what bounds its inputs, and the loss of learning nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torch.nn import functional as F

from lightning_stable.datamodules import (
    ArithmeticDataModule,
    MemoryThroughputDataModule,
    ParenthesesDataModule,
    PerceptronCapacityDataModule,
    PythonDocsDataModule,
    RandomFunctionDataModule,
    Text8DataModule,
)
from lightning_stable.datamodules.language_modeling import LanguageModelingDataModule
from lightning_stable.models import LanguageModel, SequenceRegressor

# Makes a model from the cell, the number of layers and the number of units.
Build = Callable[[str, int, int], LightningModule]
BATCH = 128


@dataclass(frozen=True)
class Task:
    """A task, ready to train on.

    Attributes:
        data: The data module, set up.
        build: Makes a model.
        input_bound: The bound of the inputs of the recurrence; None if it follows from the model.
        floor: The validation loss of a model that has learned nothing but the averages.
    """

    data: LightningDataModule
    build: Build
    input_bound: float | None
    floor: float


def perceptron(patterns: int, seed: int) -> Task:
    """Return the task to learn random labels of fixed sequences."""
    data = PerceptronCapacityDataModule(patterns=patterns, seed=seed)
    data.setup()
    return Task(data, _regressor(data.input_size, 1, "binary"), 1.0, math.log(2))


def function(patterns: int, seed: int) -> Task:
    """Return the task to learn random values of fixed sequences."""
    data = RandomFunctionDataModule(patterns=patterns, seed=seed)
    data.setup()
    return Task(data, _regressor(data.input_size, 1, "mse"), 1.0, 1 / 3)


def memory(values: int, seed: int) -> Task:
    """Return the task to recall real numbers."""
    data = MemoryThroughputDataModule(length=values, seed=seed, batch_size=BATCH)
    data.setup()
    # The variance of these very numbers: by chance a network could seem to hold more than there are.
    floor = data.tensors("valid")[1].square().mean().item()
    return Task(data, _regressor(1, values, "mse"), 1.0, floor)


def parentheses(seed: int) -> Task:
    """Return the task to count open parentheses."""
    data = ParenthesesDataModule(seed=seed, batch_size=BATCH)
    data.setup()
    targets = data.tensors("valid")[1]
    floor = targets.var(0, unbiased=False).mean().item()
    return Task(data, _regressor(data.symbols, data.kinds, "mse"), 1.0, floor)


def arithmetic(seed: int) -> Task:
    """Return the task to add numbers, digit by digit."""
    data = ArithmeticDataModule(seed=seed, digits=2, batch_size=BATCH)
    data.setup()
    classes = data.num_classes
    floor = step_entropy(data.tensors("valid")[1], classes)
    return Task(data, _regressor(classes, classes, "cross-entropy"), 1.0, floor)


@lru_cache(maxsize=1)
def text(data_dir: Path | None) -> Task:
    """Return the task to predict the next character, of text8 in ``data_dir`` or of Python's own documentation."""
    data: LanguageModelingDataModule = (
        PythonDocsDataModule(level="character") if data_dir is None else Text8DataModule(data_dir, batch_size=20)
    )
    data.setup()

    def build(cell: str, layers: int, units: int) -> LightningModule:
        size = data.vocab_size
        kind: dict[str, Any] = {"embedding_size": 8, "dropout": 0.0, "level": "character"}
        return LanguageModel(size, cell=cell, num_layers=layers, hidden_size=units, **kind)

    return Task(data, build, None, math.log(data.unigram_perplexity("valid")))


def step_entropy(targets: Tensor, classes: int) -> float:
    """``-mean_t sum_c p_tc log p_tc``: return the loss, in nats, of a model that knows the step t only.

    Args:
        targets: The classes, of shape ``(sequences, steps)``.
        classes: The number of classes.
    """
    shares = F.one_hot(targets, classes).double().mean(0)
    return float(torch.special.xlogy(shares, shares).sum(1).mean().neg())


def parameter_count(model: LightningModule) -> int:
    """Return the number of trained parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def units_for(build: Build, cell: str, layers: int, parameters: int) -> tuple[int, int]:
    """Return the units per layer whose model comes closest to a number of parameters, and what it has."""

    def size(units: int) -> int:
        return parameter_count(build(cell, layers, units))

    high = 1
    while size(high) < parameters:
        high *= 2
    low = max(1, high // 2)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) < parameters else (low, middle)
    return min(((units, size(units)) for units in (low, high)), key=lambda each: abs(each[1] - parameters))


def _regressor(inputs: int, outputs: int, loss: Any) -> Build:
    def build(cell: str, layers: int, units: int) -> LightningModule:
        return SequenceRegressor(inputs, outputs, loss=loss, cell=cell, num_layers=layers, hidden_size=units)

    return build
