"""Cells whose gates read the input alone, ``h' = a(x) * h + b(x)``."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_stable.cells.base import MixingRNN, Shapes
from lightning_stable.linalg import linear_scan


class InputGatedRNN(MixingRNN):
    """The base: one product for all steps, then a parallel scan over the sequence. There is no ``weight_hh``.

    A base class. Arguments are those of :class:`~lightning_stable.cells.base.MixingRNN`.
    """

    blocks: ClassVar[int]
    # The sign with which the biases of the first block keep the state longer.
    remembering: ClassVar[int] = 1

    @staticmethod
    @abstractmethod
    def coefficients(driven: Tensor) -> tuple[Tensor, Tensor]:
        """Return the leak ``a`` and ``b`` of ``h' = a h + b``, shapes ``(..., units)``.

        Args:
            driven: ``W x + b``, shape ``(..., blocks * units)``.
        """

    def _shapes(self, features: int) -> Shapes:
        rows = self.blocks * self.hidden_size
        return {"weight_ih": (rows, features), "bias_ih": (rows,)}

    def _open(self, name: str, parameter: Tensor) -> None:
        if name.startswith("bias_ih"):
            parameter[: self.hidden_size] += self.remembering * self.gate_bias

    def _run(
        self, inputs: Tensor, state: Tensor, suffix: str, valid: Tensor | None, *, backward: bool
    ) -> tuple[Tensor, Tensor]:
        bias = getattr(self, "bias_ih" + suffix) if self.bias else None
        leak, term = self.coefficients(F.linear(inputs, getattr(self, "weight_ih" + suffix), bias))
        if valid is not None:  # padding keeps the state
            leak, term = leak.where(valid, 1.0), term.where(valid, 0.0)
        dtype = torch.promote_types(leak.dtype, state.dtype)  # under autocast the state stays exact
        visited = linear_scan(leak.to(dtype), term.to(dtype), state.to(dtype), reverse=backward)
        return visited, visited[0 if backward else -1]


class MinGRU(InputGatedRNN):
    r"""The minGRU: a GRU whose gate and candidate read the input alone.

    .. code-block:: text

        z  = sigmoid(W_z x + b_z)
        n  = tanh(W_n x + b_n)
        h' = (1 - z) * h + z * n

    Here ``z`` opens to what is new, as in the paper; in torch's GRU it keeps what is old. The paper drops the tanh of
    the candidate. It is kept here, so that states, and with them the inputs of the layer above, are bounded by 1
    whatever the inputs are.

    Whole sequences are evaluated in about the square root of their length in steps. Signature and layouts are those of
    ``nn.GRU``; parameters are ``weight_ih_l0`` and ``bias_ih_l0``, rows stacked in the order z, n.

    Source: Feng, Tung, Ahmed, Bengio, Hajimirsadeghi, *Were RNNs All We Needed?* (2024), section 3.1.

    Example:
        >>> output, h_n = MinGRU(8, 16, num_layers=2, batch_first=True)(torch.randn(4, 10, 8))
        >>> output.shape, h_n.shape
        (torch.Size([4, 10, 16]), torch.Size([2, 4, 16]))
    """

    blocks = 2
    remembering = -1

    @staticmethod
    def coefficients(driven: Tensor) -> tuple[Tensor, Tensor]:
        """``1 - z``, and ``z n``."""
        gate, candidate = driven.chunk(2, -1)
        return torch.sigmoid(-gate), torch.sigmoid(gate) * torch.tanh(candidate)


class MinLSTM(InputGatedRNN):
    r"""The minLSTM: an LSTM without a recurrent matrix, whose forget and input gate sum to 1.

    .. code-block:: text

        f  = sigmoid(W_f x + b_f)
        i  = sigmoid(W_i x + b_i)
        n  = tanh(W_n x + b_n)
        h' = f / (f + i) * h + i / (f + i) * n

    The paper drops the tanh of the candidate, which is kept here, see :class:`MinGRU`. Parameters are ``weight_ih_l0``
    and ``bias_ih_l0``, rows stacked in the order f, i, n.

    Source: Feng, Tung, Ahmed, Bengio, Hajimirsadeghi, *Were RNNs All We Needed?* (2024), section 3.2.

    Example:
        >>> output, h_n = MinLSTM(8, 16, batch_first=True)(torch.randn(4, 10, 8))
        >>> output.shape, h_n.shape
        (torch.Size([4, 10, 16]), torch.Size([1, 4, 16]))
    """

    blocks = 3

    @staticmethod
    def coefficients(driven: Tensor) -> tuple[Tensor, Tensor]:
        """``f / (f + i)``, and ``i / (f + i) n``, without a quotient of what may both be 0."""
        forget, enter, candidate = driven.chunk(3, -1)
        leak = normalized_leak(forget, enter)
        return torch.sigmoid(leak), torch.sigmoid(-leak) * torch.tanh(candidate)


def normalized_leak(forget: Tensor, enter: Tensor) -> Tensor:
    """``p`` with ``sigmoid(p) = f / (f + i)``, for the pre-activations of ``f`` and ``i``.

    ``f / i = exp(p)`` with ``p = softplus(-pre_i) - softplus(-pre_f)``, which rises with ``pre_f`` and falls with
    ``pre_i``.
    """
    return F.softplus(-enter) - F.softplus(-forget)
