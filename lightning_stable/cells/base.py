"""The base of layers whose state is ``h' = g h + (1 - g) c``, with the signature of ``nn.RNN``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lightning_stable import checks

Shapes = dict[str, tuple[int, ...]]


class MixingRNN(nn.RNNBase):
    """Layers and directions of ``h' = g h + (1 - g) c``, ``g`` a sigmoid and ``c`` a tanh.

    A base class. Weights are stacked in the order g, c and named as torch's, ``weight_ih_l0``, ``weight_hh_l0``,
    ``bias_ih_l0``, ``bias_hh_l0``, with ``_reverse`` at the end for the backward direction.

    Args:
        input_size: Features per time step.
        hidden_size: Units per layer and direction.
        num_layers: Number of layers.
        bias: Whether the layers have biases.
        batch_first: Whether batched tensors are ``(batch, time, features)`` instead of ``(time, batch, features)``.
        dropout: Probability of dropout on the outputs of every layer but the last, in training.
        bidirectional: Whether the layers run over the sequence in both directions.
        device: Device of the parameters.
        dtype: Data type of the parameters.
        gate_bias: Number added to the initial biases of the gates: above 0 they start open, and the state remembers.
    """

    gate_bias: float = 0.0

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        gate_bias: float = 1.0,
    ) -> None:
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            checks.integer(name, size)
        for name, flag in (("bias", bias), ("batch_first", batch_first), ("bidirectional", bidirectional)):
            checks.boolean(name, flag)
        dropout, gate_bias = checks.number("dropout", dropout, "[0, 1]"), checks.number("gate_bias", gate_bias)
        device = None if device is None else checks.device("device", device)
        dtype = None if dtype is None else checks.real_dtype("dtype", dtype)
        # Its parameters, which have one block of rows, are replaced.
        super().__init__(
            "RNN_TANH", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0, device, dtype
        )
        self.mode, self.gate_bias = type(self).__name__, gate_bias
        names = []
        for layer in range(num_layers):
            features = hidden_size * (1 + bidirectional) if layer else input_size
            for suffix in self._suffixes(layer):
                shapes = {role: shape for role, shape in self._shapes(features).items() if bias or "bias" not in role}
                for role, shape in shapes.items():
                    setattr(self, role + suffix, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
                names.append([role + suffix for role in shapes])
        self._all_weights = names
        self._flat_weights_names = [name for roles in names for name in roles]
        for name in self._parameters.keys() - set(self._flat_weights_names):
            delattr(self, name)
        self._init_flat_weights()
        self.reset_parameters()

    def _shapes(self, features: int) -> Shapes:
        """Return the shapes of the parameters of one directed layer, by role."""
        rows = 2 * self.hidden_size
        return {
            "weight_ih": (rows, features),
            "weight_hh": (rows, self.hidden_size),
            "bias_ih": (rows,),
            "bias_hh": (rows,),
        }

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}{end}" for end in ("", "_reverse")[: 1 + self.bidirectional]]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw from ``+-1 / sqrt(hidden_size)`` as torch's layers do; add ``gate_bias`` to the biases of the gates."""
        super().reset_parameters()
        for name, parameter in self.named_parameters():
            self._open(name, parameter)

    def _open(self, name: str, parameter: Tensor) -> None:
        """Move an initial parameter by ``gate_bias`` if it is one of those that decide how long the state is kept."""
        if name.startswith(("bias_ih", "bias_iy")):
            parameter[: self.hidden_size] += self.gate_bias

    def flatten_parameters(self) -> None:
        """Do nothing: there is no cuDNN kernel."""

    def extra_repr(self) -> str:
        """Return what torch's layers say, and the gate bias if it is not 1."""
        return super().extra_repr() + (f", gate_bias={self.gate_bias}" if self.gate_bias != 1 else "")

    def forward(self, input: Any, hx: Tensor | None = None) -> tuple[Any, Tensor]:
        """Run over sequences.

        Args:
            input: Shape ``(time, batch, features)``, or ``(batch, time, features)`` with ``batch_first``;
                ``(time, features)`` without a batch; or a PackedSequence.
            hx: The state before the first input, ``(layers * directions, batch, hidden_size)``, without the batch for
                inputs without one; zeros by default.

        Returns:
            Outputs of the last layer, laid out as the input, and the final states, laid out as ``hx``.

        Raises:
            ValueError: If the input has no such shape, no step, or another dtype than the weights.
            RuntimeError: If the number of features or the shape of ``hx`` is wrong.
        """
        packed = input if isinstance(input, PackedSequence) else None
        if packed is not None:
            inputs, lengths = pad_packed_sequence(PackedSequence(packed.data, packed.batch_sizes))
            valid = (torch.arange(len(inputs))[:, None, None] < lengths[:, None]).to(inputs.device)
            state = self._start(packed.data, inputs, hx, packed.batch_sizes, packed.sorted_indices)
            inputs, state = self._layers(inputs, state, valid, lengths)
            data = pack_padded_sequence(inputs, lengths).data
            return PackedSequence(data, *packed[1:]), self.permute_hidden(state, packed.unsorted_indices)
        if not isinstance(input, Tensor) or input.dim() not in (2, 3):
            shape = tuple(input.shape) if isinstance(input, Tensor) else type(input).__name__
            raise ValueError(f"`input` must be a PackedSequence or a tensor with 2 or 3 dimensions. Got {shape}.")
        batched = input.dim() == 3
        if hx is not None and hx.dim() != input.dim():
            raise RuntimeError(
                f"`hx` must have as many dimensions as the input, {input.dim()}. Got {hx.dim()}: {tuple(hx.shape)}."
            )
        if not batched:
            values, hx = input.unsqueeze(int(not self.batch_first)), None if hx is None else hx.unsqueeze(1)
        else:
            values = input
        inputs = values.transpose(0, 1) if self.batch_first else values
        state = self._start(values, inputs, hx, None, None)
        outputs, state = self._layers(inputs, state, None, None)
        if not batched:
            return outputs.squeeze(1), state.squeeze(1)
        return outputs.transpose(0, 1) if self.batch_first else outputs, state

    def _start(
        self, values: Tensor, inputs: Tensor, hx: Tensor | None, batch_sizes: Tensor | None, order: Tensor | None
    ) -> Tensor:
        """Return the checked start, ``(layers * directions, batch, hidden_size)``, in the order of the inputs."""
        if not len(inputs):
            raise ValueError(f"`input` must have at least one time step. Got shape {tuple(values.shape)}.")
        directions = self.num_layers * (1 + self.bidirectional)
        if hx is None:
            hx = inputs.new_zeros(directions, inputs.shape[1], self.hidden_size)
        self.check_forward_args(values, hx, batch_sizes)
        start: Tensor = self.permute_hidden(hx, order)
        return start

    def _layers(
        self, inputs: Tensor, state: Tensor, valid: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Run all layers on ``(time, batch, features)``; ``valid``, ``(time, batch, 1)``, marks what is no padding."""
        starts, last = iter(state.unbind(0)), []
        for layer in range(self.num_layers):
            outputs = []
            for direction, suffix in enumerate(self._suffixes(layer)):
                output, end = self._run(inputs, next(starts), suffix, valid, backward=direction == 1)
                outputs.append(output)
                last.append(end)
            inputs = torch.cat(outputs, -1) if self.bidirectional else outputs[0]
            if self.training and self.dropout and layer + 1 < self.num_layers:
                inputs = self._dropped(inputs, lengths)
        return inputs, torch.stack(last)

    def _dropped(self, inputs: Tensor, lengths: Tensor | None) -> Tensor:
        if lengths is None:
            return F.dropout(inputs, self.dropout)
        # Masks are drawn for the entries alone, as torch's layers draw them.
        packed = pack_padded_sequence(inputs, lengths)
        return pad_packed_sequence(packed._replace(data=F.dropout(packed.data, self.dropout)))[0]

    def _run(
        self, inputs: Tensor, state: Tensor, suffix: str, valid: Tensor | None, *, backward: bool
    ) -> tuple[Tensor, Tensor]:
        """Run one directed layer; return its outputs, ``(time, batch, hidden_size)``, and its last state."""
        hidden = getattr(self, "weight_hh" + suffix).t()
        driven = F.linear(inputs, getattr(self, "weight_ih" + suffix), self._bias("bias_ih", "bias_hh", suffix))
        states = [state]
        for position in reversed(range(len(inputs))) if backward else range(len(inputs)):
            gate, candidate = torch.addmm(driven[position], state, hidden).chunk(2, 1)
            after = mix(gate.sigmoid(), state, candidate.tanh())
            state = after if valid is None else torch.where(valid[position], after, state)
            states.append(state)
        before, visited = states[:-1], states[1:]
        if backward:
            before, visited = before[::-1], visited[::-1]
        return self._outputs(inputs, before, visited, suffix), state

    def _bias(self, first: str, second: str, suffix: str) -> Tensor | None:
        total: Tensor | None = getattr(self, first + suffix) + getattr(self, second + suffix) if self.bias else None
        return total

    def _outputs(self, inputs: Tensor, before: Sequence[Tensor], after: Sequence[Tensor], suffix: str) -> Tensor:
        """Return outputs from the inputs and the states before and after every step, in the order of the inputs."""
        return torch.stack(list(after))


def mix(gate: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """``gate * old + (1 - gate) * new``."""
    return new + gate * (old - new)
