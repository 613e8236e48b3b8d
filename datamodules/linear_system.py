"""Sequences from a linear dynamical system whose memory is known: its spectral radius is an argument."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_stable.datamodules.checks import require_positive_int
from lightning_stable.datamodules.language_modeling import SPLITS, Split

Batch = tuple[Tensor, Tensor]


def _require_number(name: str, value: object) -> None:
    """Refuse anything but a finite number of at least zero."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"`{name}` must be a finite number of at least 0. Got {value!r}.")


class LinearSystem(NamedTuple):
    """``h_t = A h_{t-1} + B x_t``, ``y_t = C h_t + D x_t``, from ``h_0 = 0``; float64.

    Attributes:
        A: Shape ``(state_size, state_size)``.
        B: Shape ``(state_size, input_size)``.
        C: Shape ``(output_size, state_size)``.
        D: Shape ``(output_size, input_size)``.
    """

    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor

    @classmethod
    def random(
        cls, rate: float, state_size: int, input_size: int, output_size: int, generator: torch.Generator
    ) -> LinearSystem:
        """Draw a system whose ``A`` has spectral radius ``rate``.

        Entries are Gaussian. B, C and D are scaled so that each of them keeps the variance of what it is applied to.

        Args:
            rate: Spectral radius of ``A``; its spectral norm is larger, as ``A`` is not normal.
            state_size: Entries of the state.
            input_size: Entries of the input.
            output_size: Entries of the output.
            generator: Source of the entries.
        """

        def gaussian(rows: int, columns: int) -> Tensor:
            entries = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
            return entries / math.sqrt(columns)

        transition = gaussian(state_size, state_size)
        transition *= rate / torch.linalg.eigvals(transition).abs().max()
        return cls(
            transition,
            gaussian(state_size, input_size),
            gaussian(output_size, state_size),
            gaussian(output_size, input_size),
        )

    def outputs(self, inputs: Tensor) -> Tensor:
        """Noiseless outputs, ``(sequences, length, output_size)``, for ``(sequences, length, input_size)``."""
        driven = inputs.to(self.A) @ self.B.T
        states, state = [], torch.zeros_like(driven[:, 0])
        for drive in driven.unbind(1):
            state = state @ self.A.T + drive
            states.append(state)
        return torch.stack(states, 1) @ self.C.T + inputs.to(self.A) @ self.D.T


class LinearSystemDataModule(LightningDataModule):
    """Sequence regression on one random linear system: predict ``y_1 .. y_T`` from ``x_1 .. x_T``.

    Inputs are standard normal, ``y_t = C h_t + D x_t`` plus Gaussian noise, and all splits come from the same system.
    What happened ``k`` steps ago weighs about ``rate ** k``: below 1 a window of the last inputs is enough, at or above
    1 the system is unstable and its outputs grow with time. Miller & Hardt, Stable Recurrent Models, use linear
    systems to show what the one and the other mean for training.

    Batches are pairs ``(x, y)`` in float32, of shape ``(batch, length, input_size)`` and ``(batch, length,
    output_size)``. System, sequences and the order of the training batches depend on ``seed`` alone, and the global
    random state is left as it is.

    Args:
        rate: Spectral radius of the system, its contraction per step in the long run; may be 1 and more.
        state_size: Entries of the hidden state.
        input_size: Entries of ``x_t``.
        output_size: Entries of ``y_t``.
        length: Time steps of a sequence.
        train_size: Training sequences.
        valid_size: Validation sequences.
        test_size: Test sequences.
        noise: Standard deviation of the noise on ``y``.
        batch_size: Sequences per batch and device.
        seed: Seed of everything that is drawn.

    Raises:
        ValueError: Naming the argument that has a wrong type or range.
    """

    def __init__(
        self,
        *,
        rate: float = 0.9,
        state_size: int = 8,
        input_size: int = 4,
        output_size: int = 2,
        length: int = 64,
        train_size: int = 512,
        valid_size: int = 128,
        test_size: int = 128,
        noise: float = 0.1,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _require_number("rate", rate)
        require_positive_int("state_size", state_size)
        require_positive_int("input_size", input_size)
        require_positive_int("output_size", output_size)
        require_positive_int("length", length)
        require_positive_int("train_size", train_size)
        require_positive_int("valid_size", valid_size)
        require_positive_int("test_size", test_size)
        _require_number("noise", noise)
        require_positive_int("batch_size", batch_size)
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise ValueError(f"`seed` must be an integer in 0 .. 2 ** 63 - 1. Got {seed!r}.")
        self.rate = rate
        self.length = length
        self.input_size = input_size
        self.output_size = output_size
        self.sizes: dict[Split, int] = {"train": train_size, "valid": valid_size, "test": test_size}
        self.noise = noise
        self.batch_size = batch_size
        generator = torch.Generator().manual_seed(seed)
        self.system = LinearSystem.random(rate, state_size, input_size, output_size, generator)
        # A seed of its own for each, so that no split changes with the size of another.
        seeds: list[int] = torch.randint(2**62, (len(SPLITS) + 1,), generator=generator).tolist()
        *split_seeds, self._shuffle_seed = seeds
        self._split_seeds = dict(zip(SPLITS, split_seeds, strict=True))
        self._splits: dict[Split, TensorDataset] = {}

    def setup(self, stage: str | None = None) -> None:
        """Draw the sequences of all splits, once.

        Raises:
            ValueError: If the outputs of an unstable system grow beyond float32.
        """
        if not self._splits:
            self._splits = {split: TensorDataset(*self._draw(split)) for split in SPLITS}

    def _draw(self, split: Split) -> Batch:
        generator = torch.Generator().manual_seed(self._split_seeds[split])
        shape = (self.sizes[split], self.length)
        inputs = torch.randn(*shape, self.input_size, generator=generator)
        outputs = self.system.outputs(inputs)
        noise = torch.randn(*shape, self.output_size, generator=generator)
        targets = (outputs + self.noise * noise).float()
        if not targets.isfinite().all():
            raise ValueError(
                f"`length` must keep an unstable system within float32; lower it, or `rate`. Got length={self.length}."
            )
        return inputs, targets

    def tensors(self, split: Split) -> Batch:
        """All sequences of a split, ``(x, y)``.

        Raises:
            ValueError: If there is no such split or ``setup`` has not run.
        """
        inputs, targets = self._dataset(split).tensors
        return inputs, targets

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Shuffled batches of the training split."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Batches of the validation split."""
        return self._loader("valid")

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Batches of the test split."""
        return self._loader("test")

    def _dataset(self, split: Split) -> TensorDataset:
        if split not in SPLITS:
            raise ValueError(f"`split` must be one of {SPLITS}. Got {split!r}.")
        if not self._splits:
            raise ValueError("The sequences are drawn by `setup()`; call that first. Got no sequences yet.")
        return self._splits[split]

    def _loader(self, split: Split, *, shuffle: bool = False) -> DataLoader[tuple[Tensor, ...]]:
        # Without a generator of its own even a loader that does not shuffle draws from the global random state.
        generator = torch.Generator().manual_seed(self._shuffle_seed)
        return DataLoader(self._dataset(split), self.batch_size, shuffle=shuffle, generator=generator)
