"""Perplexity and bits per character: what a language model pays per token."""

import math

from torch import Tensor

from lightning_stable.metrics.micro_average import MicroAverage


class Perplexity(MicroAverage):
    """Perplexity ``exp(sum of token NLL / number of tokens)``, a micro average; nan without a token."""

    # torchmetrics.text.Perplexity takes logits and would compute the softmax over the vocabulary a second time, after
    # the loss has.

    def compute(self) -> Tensor:
        """Return the perplexity, a scalar."""
        return super().compute().exp()


class BitsPerCharacter(MicroAverage):
    """Bits per character ``sum of character NLL / number of characters / ln 2``, a micro average; nan without one."""

    def compute(self) -> Tensor:
        """Return the bits per character, a scalar."""
        return super().compute() / math.log(2)
