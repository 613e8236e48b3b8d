"""Metrics: subclasses of :class:`torchmetrics.Metric`."""

from lightning_stable.metrics.perplexity import Perplexity

__all__ = ["Perplexity"]
