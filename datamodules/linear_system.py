"""Sequences from a linear dynamical system whose memory is known: its spectral radius is an argument."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_stable import checks
from lightning_stable.datamodules.generated import Batch, GeneratedDataModule


class LinearSystem(NamedTuple):
    """The system ``h_t = A h_{t-1} + B x_t``, ``y_t = C h_t + D x_t`` from ``h_0 = 0``, in float64.

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
        """Return ``y``, without noise, for inputs ``x``.

        Args:
            inputs: Shape ``(sequences, length, input_size)``.

        Returns:
            Shape ``(sequences, length, output_size)``, float64.
        """
        driven = inputs.to(self.A) @ self.B.T
        states, state = [], torch.zeros_like(driven[:, 0])
        for drive in driven.unbind(1):
            state = state @ self.A.T + drive
            states.append(state)
        return torch.stack(states, 1) @ self.C.T + inputs.to(self.A) @ self.D.T


class LinearSystemDataModule(GeneratedDataModule):
    """Sequence regression on one random linear system: predict ``y_1 .. y_T`` from ``x_1 .. x_T``.

    Inputs are standard normal, targets are ``y_t = C h_t + D x_t`` plus Gaussian noise, and all splits
    come from the same system.
    An input of ``k`` steps ago weighs about ``rate ** k``: below 1 a window of the last inputs is enough; at or above 1
    the system is unstable and its outputs grow with time. Miller & Hardt, Stable Recurrent Models, use linear systems
    to show what either means for training.

    Batches are pairs ``(x, y)`` in float32, of shape ``(batch, length, input_size)`` and ``(batch, length,
    output_size)``.

    Args:
        rate: Spectral radius of the system, its contraction per step in the long run; may be 1 and more.
        state_size: Entries of the hidden state.
        input_size: Entries of ``x_t``.
        output_size: Entries of ``y_t``.
        length: Time steps of a sequence.
        noise: Standard deviation of the noise on ``y``.
        train_size: Training sequences.
        valid_size: Validation sequences.
        test_size: Test sequences.
        kwargs: The other arguments of :class:`~lightning_stable.datamodules.GeneratedDataModule`.

    Attributes:
        system: The system, drawn from the seed as well.
    """

    system: LinearSystem

    def __init__(
        self,
        *,
        rate: float = 0.9,
        state_size: int = 8,
        input_size: int = 4,
        output_size: int = 2,
        length: int = 64,
        noise: float = 0.1,
        train_size: int = 512,
        valid_size: int = 128,
        test_size: int = 128,
        **kwargs: Any,
    ) -> None:
        self.rate = checks.number("rate", rate, "[0, inf)")
        self.state_size = checks.integer("state_size", state_size)
        self.input_size = checks.integer("input_size", input_size)
        self.output_size = checks.integer("output_size", output_size)
        self.length = checks.integer("length", length)
        self.noise = checks.number("noise", noise, "[0, inf)")
        super().__init__(train_size=train_size, valid_size=valid_size, test_size=test_size, **kwargs)

    def draw_shared(self, generator: torch.Generator) -> None:
        """Draw the system."""
        self.system = LinearSystem.random(self.rate, self.state_size, self.input_size, self.output_size, generator)

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
