"""Recurrent cells beside torch's own, with the signature of ``nn.RNN``."""

from lightning_stable.cells.input_gated import MinGRU, MinLSTM
from lightning_stable.cells.intersection import IntersectionRNN
from lightning_stable.cells.irnn import irnn_
from lightning_stable.cells.leaky import LeakyRNN
from lightning_stable.cells.ugrnn import UGRNN

__all__ = ["UGRNN", "IntersectionRNN", "LeakyRNN", "MinGRU", "MinLSTM", "irnn_"]
