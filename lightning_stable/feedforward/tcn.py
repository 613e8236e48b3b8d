"""The temporal convolutional network of Bai, Kolter & Koltun."""

from __future__ import annotations

import math
from functools import partial

from torch import Tensor, nn

from lightning_stable.feedforward.causal import Convolution, ConvolutionalNet


class Block(nn.Module):
    """``relu(x + F(x))``, where F is twice convolution, relu, dropout; ``x`` is projected where the width changes."""

    def __init__(
        self, input_size: int, hidden_size: int, kernel_size: int, dilation: int, causal: bool, scale: float
    ) -> None:
        super().__init__()
        layer = partial(Convolution, kernel_size=kernel_size, dilation=dilation, causal=causal)
        self.first = layer(input_size, hidden_size, gain=math.sqrt(2))
        self.second = layer(hidden_size, hidden_size, gain=scale * math.sqrt(2))
        self.shortcut = nn.Identity() if input_size == hidden_size else Convolution(input_size, hidden_size)

    def forward(self, hidden: Tensor, padding: Tensor | None, dropout: nn.Dropout) -> Tensor:
        """Return ``(batch, hidden_size, time)`` for ``(batch, input_size, time)``."""
        branch = dropout(self.first(hidden, padding).relu())
        branch = dropout(self.second(branch, padding).relu())
        output: Tensor = (self.shortcut(hidden) + branch).relu()
        return output


class TCN(ConvolutionalNet):
    """Temporal convolutional network: residual blocks of two convolutions, dilated by ``2 ** layer``.

    Its receptive field is ``1 + 2 (kernel_size - 1) (2 ** num_layers - 1)``, 61 by default; with ``causal=False`` it
    reaches half as far to each side. Source: Bai, Kolter & Koltun, An Empirical Evaluation of Generic Convolutional and
    Recurrent Networks for Sequence Modeling (2018), section 3; but dropout falls on single elements, not on whole
    channels, and the weights are not normalised: they start at He's scale, the residual branches divided by
    ``sqrt(num_layers)``, so that depth does not make the outputs grow.

    Args:
        input_size: Features per time step.
        hidden_size: Channels of every layer and features of the output.
        num_layers: Number of residual blocks.
        kernel_size: Taps of a convolution; odd, unless causal.
        dropout: Probability that an element is dropped, after each convolution.
        causal: False lets the outputs depend on the inputs after them as well, as far as on those before.

    Raises:
        TypeError: If an argument has a wrong type; the message names it.
        ValueError: If an argument is out of range; the message names it.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        num_layers: int = 4,
        kernel_size: int = 3,
        dropout: float = 0.0,
        causal: bool = True,
    ) -> None:
        super().__init__(input_size, hidden_size, num_layers, kernel_size, dropout, causal)
        self.layers = nn.ModuleList(
            Block(
                hidden_size if layer else input_size,
                hidden_size,
                kernel_size,
                dilation=2**layer,
                causal=causal,
                scale=num_layers**-0.5,
            )
            for layer in range(num_layers)
        )

    def evaluate(self, hidden: Tensor, padding: Tensor | None) -> Tensor:
        """Evaluate block after block."""
        for layer in self.layers:
            hidden = layer(hidden, padding, self.dropout)
        return hidden
