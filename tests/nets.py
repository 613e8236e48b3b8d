"""Small recurrent nets by name, for tests of the mathematics: float64 unless asked otherwise."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from lightning_stable.cells import UGRNN, IntersectionRNN, LeakyRNN, MinGRU, MinLSTM
from lightning_stable.recurrence import recurrences_of
from lightning_stable.stability import InputSet

LAYERS: dict[str, Callable[..., nn.Module]] = {
    "rnn": nn.RNN,
    "relu": partial(nn.RNN, nonlinearity="relu"),
    "lstm": nn.LSTM,
    "proj": partial(nn.LSTM, proj_size=3),
    "gru": nn.GRU,
    "ugrnn": UGRNN,
    "intersection": IntersectionRNN,
    "leaky": LeakyRNN,
    "mingru": MinGRU,
    "minlstm": MinLSTM,
}
CELLS: dict[str, Callable[..., nn.Module]] = {
    "rnn_cell": nn.RNNCell,
    "relu_cell": partial(nn.RNNCell, nonlinearity="relu"),
    "lstm_cell": nn.LSTMCell,
    "gru_cell": nn.GRUCell,
}
RNN_NORMS, GATED_NORMS = ("l2", "linf", "l1", "perron", "diagonal", "full"), ("row", "tight", "l2")
NORMS = {
    "rnn": RNN_NORMS,
    "relu": RNN_NORMS,
    "lstm": (*GATED_NORMS, "miller-hardt"),
    "proj": (*GATED_NORMS, "miller-hardt"),
    "gru": GATED_NORMS,
    "ugrnn": GATED_NORMS,
    "intersection": GATED_NORMS,
    "leaky": ("l2", "linf", "full"),
    "mingru": GATED_NORMS,
    "minlstm": GATED_NORMS,
}


def net(
    name: str,
    inputs: int = 3,
    units: int = 5,
    *,
    scale: float = 1.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    **kwargs: Any,
) -> nn.Module:
    """The named layer or cell with torch's initial weights times ``scale``."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        module = (LAYERS | CELLS)[name](inputs, units, **kwargs).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(scale)
    return module


def set_(module: nn.Module, **values: Any) -> nn.Module:
    """Overwrite parameters of a layer (``_l0`` is appended): numbers fill, tensors and lists are copied."""
    with torch.no_grad():
        for name, value in values.items():
            parameter = getattr(module, name if hasattr(module, name) else f"{name}_l0")
            parameter.copy_(torch.as_tensor(value, dtype=parameter.dtype))
    return module


def pairwise(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Few rows of the grid of all axes in which any two values of two different axes still meet."""
    grid = list(itertools.product(*(range(len(axis)) for axis in axes)))

    def pairs(row: tuple[int, ...]) -> set[tuple[tuple[int, int], ...]]:
        return set(itertools.combinations(enumerate(row), 2))

    missing, rows = set().union(*map(pairs, grid)), []
    while missing:
        rows.append(max(grid, key=lambda row: len(pairs(row) & missing)))
        missing -= pairs(rows[-1])
    return [tuple(axis[index] for axis, index in zip(axes, row, strict=True)) for row in rows]


def plain_rate(module: nn.Module, inputs: InputSet, norm: str | None = None) -> float:
    """The rate of a layer whose gates take their maxima over the inputs one by one."""
    (recurrence,) = recurrences_of(module)
    weights = recurrence.weights()
    drive = inputs.drive(recurrence.driven_rows(weights))
    return recurrence.contraction(weights, drive, norm=norm).rate.item()
