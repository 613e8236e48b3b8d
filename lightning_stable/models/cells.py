"""The recurrent cores the models can be built from, by name."""

from collections.abc import Callable
from functools import partial

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

CELLS: dict[str, Callable[..., nn.RNNBase]] = {
    "rnn": nn.RNN,
    "irnn": partial(nn.RNN, nonlinearity="relu"),
    "gru": nn.GRU,
    "lstm": nn.LSTM,
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
    core = CELLS[cell](
        input_size,
        hidden_size,
        num_layers=num_layers,
        dropout=between,
        batch_first=True,
        bidirectional=bidirectional,
    )
    if cell == "irnn":
        for name, parameter in core.named_parameters():
            if name.startswith("weight_hh"):
                nn.init.eye_(parameter)
            elif name.startswith("bias"):
                nn.init.zeros_(parameter)
    return core
