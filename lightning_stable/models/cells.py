"""The recurrent cores the models can be built from, by name."""

from collections.abc import Callable
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_stable.cells import UGRNN, IntersectionRNN, irnn_


def _irnn(*args: Any, **kwargs: Any) -> nn.RNN:
    return irnn_(nn.RNN(*args, nonlinearity="relu", **kwargs))


CELLS: dict[str, Callable[..., nn.RNNBase]] = {
    "rnn": nn.RNN,
    "irnn": _irnn,
    "ugrnn": UGRNN,
    "gru": nn.GRU,
    "lstm": nn.LSTM,
    "intersection": IntersectionRNN,
}


def build_recurrence(
    cell: str,
    input_size: int,
    hidden_size: int,
    *,
    num_layers: int = 1,
    dropout: float = 0.0,
    bidirectional: bool = False,
) -> nn.RNNBase:
    """Return a recurrent network, batch first.

    Args:
        cell: one of ``CELLS``; ``"irnn"`` is a ReLU network whose recurrent weights start as the identity and whose
            biases start at zero.
        input_size: features per time step.
        hidden_size: units per layer.
        num_layers: number of layers.
        dropout: dropout between layers.
        bidirectional: run over the sequence in both directions.

    Raises:
        MisconfigurationException: if there is no such cell.
    """
    if cell not in CELLS:
        raise MisconfigurationException(f"`cell` must be one of {sorted(CELLS)}. Got {cell!r}.")
    # torch warns about dropout "between" the layers of a single one.
    between = dropout if num_layers > 1 else 0.0
    return CELLS[cell](
        input_size,
        hidden_size,
        num_layers=num_layers,
        dropout=between,
        batch_first=True,
        bidirectional=bidirectional,
    )
