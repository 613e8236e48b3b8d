"""Sequences from a linear dynamical system whose memory is known: its spectral radius is an argument."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_stable import checks
from lightning_stable.datamodules.generated import Batch, GeneratedDataModule, seeded


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


class LinearSystemDataModule(GeneratedDataModule):
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
        checks.number("rate", rate, "[0, inf)")
        checks.integer("state_size", state_size)
        checks.integer("input_size", input_size)
        checks.integer("output_size", output_size)
        checks.integer("length", length)
        checks.number("noise", noise, "[0, inf)")
        generator = seeded(seed)
        system = LinearSystem.random(rate, state_size, input_size, output_size, generator)
        super().__init__(
            train_size=train_size,
            valid_size=valid_size,
            test_size=test_size,
            batch_size=batch_size,
            generator=generator,
        )
        self.system = system
        self.rate = rate
        self.length = length
        self.input_size = input_size
        self.output_size = output_size
        self.noise = noise

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Draw inputs, and the outputs of the system with noise.

        Raises:
            ValueError: If the outputs of an unstable system grow beyond float32.
        """
        inputs = torch.randn(size, self.length, self.input_size, generator=generator)
        outputs = self.system.outputs(inputs)
        noise = torch.randn(size, self.length, self.output_size, generator=generator)
        targets = (outputs + self.noise * noise).float()
        if not targets.isfinite().all():
            raise ValueError(
                f"`length` must keep an unstable system within float32; lower it, or `rate`. Got length={self.length}."
            )
        return inputs, targets
