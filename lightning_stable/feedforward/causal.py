"""The base of the convolutional networks: the padded convolution, context, masks, the receptive field."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_stable import checks


class Convolution(nn.Conv1d):
    """A convolution that returns as many time steps as it gets, reading zeros where there are none.

    Weights start normal with standard deviation ``gain / sqrt(in_channels * kernel_size)``, biases at zero.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Number of taps; odd, unless causal.
        dilation: Steps from one tap to the next.
        causal: Whether it reads the past and the present only, or as far into the future as into the past.
        gain: Factor by which the outputs deviate more than the inputs.
    """

    # No weight normalisation: a module with torch's parametrization can be neither pickled nor saved whole. It would
    # not change what the networks can compute; the scale of the initial weights, which it serves, is set by ``gain``.

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        dilation: int = 1,
        causal: bool = True,
        gain: float = 1.0,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, dilation=dilation)
        past = (kernel_size - 1) * dilation // (1 if causal else 2)
        self.reach = (past, 0 if causal else past)
        nn.init.normal_(self.weight, std=gain / math.sqrt(in_channels * kernel_size))
        nn.init.zeros_(self.get_parameter("bias"))

    def forward(self, input: Tensor, padding: Tensor | None = None) -> Tensor:
        """Convolve over time.

        Args:
            input: Shape ``(batch, in_channels, time)``.
            padding: True where the input counts as zero, shape ``(batch, 1, time)``.

        Returns:
            Shape ``(batch, out_channels, time)``.
        """
        if padding is not None:
            input = input.masked_fill(padding, 0.0)
        return super().forward(F.pad(input, self.reach))


class ConvolutionalNet(nn.Module, ABC):
    """A stack of :class:`Convolution` layers with the batch first: a subclass builds it and says how it is evaluated.

    It is causal by default: an output depends on the last ``receptive_field`` inputs and on nothing else. A stream may
    come in chunks: given the inputs before a chunk, of which the last ``receptive_field - 1`` are enough, its outputs
    are those of one pass over the whole stream. At the beginning every layer reads zeros.

    Args:
        input_size: Features per time step.
        hidden_size: Channels of every layer and features of the output.
        num_layers: Number of layers (of blocks, where a block has several convolutions).
        kernel_size: Taps of a convolution; odd, unless causal.
        dropout: Probability that an element of a hidden layer is dropped, each channel and time step by itself.
        causal: False lets the outputs depend on the inputs after them as well, as far as on those before.

    Raises:
        TypeError: If an argument has a wrong type; the message names it.
        ValueError: If an argument is out of range; the message names it.
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int, kernel_size: int, dropout: float, causal: bool
    ) -> None:
        super().__init__()
        self.input_size = checks.integer("input_size", input_size)
        self.output_size = checks.integer("hidden_size", hidden_size)
        checks.integer("num_layers", num_layers)
        checks.integer("kernel_size", kernel_size)
        self.causal = checks.boolean("causal", causal)
        if not causal and kernel_size % 2 == 0:
            raise ValueError(f"`kernel_size` must be odd with causal=False, to have a middle. Got {kernel_size}.")
        self.dropout = nn.Dropout(checks.number("dropout", dropout, "[0, 1)"))

    @abstractmethod
    def evaluate(self, hidden: Tensor, padding: Tensor | None) -> Tensor:
        """Evaluate the stack.

        Args:
            hidden: The inputs, ``(batch, input_size, time)``.
            padding: For the convolutions: True where they read zeros, ``(batch, 1, time)``.

        Returns:
            Shape ``(batch, output_size, time)``.
        """

    @property
    def receptive_field(self) -> int:
        """Number of inputs an output depends on, the current one included; with ``causal=False``, on each side.

        The output at ``t`` depends on the inputs ``t - receptive_field + 1 .. t`` and, unless causal, on those up to
        ``t + receptive_field - 1``.
        """
        return 1 + sum(layer.reach[0] for layer in self.modules() if isinstance(layer, Convolution))

    def forward(self, inputs: Tensor, before: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Evaluate the network at every time step.

        Args:
            inputs: Shape ``(batch, time, input_size)``.
            before: The inputs before the first one, ``(batch, n, input_size)`` with any ``n``, or None at the beginning
                of a sequence. Causal networks only.
            mask: False at padding, ``(batch, time)``, bool. Padding counts as zeros in every layer, so that valid
                outputs are those of each sequence by itself; outputs at padding are zero. A causal network needs it
                only for padding on the left.

        Returns:
            Shape ``(batch, time, output_size)``.

        Raises:
            ValueError: If an argument has a wrong shape, or ``before`` is given to a network that is not causal.
        """
        self._check(inputs, before, mask)
        context = 0
        if before is not None:
            before = before[:, max(0, before.size(1) - self.receptive_field + 1) :]
            context = before.size(1)
            inputs = torch.cat([before, inputs], 1)
        hidden, padding = inputs.transpose(1, 2), None
        if mask is not None:
            padding = ~F.pad(mask, (context, 0), value=True).unsqueeze(1)
            hidden = hidden.masked_fill(padding, 0.0)
        output = self.evaluate(hidden, padding)
        if padding is not None:
            output = output.masked_fill(padding, 0.0)
        return output.transpose(1, 2)[:, context:]

    def _check(self, inputs: Tensor, before: Tensor | None, mask: Tensor | None) -> None:
        if inputs.dim() != 3 or inputs.size(1) < 1 or inputs.size(2) != self.input_size:
            raise ValueError(
                f"`inputs` must have shape (batch, time, {self.input_size}) and a time step. Got {tuple(inputs.shape)}."
            )
        if before is not None:
            if not self.causal:
                raise ValueError(
                    "`before` is for causal networks: this one needs inputs after a chunk as well; give it whole "
                    f"sequences. Got causal=False and `before` of shape {tuple(before.shape)}."
                )
            if before.dim() != 3 or before.size(0) != inputs.size(0) or before.size(2) != self.input_size:
                expected = f"({inputs.size(0)}, n, {self.input_size})"
                raise ValueError(f"`before` must have shape {expected}. Got {tuple(before.shape)}.")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != inputs.shape[:2]):
            shape = tuple(inputs.shape[:2])
            raise ValueError(f"`mask` must be bool of shape {shape}. Got {mask.dtype} of shape {tuple(mask.shape)}.")
