"""The intersection RNN, also written +RNN."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_stable.cells.base import MixingRNN, Shapes, mix


class IntersectionRNN(MixingRNN):
    r"""The intersection RNN (+RNN): gates over time, and gates between the layers.

    .. code-block:: text

        g_h = sigmoid(W_ih[g] x + W_hh[g] h + b)        g_y = sigmoid(W_iy[g] x + W_hy[g] h + b)
        h_in = tanh(W_ih[h] x + W_hh[h] h + b)          y_in = relu(W_iy[y] x + W_hy[y] h + b)
        h' = g_h * h + (1 - g_h) * h_in                 y = g_y * x + (1 - g_y) * y_in

    The state is ``h``; ``y`` is the output, which the next layer reads. Rows are stacked gate first. Parameters of the
    state have the names of torch's layers, those of the output ``weight_iy_l0``, ``weight_hy_l0``, ``bias_iy_l0``,
    ``bias_hy_l0``.

    ``y`` has ``hidden_size`` entries. A layer whose input has another size (the first one if
    ``input_size != hidden_size``, all above it if bidirectional) lets an affine map of the input pass instead of the
    input, ``weight_ix_l0 x + bias_ix_l0``; the gates read the input itself. That includes the paper's model, in which
    everything reads one affine map of the input.

    Source: Collins, Sohl-Dickstein, Sussillo, *Capacity and Trainability in Recurrent Neural Networks* (ICLR 2017).
    Their forget biases are ``gate_bias``, here a part of the initial biases of both gates.
    """

    def _shapes(self, features: int) -> Shapes:
        shapes = super()._shapes(features)
        shapes |= {role.replace("_ih", "_iy").replace("_hh", "_hy"): shape for role, shape in shapes.items()}
        if features != self.hidden_size:
            shapes |= {"weight_ix": (self.hidden_size, features), "bias_ix": (self.hidden_size,)}
        return shapes

    def _outputs(self, inputs: Tensor, before: Sequence[Tensor], after: Sequence[Tensor], suffix: str) -> Tensor:
        # The output reads the state before the step, so that all of them come from one product.
        pre = F.linear(inputs, getattr(self, "weight_iy" + suffix), self._bias("bias_iy", "bias_hy", suffix))
        pre = pre + F.linear(torch.stack(list(before)), getattr(self, "weight_hy" + suffix))
        gate, candidate = pre.chunk(2, -1)
        if hasattr(self, "weight_ix" + suffix):
            inputs = F.linear(inputs, getattr(self, "weight_ix" + suffix), getattr(self, "bias_ix" + suffix, None))
        return mix(gate.sigmoid(), inputs, candidate.relu())
