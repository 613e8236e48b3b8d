"""The gated convolutional network of Dauphin, Fan, Auli & Grangier."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_stable.feedforward.causal import Convolution, ConvolutionalNet


class GatedConvNet(ConvolutionalNet):
    """Gated convolutional network: ``h + (W * h + b) sigmoid(V * h + c)``, layer after layer, without dilation.

    Its receptive field is ``1 + num_layers (kernel_size - 1)``, 25 by default; with ``causal=False`` it reaches half as
    far to each side. A pointwise layer first brings the inputs to ``hidden_size``. Source: Dauphin, Fan, Auli &
    Grangier, Language Modeling with Gated Convolutional Networks (2016), section 2, equation 1; without weight
    normalisation, at an initial scale that keeps the variance through a gate.

    Args:
        input_size: Features per time step.
        hidden_size: Channels of every layer and features of the output.
        num_layers: Number of gated layers.
        kernel_size: Taps of a convolution; odd, unless causal.
        dropout: Probability that an element is dropped, after each gated layer and before it is added.
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
        num_layers: int = 8,
        kernel_size: int = 4,
        dropout: float = 0.0,
        causal: bool = True,
    ) -> None:
        super().__init__(input_size, hidden_size, num_layers, kernel_size, dropout, causal)
        self.enter = Convolution(input_size, hidden_size)
        # A gate of about one half quarters the variance; the square root keeps the sum over the layers from growing.
        gain = 2.0 * num_layers**-0.5
        self.layers = nn.ModuleList(
            Convolution(hidden_size, 2 * hidden_size, kernel_size, causal=causal, gain=gain) for _ in range(num_layers)
        )

    def evaluate(self, hidden: Tensor, padding: Tensor | None) -> Tensor:
        """Evaluate layer after layer."""
        hidden = self.enter(hidden)
        for layer in self.layers:
            hidden = hidden + self.dropout(F.glu(layer(hidden, padding), 1))
        return hidden
