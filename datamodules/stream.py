"""A long token stream read in parallel columns, so that a recurrent state can be carried from batch to batch."""

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from lightning_stable import checks


def lay_out_columns(stream: Tensor, columns: int) -> Tensor:
    """Cut a stream into equally long consecutive pieces, one per column.

    Each piece is a row of the result, batch first. The ``len(stream) % columns`` tokens that do not fill a row are
    trimmed from the end.

    Args:
        stream: token ids, shape ``(tokens,)``.
        columns: how many pieces.

    Returns:
        Shape ``(columns, tokens // columns)``; row by row it is the beginning of the stream.

    Raises:
        ValueError: if the stream is not one-dimensional or ``columns`` is not a positive integer.
    """
    checks.integer("columns", columns)
    if stream.dim() != 1:
        raise ValueError(f"`stream` must be one-dimensional; flatten it first. Got shape {tuple(stream.shape)}.")
    length = stream.numel() // columns
    return stream[: columns * length].view(columns, length)


class ColumnStream(IterableDataset[tuple[Tensor, Tensor]]):
    """Consecutive chunks ``(inputs, targets)`` of the columns, the targets one token ahead.

    Row ``i`` of a chunk continues row ``i`` of the chunk before it. The last chunk may be shorter, and with
    ``vary_length`` every border between two chunks is moved by up to an eighth of ``chunk_length``, anew in each epoch
    and alike on all processes, so that gradients are not always cut at the same tokens. Every token of the
    columns is a target exactly once, except the first of each column, which nothing precedes: of a column of ``n``
    tokens ``n - 1`` are scored. The chunks are whole batches, so a ``DataLoader`` around them needs
    ``batch_size=None``.

    With several processes the stream is laid out in ``world_size * batch_size`` columns and each process reads its own
    ``batch_size`` of them. All columns are equally long, so every process sees the same number of chunks.

    Args:
        stream: token ids, shape ``(tokens,)``.
        batch_size: columns read by this process.
        chunk_length: time steps per chunk.
        rank: index of this process.
        world_size: number of processes.
        vary_length: let the lengths of the chunks vary around ``chunk_length``; their number stays the same.
        seed: seed of these lengths, which depend on it and the epoch alone.

    Raises:
        ValueError: if a size is not a positive integer, the rank is not below ``world_size``, or the columns are
            shorter than one full chunk.
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
        checks.integer("batch_size", batch_size)
        checks.integer("chunk_length", chunk_length)
        checks.integer("world_size", world_size)
        if not 0 <= rank < world_size:
            raise ValueError(f"`rank` must lie in 0 .. world_size - 1 = {world_size - 1}. Got {rank}.")
        total = world_size * batch_size
        columns = lay_out_columns(stream, total)
        if columns.size(1) <= chunk_length:
            raise ValueError(
                f"The stream is shorter than one chunk per column: {total} columns of {chunk_length} + 1 tokens need "
                f"{total * (chunk_length + 1)}; lower the batch size or `chunk_length`, or give more text. "
                f"Got {stream.numel()} tokens."
            )
        self.columns = columns[rank * batch_size : (rank + 1) * batch_size]
        self.chunk_length = chunk_length
        self.vary_length = vary_length
        self.seed = seed
        self.epoch = 0
        if vary_length:
            self.sampler = self  # under this name Lightning looks for the set_epoch to call
        self._given = self._first = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the lengths of an epoch, counted from 0; Lightning does so before each."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # The workers of a DataLoader are read in turn, so dealing the chunks out in turn keeps them in order.
        worker = get_worker_info()
        first, self._first = self._first, 0
        chunks = self._chunks(first)
        return chunks if worker is None else islice(chunks, worker.id, None, worker.num_workers)

    def _chunks(self, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        self._given = first
        borders = self._borders()
        for index in range(first, len(self)):
            self._given = index + 1
            # A long text lies in memory as bytes; an embedding and a loss want int64.
            window = self.columns[:, borders[index] : borders[index + 1] + 1].long()
            yield window[:, :-1], window[:, 1:]

    def state_dict(self) -> dict[str, int]:
        """How many chunks of the epoch were read: Lightning asks for it when it makes a checkpoint."""
        return {"given": self._given % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next epoch begin there, where a run was stopped."""
        self._first = state["given"]

    def __len__(self) -> int:
        return -(-(self.columns.size(1) - 1) // self.chunk_length)

    def _borders(self) -> list[int]:
        scored = self.columns.size(1) - 1
        borders = torch.arange(len(self) + 1) * self.chunk_length
        if self.vary_length:
            generator = torch.Generator().manual_seed((self.seed + self.epoch) % 2**63)
            reach = self.chunk_length // 8
            borders[1:-1] += torch.randint(-reach, reach + 1, (len(self) - 1,), generator=generator)
            borders.clamp_(max=scored - 1)  # the last chunk may be short, but not empty
        borders[-1] = scored
        return borders.tolist()
