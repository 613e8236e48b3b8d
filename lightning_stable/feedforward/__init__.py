"""Convolutional networks: the feed-forward models that a recurrence may be replaced by."""

from lightning_stable.feedforward.causal import ConvolutionalNet
from lightning_stable.feedforward.gated import GatedConvNet
from lightning_stable.feedforward.tcn import TCN
from lightning_stable.feedforward.wavenet import WaveNet

__all__ = ["TCN", "ConvolutionalNet", "GatedConvNet", "WaveNet"]
