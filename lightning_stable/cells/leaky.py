"""The leaky RNN."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_stable.cells.base import MixingRNN, Shapes, mix


class LeakyRNN(MixingRNN):
    r"""The leaky RNN: a tanh network of units with time constants of their own.

    .. code-block:: text

        a  = sigmoid(leak)
        h' = a * h + (1 - a) * tanh(W_ih x + b_ih + W_hh h + b_hh)

    ``a`` belongs to the unit and does not depend on the input, so that the recurrent matrix may mix densely: the rate
    rests on a spectral norm. This is the Euler step ``dt`` of the continuous-time network
    ``tau dh/dt = -h + tanh(...)`` with ``1 - a = dt / tau``.

    Signature and layouts are those of ``nn.RNN``; besides its parameters there is ``leak_l0``, which starts around
    ``gate_bias``.

    Source: Jaeger, Lukosevicius, Popovici, Siewert, *Optimization and applications of echo state networks with
    leaky-integrator neurons* (Neural Networks, 2007), with the state inside the mean.

    Example:
        >>> output, h_n = LeakyRNN(8, 16, num_layers=2, batch_first=True)(torch.randn(4, 10, 8))
        >>> output.shape, h_n.shape
        (torch.Size([4, 10, 16]), torch.Size([2, 4, 16]))
    """

    def _shapes(self, features: int) -> Shapes:
        units = self.hidden_size
        square = {"weight_ih": (units, features), "weight_hh": (units, units), "bias_ih": (units,), "bias_hh": (units,)}
        return square | {"leak": (units,)}

    def _open(self, name: str, parameter: Tensor) -> None:
        if name.startswith("leak"):
            parameter += self.gate_bias

    def _run(
        self, inputs: Tensor, state: Tensor, suffix: str, valid: Tensor | None, *, backward: bool
    ) -> tuple[Tensor, Tensor]:
        hidden, leak = getattr(self, "weight_hh" + suffix).t(), getattr(self, "leak" + suffix).sigmoid()
        driven = F.linear(inputs, getattr(self, "weight_ih" + suffix), self._bias("bias_ih", "bias_hh", suffix))
        states = []
        for position in reversed(range(len(inputs))) if backward else range(len(inputs)):
            after = mix(leak, state, torch.addmm(driven[position], state, hidden).tanh())
            state = after if valid is None else torch.where(valid[position], after, state)
            states.append(state)
        return torch.stack(states[::-1] if backward else states), state
