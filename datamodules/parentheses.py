"""Parentheses counting: how many of each kind are open?"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from lightning_stable import checks
from lightning_stable.datamodules.generated import Batch, GeneratedDataModule, seeded


class ParenthesesDataModule(GeneratedDataModule):
    """Count, at every step, the open parentheses of each kind, among symbols that do not matter.

    Inputs are ids in int64, ``(batch, length)``: ``2 * kind`` opens, ``2 * kind + 1`` closes, higher ids are noise; all
    ids are equally probable. A closing parenthesis without an open one, or an opening one at the limit, has no effect.
    Targets are the counts over ``limit``, float32 in [0, 1], ``(batch, length, kinds)``. Source: the task of Collins,
    Sohl-Dickstein & Sussillo, Capacity and Trainability in Recurrent Neural Networks (2017), in sizes of its own.

    Args:
        length: Time steps of a sequence.
        kinds: Kinds of parentheses.
        noise: Symbols that are no parentheses; 0 for none.
        limit: Largest count.
        train_size: Training sequences.
        valid_size: Validation sequences.
        test_size: Test sequences.
        batch_size: Sequences per batch and device.
        seed: Seed of everything that is drawn.

    Attributes:
        symbols: Different ids, ``2 * kinds + noise``.

    Raises:
        ValueError: Naming the argument that has a wrong type or range.
    """

    def __init__(
        self,
        *,
        length: int = 40,
        kinds: int = 2,
        noise: int = 4,
        limit: int = 10,
        train_size: int = 10_000,
        valid_size: int = 1000,
        test_size: int = 1000,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        checks.integer("length", length)
        checks.integer("kinds", kinds)
        checks.integer("limit", limit)
        if noise != 0:
            checks.integer("noise", noise)
        super().__init__(
            train_size=train_size,
            valid_size=valid_size,
            test_size=test_size,
            batch_size=batch_size,
            generator=seeded(seed),
        )
        self.length = length
        self.kinds = kinds
        self.limit = limit
        self.symbols = 2 * kinds + noise

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Draw the symbols and count."""
        inputs = torch.randint(self.symbols, (size, self.length), generator=generator)
        signs = F.one_hot(inputs, self.symbols)
        changes = signs[..., 0 : 2 * self.kinds : 2] - signs[..., 1 : 2 * self.kinds : 2]
        counts = torch.zeros(size, self.length + 1, self.kinds, dtype=torch.long)
        for step in range(self.length):
            counts[:, step + 1] = (counts[:, step] + changes[:, step]).clamp(0, self.limit)
        return inputs, counts[:, 1:] / self.limit
