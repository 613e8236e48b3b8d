"""One step of torch's cells on many rows, and its derivative: the inner loop of :mod:`fused`.

Pre-activations of the inputs are computed outside, once per position for the lowest layer. All arrays are
two-dimensional, ``(rows * batch, size)``. ``None`` as a state or a gradient stands for zeros and saves the work.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from lightning_stable.recurrence import Recurrence
from lightning_stable.recurrence.gru import GRURecurrence
from lightning_stable.recurrence.lstm import LSTMRecurrence
from lightning_stable.recurrence.rnn import RNNRecurrence

Parts = tuple[Tensor, ...]
_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input


class KernelWeights(NamedTuple):
    """The weights of a layer in the order that its kernel needs; functions of the parameters."""

    inputs: Tensor  # (gates * units, features)
    bias: Tensor  # (gates * units,), added to the inputs
    hidden: Tensor  # (gates * units, units)
    hidden_bias: Tensor  # (units,) or empty


class Kernel(ABC):
    """A cell's step and derivative."""

    parts: ClassVar[int]  # of the state
    gates: ClassVar[int]

    @abstractmethod
    def weights(self, parameters: Mapping[str, Tensor]) -> KernelWeights:
        """Return the weights, differentiable functions of the parameters by role."""

    @abstractmethod
    def step(self, pre: Tensor, state: Parts | None, weights: KernelWeights) -> tuple[Parts, Parts]:
        """Return the next state, and what the derivative needs besides the states."""

    @abstractmethod
    def backward(
        self, saved: Parts, before: Parts | None, after: Parts, grads: list[Tensor | None], weights: KernelWeights
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """Return the derivatives of a step.

        Args:
            saved: What :meth:`step` returned besides the state.
            before: The state before the step.
            after: The state after the step.
            grads: Gradients of the parts of the state after the step; ``h`` always has one.
            weights: As in :meth:`step`.

        Returns:
            Gradients of the pre-activations, of ``hidden`` times the state, and of the state before the step; None for
            a state that is None.
        """


class RNNKernel(Kernel):
    """``h' = phi(pre + W h)``."""

    parts, gates = 1, 1

    def __init__(self, nonlinearity: str) -> None:
        self.tanh = nonlinearity == "tanh"

    def weights(self, parameters: Mapping[str, Tensor]) -> KernelWeights:
        """Keep the order in which the weights are stored."""
        hidden = parameters["weight_hh"]
        bias = (
            parameters["bias_ih"] + parameters["bias_hh"] if "bias_ih" in parameters else hidden.new_zeros(len(hidden))
        )
        return KernelWeights(parameters["weight_ih"], bias, hidden, hidden.new_empty(0))

    def step(self, pre: Tensor, state: Parts | None, weights: KernelWeights) -> tuple[Parts, Parts]:
        """Compute ``phi(pre + W h)`` with one product."""
        total = pre if state is None else torch.addmm(pre, state[0], weights.hidden.t())
        return (total.tanh() if self.tanh else total.relu(),), ()

    def backward(
        self, saved: Parts, before: Parts | None, after: Parts, grads: list[Tensor | None], weights: KernelWeights
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """Go back through the nonlinearity, whose derivative its value determines."""
        (grad,), (value,) = grads, after
        assert grad is not None
        pre = torch.empty_like(grad)
        if self.tanh:
            _tanh_backward(grad, value, grad_input=pre)
        else:
            torch.mul(grad, value > 0, out=pre)
        return pre, pre, [None if before is None else pre @ weights.hidden]


class LSTMKernel(Kernel):
    """``c' = f c + i g``, ``h' = o tanh(c')``; the gates lie in the order i, f, o, g, the sigmoids together."""

    parts, gates = 2, 4

    def weights(self, parameters: Mapping[str, Tensor]) -> KernelWeights:
        """Reorder the gates, which are stored in the order i, f, g, o."""

        def reordered(weight: Tensor) -> Tensor:
            i, f, g, o = weight.chunk(4)
            return torch.cat((i, f, o, g))

        hidden = reordered(parameters["weight_hh"])
        bias = hidden.new_zeros(len(hidden))
        if "bias_ih" in parameters:
            bias = reordered(parameters["bias_ih"] + parameters["bias_hh"])
        return KernelWeights(reordered(parameters["weight_ih"]), bias, hidden, hidden.new_empty(0))

    def step(self, pre: Tensor, state: Parts | None, weights: KernelWeights) -> tuple[Parts, Parts]:
        """Compute ``f c + i g`` and ``o tanh(c')`` with one product, the gates in place."""
        units = pre.shape[1] // 4
        gates = pre.clone() if state is None else torch.addmm(pre, state[0], weights.hidden.t())
        gates[:, : 3 * units].sigmoid_()
        i, f, o, g = gates.chunk(self.gates, 1)
        g.tanh_()
        cell = i * g if state is None else torch.mul(f, state[1]).addcmul_(i, g)
        squashed = cell.tanh()
        return (o * squashed, cell), (gates, squashed)

    def backward(
        self, saved: Parts, before: Parts | None, after: Parts, grads: list[Tensor | None], weights: KernelWeights
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """Write the gradients of all gates into one array."""
        (gates, squashed), (grad, grad_cell) = saved, grads
        assert grad is not None
        units = grad.shape[1]
        i, f, o, g = gates.chunk(self.gates, 1)
        pre = torch.empty_like(gates)
        through = grad * o
        _tanh_backward(through, squashed, grad_input=through)
        if grad_cell is not None:
            through += grad_cell
        torch.mul(through, g, out=pre[:, :units])
        if before is None:
            pre[:, units : 2 * units].zero_()
        else:
            torch.mul(through, before[1], out=pre[:, units : 2 * units])
        torch.mul(grad, squashed, out=pre[:, 2 * units : 3 * units])
        torch.mul(through, i, out=pre[:, 3 * units :])
        sigmoids, tanhs = pre[:, : 3 * units], pre[:, 3 * units :]
        _sigmoid_backward(sigmoids, gates[:, : 3 * units], grad_input=sigmoids)
        _tanh_backward(tanhs, g, grad_input=tanhs)
        if before is None:
            return pre, pre, [None, None]
        return pre, pre, [pre @ weights.hidden, through.mul_(f)]


class GRUKernel(Kernel):
    """``n = tanh(pre_n + r (W_n h + b_n))``, ``h' = n + z (h - n)``."""

    parts, gates = 1, 3

    def weights(self, parameters: Mapping[str, Tensor]) -> KernelWeights:
        """Keep the stored order r, z, n; the candidate's hidden bias stays inside the reset gate."""
        hidden = parameters["weight_hh"]
        units = hidden.shape[1]
        bias, hidden_bias = hidden.new_zeros(3 * units), hidden.new_zeros(units)
        if "bias_ih" in parameters:
            own = parameters["bias_hh"]
            hidden_bias = own[2 * units :]
            bias = parameters["bias_ih"] + torch.cat((own[: 2 * units], torch.zeros_like(hidden_bias)))
        return KernelWeights(parameters["weight_ih"], bias, hidden, hidden_bias)

    def step(self, pre: Tensor, state: Parts | None, weights: KernelWeights) -> tuple[Parts, Parts]:
        """Compute ``n + z (h - n)`` with one product; the candidate's hidden part stays apart from the inputs'."""
        units = pre.shape[1] // 3
        if state is None:
            gates = pre[:, : 2 * units].sigmoid()
            candidate = weights.hidden_bias.expand(len(pre), units)
        else:
            hidden = state[0] @ weights.hidden.t()
            gates = hidden[:, : 2 * units].add_(pre[:, : 2 * units]).sigmoid_()
            candidate = hidden[:, 2 * units :].add_(weights.hidden_bias)
        reset, update = gates.chunk(2, 1)
        new = torch.addcmul(pre[:, 2 * units :], reset, candidate).tanh_()
        after = new - update * new if state is None else torch.lerp(new, state[0], update)
        return (after,), (gates, candidate, new)

    def backward(
        self, saved: Parts, before: Parts | None, after: Parts, grads: list[Tensor | None], weights: KernelWeights
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """Write the gradients of gates and candidate into one array, the candidate's hidden part into another."""
        (gates, candidate, new), (grad,) = saved, grads
        assert grad is not None
        units = grad.shape[1]
        reset, update = gates.chunk(2, 1)
        pre = grad.new_empty(len(grad), 3 * units)
        tanhs, sigmoids = pre[:, 2 * units :], pre[:, : 2 * units]
        kept = grad * update
        torch.sub(grad, kept, out=tanhs)
        _tanh_backward(tanhs, new, grad_input=tanhs)
        torch.mul(tanhs, candidate, out=pre[:, :units])
        torch.mul(grad, -new if before is None else before[0] - new, out=pre[:, units : 2 * units])
        _sigmoid_backward(sigmoids, gates, grad_input=sigmoids)
        hidden = torch.cat((sigmoids, tanhs * reset), 1)
        return pre, hidden, [None if before is None else torch.addmm(kept, hidden, weights.hidden)]


def kernel_of(recurrence: Recurrence) -> Kernel | None:
    """Return the kernel of a recurrence; None for cells without one."""
    if type(recurrence) is RNNRecurrence:
        return RNNKernel(recurrence.nonlinearity)
    if type(recurrence) is LSTMRecurrence:
        return None if "weight_hr" in recurrence.parameters() else LSTMKernel()
    return GRUKernel() if type(recurrence) is GRURecurrence else None
