"""Metrics: subclasses of :class:`torchmetrics.Metric`."""

from lightning_stable.metrics.chunk_f1 import ChunkF1, ChunkPrecision, ChunkRecall
from lightning_stable.metrics.frame_nll import FrameNLL, frame_nll
from lightning_stable.metrics.micro_average import MicroAverage
from lightning_stable.metrics.mutual_information import MutualInformation, mutual_information
from lightning_stable.metrics.perplexity import BitsPerCharacter, Perplexity

__all__ = [
    "BitsPerCharacter",
    "ChunkF1",
    "ChunkPrecision",
    "ChunkRecall",
    "FrameNLL",
    "MicroAverage",
    "MutualInformation",
    "Perplexity",
    "frame_nll",
    "mutual_information",
]
