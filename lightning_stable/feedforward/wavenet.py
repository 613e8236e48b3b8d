"""A stack in the manner of WaveNet, van den Oord et al."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_stable.feedforward.causal import Convolution, ConvolutionalNet

CYCLE = 10


class WaveNet(ConvolutionalNet):
    """Dilated layers ``tanh(W * h) sigmoid(V * h)`` with residual and skip connections.

    Each layer sends one pointwise map of its gated units on to the next layer, as a residual, and another one to the
    output: the sum over all layers, then relu, pointwise map, relu. The dilation doubles from layer to layer and starts
    again at 1 after 10 of them, so that up to 10 layers the receptive field is ``1 + (kernel_size - 1) (2 ** num_layers
    - 1)``, 64 by default; with ``causal=False`` it reaches half as far to each side. Source: van den Oord et al.,
    WaveNet: A Generative Model for Raw Audio (2016), sections 2.1, 2.3 and 2.4, figure 4; the last pointwise map and
    the softmax there are the business of whoever reads the output.

    Args:
        input_size: Features per time step.
        hidden_size: Channels of every layer and features of the output.
        num_layers: Number of gated layers.
        kernel_size: Taps of a convolution; odd, unless causal.
        dropout: Probability that an element is dropped, after each gated layer.
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
        num_layers: int = 6,
        kernel_size: int = 2,
        dropout: float = 0.0,
        causal: bool = True,
    ) -> None:
        super().__init__(input_size, hidden_size, num_layers, kernel_size, dropout, causal)
        self.enter = Convolution(input_size, hidden_size)
        self.layers = nn.ModuleList(
            Convolution(hidden_size, 2 * hidden_size, kernel_size, dilation=2 ** (layer % CYCLE), causal=causal)
            for layer in range(num_layers)
        )
        # Gated units are small, about a third of their inputs; a sum over the layers grows with its square root.
        gain = 3.0 * num_layers**-0.5
        self.skips = nn.ModuleList(Convolution(hidden_size, hidden_size, gain=gain) for _ in range(num_layers))
        # Behind the last layer nobody would read a residual.
        self.residuals = nn.ModuleList(Convolution(hidden_size, hidden_size, gain=gain) for _ in range(num_layers - 1))
        self.leave = Convolution(hidden_size, hidden_size, gain=math.sqrt(2))

    def evaluate(self, hidden: Tensor, padding: Tensor | None) -> Tensor:
        """Evaluate layer after layer and sum what they skip to the output."""
        hidden = self.enter(hidden)
        total = torch.zeros_like(hidden)
        for index, (layer, skip) in enumerate(zip(self.layers, self.skips, strict=True)):
            filtered, gate = layer(hidden, padding).chunk(2, 1)
            gated = self.dropout(filtered.tanh() * gate.sigmoid())
            total = total + skip(gated)
            if index < len(self.residuals):
                hidden = hidden + self.residuals[index](gated)
        output: Tensor = self.leave(total.relu()).relu()
        return output
