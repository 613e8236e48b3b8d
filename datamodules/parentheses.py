"""Parentheses counting: how many of each kind are open?"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from lightning_stable import checks
from lightning_stable.datamodules.generated import Batch, GeneratedDataModule


class ParenthesesDataModule(GeneratedDataModule):
    """Count, at every step, the open parentheses of each kind, among symbols that do not matter.

    Inputs are ids in int64, ``(batch, length)``: ``2 * kind`` opens, ``2 * kind + 1`` closes, higher ids are noise; all
    ids are equally probable. A closing parenthesis without an open one has no effect, and neither has an opening one at
    the limit. Targets are the counts over ``limit``, float32 in [0, 1], ``(batch, length, kinds)``. Source: the task of
    Collins, Sohl-Dickstein & Sussillo, Capacity and Trainability in Recurrent Neural Networks (2017); the sizes are not
    theirs.

    Args:
        length: Time steps of a sequence.
        kinds: Kinds of parentheses.
        noise: Symbols that are no parentheses; 0 for none.
        limit: Largest count.
        kwargs: The arguments of :class:`~lightning_stable.datamodules.GeneratedDataModule`.

    Attributes:
        symbols: Different ids, ``2 * kinds + noise``.
    """

    def __init__(self, *, length: int = 40, kinds: int = 2, noise: int = 4, limit: int = 10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.length = checks.integer("length", length)
        self.kinds = checks.integer("kinds", kinds)
        self.limit = checks.integer("limit", limit)
        self.symbols = 2 * self.kinds + checks.integer("noise", noise, 0)

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Draw the symbols and count."""
        inputs = torch.randint(self.symbols, (size, self.length), generator=generator)
        signs = F.one_hot(inputs, self.symbols)
        changes = signs[..., 0 : 2 * self.kinds : 2] - signs[..., 1 : 2 * self.kinds : 2]
        counts = torch.zeros(size, self.length + 1, self.kinds, dtype=torch.long)
        for step in range(self.length):
            counts[:, step + 1] = (counts[:, step] + changes[:, step]).clamp(0, self.limit)
        return inputs, counts[:, 1:] / self.limit
