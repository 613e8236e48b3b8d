"""Recurrent cells beside torch's own, with the signature of ``nn.RNN``."""

from lightning_stable.cells.intersection import IntersectionRNN
from lightning_stable.cells.irnn import irnn_
from lightning_stable.cells.ugrnn import UGRNN

__all__ = ["UGRNN", "IntersectionRNN", "irnn_"]
