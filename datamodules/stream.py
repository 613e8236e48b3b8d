"""A long token stream read in parallel columns, so that a recurrent state can be carried from batch to batch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from lightning_stable import checks
from lightning_stable.datamodules.resumable import Resumable
from lightning_stable.datamodules.seeded import seeded

Chunk = tuple[Tensor, Tensor]


def lay_out_columns(stream: Tensor, columns: int) -> Tensor:
    """Cut a stream into equally long consecutive pieces, one per column.

    Each piece is a row of the result, batch first. The ``len(stream) % columns`` tokens that do not fill a row are
    trimmed from the end.

    Args:
        stream: Token ids, shape ``(tokens,)``.
        columns: Number of pieces.

    Returns:
        Shape ``(columns, tokens // columns)``; row by row it is the beginning of the stream.

    Raises:
        TypeError: If ``stream`` is not a tensor or ``columns`` is not an integer.
        ValueError: If the stream is not one-dimensional or ``columns`` is not positive.
    """
    columns = checks.integer("columns", columns)
    if checks.tensor("stream", stream).dim() != 1:
        raise ValueError(f"`stream` must be one-dimensional; flatten it first. Got shape {tuple(stream.shape)}.")
    length = stream.numel() // columns
    return stream[: columns * length].view(columns, length)


class ColumnStream(Resumable[Chunk], IterableDataset[Chunk]):
    """Consecutive chunks ``(inputs, targets)`` of the columns, the targets one token ahead.

    Row ``i`` of a chunk continues row ``i`` of the chunk before it. The last chunk may be shorter. With
    ``vary_length`` each epoch moves every border between two chunks by up to an eighth of ``chunk_length``, alike on
    all processes, so that gradients are not always cut at the same tokens. Every token of the columns is a target
    exactly once, except the first of each column, which nothing precedes: of a column of ``n`` tokens ``n - 1`` are
    scored. The chunks are whole batches, so a ``DataLoader`` around them needs ``batch_size=None``.

    With several processes the stream is laid out in ``world_size * batch_size`` columns and each process reads its own
    ``batch_size`` of them. All columns are equally long, so every process sees the same number of chunks.

    Args:
        stream: Token ids, shape ``(tokens,)``.
        batch_size: Columns read by this process.
        chunk_length: Time steps per chunk.
        rank: Index of this process.
        world_size: Number of processes.
        vary_length: Let the lengths of the chunks vary around ``chunk_length``; their number stays the same.
        seed: Seed of these lengths, which depend on it and the epoch alone.

    Raises:
        TypeError: If an argument, which the message names, has a wrong type.
        ValueError: If an argument, which the message names, is out of its range, or the columns are shorter than one
            full chunk.
    """

    def __init__(
        self,
        stream: Tensor,
        batch_size: int,
        chunk_length: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        vary_length: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        batch_size = checks.integer("batch_size", batch_size)
        world_size = checks.integer("world_size", world_size)
        rank = checks.integer("rank", rank, 0, world_size - 1)
        self.chunk_length = checks.integer("chunk_length", chunk_length)
        self.vary_length = checks.boolean("vary_length", vary_length)
        self.seed = checks.seed("seed", seed)
        self.epoch = 0
        total = world_size * batch_size
        columns = lay_out_columns(stream, total)
        if columns.size(1) <= self.chunk_length:
            raise ValueError(
                f"`stream` must hold at least one chunk per column: {total} columns of {self.chunk_length} + 1 tokens "
                f"need {total * (self.chunk_length + 1)}; lower the batch size or `chunk_length`, or use more text. "
                f"Got {stream.numel()} tokens."
            )
        self.columns = columns[rank * batch_size : (rank + 1) * batch_size]
        if self.vary_length:
            self.sampler = self  # under this name Lightning looks for the set_epoch to call

    def set_epoch(self, epoch: int) -> None:
        """Choose the lengths of an epoch, counted from 0; Lightning calls this before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Chunk]:
        # The workers of a DataLoader are read in turn, so dealing the chunks out in turn keeps them in order.
        worker = get_worker_info()
        chunks = super().__iter__()
        return chunks if worker is None else islice(chunks, worker.id, None, worker.num_workers)

    def batches(self, first: int) -> Iterator[Chunk]:
        """Yield the chunks of an epoch from number ``first`` on."""
        borders = self._borders()
        for index in range(first, len(self)):
            # A long text lies in memory as bytes; an embedding and a loss want int64.
            window = self.columns[:, borders[index] : borders[index + 1] + 1].long()
            yield window[:, :-1], window[:, 1:]

    def __len__(self) -> int:
        return -(-(self.columns.size(1) - 1) // self.chunk_length)

    def _borders(self) -> list[int]:
        scored = self.columns.size(1) - 1
        borders = torch.arange(len(self) + 1) * self.chunk_length
        if self.vary_length:
            reach = self.chunk_length // 8
            generator = seeded(self.seed, self.epoch)
            borders[1:-1] += torch.randint(-reach, reach + 1, (len(self) - 1,), generator=generator)
            borders.clamp_(max=scored - 1)  # the last chunk may be short, but not empty
        borders[-1] = scored
        return borders.tolist()
