"""Convolutional networks: feed-forward models that may replace a recurrence."""

from lightning_stable.feedforward.causal import ConvolutionalNet
from lightning_stable.feedforward.gated import GatedConvNet
from lightning_stable.feedforward.tcn import TCN
from lightning_stable.feedforward.wavenet import WaveNet

__all__ = ["TCN", "ConvolutionalNet", "GatedConvNet", "WaveNet"]
