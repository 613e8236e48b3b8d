"""The core of a model, which reads the sequence: a recurrence, its windowed form, or a convolutional network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lightning_stable import checks
from lightning_stable.cells import UGRNN, IntersectionRNN, LeakyRNN, MinGRU, MinLSTM, irnn_
from lightning_stable.feedforward import TCN, ConvolutionalNet, GatedConvNet, WaveNet
from lightning_stable.models.stacks import RecurrentStack
from lightning_stable.recurrence import GatedRecurrence, find_recurrences
from lightning_stable.stability import spread_time_scales_
from lightning_stable.truncation import Windowed, pack_state, unpack_state, window_

# For the input sets that certificates derive from the graph: these two cannot be traced through.
torch.fx.wrap("pack_padded_sequence")
torch.fx.wrap("pad_packed_sequence")


def _irnn(*args: Any, **kwargs: Any) -> nn.RNN:
    return irnn_(nn.RNN(*args, nonlinearity="relu", **kwargs))


CELLS: dict[str, Callable[..., nn.RNNBase]] = {
    "rnn": nn.RNN,
    "irnn": _irnn,
    "ugrnn": UGRNN,
    "gru": nn.GRU,
    "lstm": nn.LSTM,
    "intersection": IntersectionRNN,
    "leaky": LeakyRNN,
    "mingru": MinGRU,
    "minlstm": MinLSTM,
}


CORES: dict[str, type[ConvolutionalNet]] = {"tcn": TCN, "gated-conv": GatedConvNet, "wavenet": WaveNet}


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
        cell: One of ``CELLS``; ``"irnn"`` is a ReLU network whose recurrent weights start as the identity and whose
            biases start at zero.
        input_size: Features per time step.
        hidden_size: Units per layer.
        num_layers: Number of layers.
        dropout: Dropout between layers.
        bidirectional: Run over the sequence in both directions.

    Raises:
        TypeError: If an argument, which the message names, has a wrong type.
        ValueError: If an argument, which the message names, is out of its range.
    """
    checks.choice("cell", cell, sorted(CELLS))
    num_layers = checks.integer("num_layers", num_layers)
    dropout = checks.number("dropout", dropout, "[0, 1)")
    return CELLS[cell](
        checks.integer("input_size", input_size),
        checks.integer("hidden_size", hidden_size),
        num_layers=num_layers,
        # torch warns about dropout "between" the layers of a single one.
        dropout=dropout if num_layers > 1 else 0.0,
        batch_first=True,
        bidirectional=checks.boolean("bidirectional", bidirectional),
    )


def build_core(
    input_size: int,
    hidden_size: int,
    *,
    cell: str = "lstm",
    core: str | None = None,
    num_layers: int = 1,
    dropout: float = 0.0,
    window: int | None = None,
    kernel_size: int | None = None,
    bidirectional: bool = False,
    residual: bool = False,
    normalize: bool = False,
    longest_time_constant: float | None = None,
) -> nn.Module:
    """Return a recurrent network, batch first, or the feed-forward one that replaces it.

    Args:
        input_size: Features per time step.
        hidden_size: Units or channels per layer (and direction).
        cell: Cell of a recurrent core, one of :data:`~lightning_stable.models.CELLS`.
        core: None for a recurrent core; or ``"tcn"``, ``"gated-conv"``, ``"wavenet"``.
        num_layers: Number of layers.
        dropout: Dropout between recurrent layers, or inside a convolutional network.
        window: None for a recurrent core; k for its windowed form, in which an output depends on the last k inputs.
        kernel_size: Taps of a convolution; None for the network's default, or 3 where it is bidirectional. Only a
            convolutional core has it.
        bidirectional: Let an output depend on later inputs as well: a recurrence in both directions, or convolutions
            that are not causal.
        residual: Let every recurrent layer but the first add its outputs to its inputs.
        normalize: Let every recurrent layer but the first read normalised inputs (LayerNorm).
        longest_time_constant: Start gated layers by :func:`~lightning_stable.stability.spread_time_scales_`; None keeps
            torch's initial weights.

    Raises:
        TypeError: If an argument, which the message names, has a wrong type.
        ValueError: If an argument, which the message names, is out of its range or contradicts another.
    """
    window = None if window is None else checks.integer("window", window)
    kernel_size = None if kernel_size is None else checks.integer("kernel_size", kernel_size)
    if core is None:
        if kernel_size is not None:
            raise ValueError(f"`kernel_size` must be None without a convolutional `core`. Got {kernel_size!r}.")
        recurrent: nn.Module
        if checks.boolean("residual", residual) | checks.boolean("normalize", normalize):
            features = hidden_size * (1 + checks.boolean("bidirectional", bidirectional))
            sizes = [input_size, *[features] * (checks.integer("num_layers", num_layers) - 1)]
            recurrent = RecurrentStack(
                [build_recurrence(cell, size, hidden_size, bidirectional=bidirectional) for size in sizes],
                residual=residual,
                normalize=normalize,
                dropout=checks.number("dropout", dropout, "[0, 1)"),
            )
        else:
            recurrent = build_recurrence(
                cell, input_size, hidden_size, num_layers=num_layers, dropout=dropout, bidirectional=bidirectional
            )
        if longest_time_constant is not None:
            if not all(isinstance(r, GatedRecurrence) for r in find_recurrences(recurrent)):
                raise ValueError(
                    "`longest_time_constant` must be None for a `cell` whose gates do not read its state. "
                    f"Got {longest_time_constant!r} with the cell {cell!r}."
                )
            longest = checks.number("longest_time_constant", longest_time_constant, "(1, inf)")
            spread_time_scales_(recurrent, longest)
        return recurrent if window is None else window_(recurrent, window)
    if longest_time_constant is not None:
        raise ValueError(
            f"`longest_time_constant` must be None beside a convolutional `core`. Got {longest_time_constant!r}."
        )
    for name, option in (("residual", residual), ("normalize", normalize)):
        if checks.boolean(name, option):
            raise ValueError(f"`{name}` must be False beside a convolutional `core`, which has its own. Got True.")
    checks.choice("core", core, sorted(CORES))
    if window is not None:
        raise ValueError(
            f"`window` must be None beside a convolutional `core`, which has a receptive field. Got {window!r}."
        )
    if checks.boolean("bidirectional", bidirectional):
        kernel_size = 3 if kernel_size is None else kernel_size  # some defaults are even, without a middle
        if kernel_size % 2 == 0:
            raise ValueError(
                f"`kernel_size` must be odd in a bidirectional model, to have a middle. Got {kernel_size!r}."
            )
    options: dict[str, Any] = {} if kernel_size is None else {"kernel_size": kernel_size}
    return CORES[core](
        input_size, hidden_size, num_layers=num_layers, dropout=dropout, causal=not bidirectional, **options
    )


def output_size(core: nn.Module) -> int:
    """Return the number of features of the core's output."""
    if isinstance(core, (ConvolutionalNet, RecurrentStack)):
        return core.output_size
    assert isinstance(core, nn.RNNBase)
    return core.hidden_size * (2 if core.bidirectional else 1)


def receptive_field(core: nn.Module) -> int | None:
    """Return how many inputs an output depends on, the current one included (on each side, if bidirectional).

    None stands for all of them, as in a recurrent core.
    """
    if isinstance(core, (ConvolutionalNet, RecurrentStack)):
        return core.receptive_field
    return core.window if isinstance(core, Windowed) else None


def evaluate(core: nn.Module, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Return the outputs of a core for whole sequences, ``(batch, time, features)``.

    Args:
        core: A core as :func:`build_core` makes it.
        inputs: Shape ``(batch, time, input_size)``.
        lengths: Lengths of padded sequences, on the CPU, shape ``(batch,)``; None if all are equally long.
    """
    outputs: Tensor
    convolutional = isinstance(core, ConvolutionalNet)
    # What comes after the end of a sequence does not matter to a core that runs forward.
    if lengths is None or (core.causal if convolutional else not core.bidirectional):
        outputs = core(inputs) if convolutional else core(inputs)[0]
    elif isinstance(core, RecurrentStack):
        outputs = core.outputs(inputs, lengths, evaluate)
    elif convolutional:
        mask = torch.arange(inputs.size(1)) < lengths[:, None]
        outputs = core(inputs, mask=mask.to(inputs.device, non_blocking=True))
    else:
        packed = core(pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False))[0]
        outputs = pad_packed_sequence(packed, batch_first=True, total_length=inputs.size(1))[0]
    return outputs


def pack(core: nn.Module, state: Any) -> dict[str, Any]:
    """Return a state of a recurrent core as what ``torch.load(weights_only=True)`` reads."""
    if isinstance(core, RecurrentStack):
        return {"layers": [pack_state(part) for part in state]}
    return pack_state(state)


def unpack(core: nn.Module, packed: dict[str, Any]) -> Any:
    """Return the state again."""
    if not isinstance(core, RecurrentStack):
        return unpack_state(packed, core)
    return tuple(unpack_state(part, layer) for part, layer in zip(packed["layers"], core.layers, strict=True))
