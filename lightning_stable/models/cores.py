"""The core of a model, which reads the sequence: a recurrence, its windowed form, or a convolutional network."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lightning_stable import checks
from lightning_stable.feedforward import TCN, ConvolutionalNet, GatedConvNet, WaveNet
from lightning_stable.models.cells import build_recurrence
from lightning_stable.truncation import Windowed, window_

# For the input sets that certificates derive from the graph: these two cannot be traced through.
torch.fx.wrap("pack_padded_sequence")
torch.fx.wrap("pad_packed_sequence")

CORES: dict[str, type[ConvolutionalNet]] = {"tcn": TCN, "gated-conv": GatedConvNet, "wavenet": WaveNet}


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
) -> nn.Module:
    """A recurrent network, batch first, or the feed-forward one that replaces it.

    Args:
        input_size: Features per time step.
        hidden_size: Units or channels per layer (and direction).
        cell: Of a recurrent core, one of :data:`~lightning_stable.models.CELLS`.
        core: None for a recurrent core; or ``"tcn"``, ``"gated-conv"``, ``"wavenet"``.
        num_layers: Layers.
        dropout: Dropout between recurrent layers, or inside a convolutional network.
        window: None for a recurrent core; k for its windowed form, in which an output depends on the last k inputs.
        kernel_size: Taps of a convolution; None for the network's default, or 3 where it is bidirectional. Of
            convolutional cores only.
        bidirectional: Let an output depend on later inputs as well: a recurrence in both directions, or convolutions
            that are not causal.

    Raises:
        MisconfigurationException: Naming the argument that has a wrong value, or does not go with the others.
    """
    checks.integer("input_size", input_size)
    checks.integer("hidden_size", hidden_size)
    checks.integer("num_layers", num_layers)
    if window is not None:
        checks.integer("window", window)
    if kernel_size is not None:
        checks.integer("kernel_size", kernel_size)
    checks.number("dropout", dropout, "[0, 1)")
    if core is None:
        if kernel_size is not None:
            raise MisconfigurationException(f"`kernel_size` belongs to a convolutional `core`. Got {kernel_size!r}.")
        recurrent = build_recurrence(
            cell, input_size, hidden_size, num_layers=num_layers, dropout=dropout, bidirectional=bidirectional
        )
        return recurrent if window is None else window_(recurrent, window)
    if core not in CORES:
        raise MisconfigurationException(f"`core` must be one of {sorted(CORES)}, or None for a cell. Got {core!r}.")
    if window is not None:
        raise MisconfigurationException(
            f"`window` belongs to a recurrent core; a convolutional one has a receptive field. Got {window!r}."
        )
    if bidirectional:
        kernel_size = 3 if kernel_size is None else kernel_size  # some defaults are even, without a middle
        if kernel_size % 2 == 0:
            raise MisconfigurationException(
                f"`kernel_size` must be odd in a bidirectional model, to have a middle. Got {kernel_size}."
            )
    options: dict[str, Any] = {} if kernel_size is None else {"kernel_size": kernel_size}
    return CORES[core](
        input_size, hidden_size, num_layers=num_layers, dropout=dropout, causal=not bidirectional, **options
    )


def output_size(core: nn.Module) -> int:
    """Features of the core's output."""
    if isinstance(core, ConvolutionalNet):
        return core.output_size
    assert isinstance(core, nn.RNNBase)
    return core.hidden_size * (2 if core.bidirectional else 1)


def receptive_field(core: nn.Module) -> int | None:
    """How many inputs an output depends on, the current one included (on each side, if bidirectional).

    None for a recurrent core, in which it depends on all.
    """
    if isinstance(core, ConvolutionalNet):
        return core.receptive_field
    return core.window if isinstance(core, Windowed) else None


def evaluate(core: nn.Module, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Outputs of a core for whole sequences, ``(batch, time, features)``.

    Args:
        core: As :func:`build_core` makes it.
        inputs: Shape ``(batch, time, input_size)``.
        lengths: Of padded sequences, on the CPU, shape ``(batch,)``.
    """
    outputs: Tensor
    convolutional = isinstance(core, ConvolutionalNet)
    # What comes after the end of a sequence does not matter to a core that runs forward.
    if lengths is None or (core.causal if convolutional else not core.bidirectional):
        outputs = core(inputs) if convolutional else core(inputs)[0]
    elif convolutional:
        mask = torch.arange(inputs.size(1)) < lengths[:, None]
        outputs = core(inputs, mask=mask.to(inputs.device, non_blocking=True))
    else:
        packed = core(pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False))[0]
        outputs = pad_packed_sequence(packed, batch_first=True, total_length=inputs.size(1))[0]
    return outputs
