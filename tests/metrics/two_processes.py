"""One of two processes that score different data."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from lightning_stable.metrics import BitsPerCharacter, ChunkF1, ChunkPrecision, ChunkRecall, FrameNLL, Perplexity

LABELS = ("O", "B-a", "I-a", "B-b", "I-b")
# The first process scores more than the second, which has nothing at all for some.
SHARES = ([(4, 6), (4, 3), (1, 5)], [(2, 7)])
LOPSIDED = ([(3, 4)], [])


def nats(rank: int, shares: tuple[list[tuple[int, int]], ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return [torch.rand(shape, generator=generator) for shape in shares[rank]]


def tags(rank: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(rank)
    return [
        (torch.randint(5, shape, generator=generator), torch.randint(5, shape, generator=generator))
        for shape in SHARES[rank]
    ]


def main(rank: int, folder: Path) -> None:
    wait = timedelta(seconds=60)
    distributed.init_process_group("gloo", f"file://{folder}/store", wait, world_size=2, rank=rank)
    averages: list[Any] = [Perplexity(), BitsPerCharacter(), FrameNLL()]
    lopsided = Perplexity()
    scores: list[Any] = [ChunkF1(LABELS), ChunkPrecision(LABELS), ChunkRecall(LABELS)]
    for values in nats(rank, SHARES):
        for average in averages:
            average.update(values)
    for values in nats(rank, LOPSIDED):
        lopsided.update(values)
    for predictions, targets in tags(rank):
        for score in scores:
            score.update(predictions, targets)
    results = {type(metric).__name__: metric.compute().item() for metric in averages + scores}
    torch.save(results | {"lopsided": lopsided.compute().item()}, folder / f"{rank}.pt")
    distributed.destroy_process_group()
