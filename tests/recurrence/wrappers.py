"""Subclasses of recurrent layers: some wrap the layer's ``forward``, some compute something else."""

from abc import ABC
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lightning_stable.cells import UGRNN


# Wrappers -------------------------------------------------------------------------------------------------------------
class WithLengths(ABC, nn.RNNBase):
    """Takes padded sequences and their lengths, as layers of forecasting libraries do."""

    def forward(self, x: Any, hx: Any = None, lengths: Tensor | None = None, enforce_sorted: bool = True) -> Any:
        if isinstance(x, PackedSequence) or lengths is None:
            return super().forward(x, hx=hx)
        packed = pack_padded_sequence(x, lengths.cpu(), self.batch_first, enforce_sorted)
        output, state = super().forward(packed, hx=hx)
        return pad_packed_sequence(output, self.batch_first)[0], state


class LSTMWithLengths(WithLengths, nn.LSTM):
    pass


class GRUWithLengths(WithLengths, nn.GRU):
    pass


class UGRNNWithLengths(WithLengths, UGRNN):
    pass


class FromZeros(nn.GRU):
    """Makes the zero state itself, under other names of the arguments."""

    def forward(self, values: Tensor, start: Tensor | None = None) -> Any:
        if start is None:
            start = values.new_zeros(self.num_layers, values.shape[int(not self.batch_first)], self.hidden_size)
        return super().forward(hx=start, input=values)


class CountedCell(nn.LSTMCell):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps = 0

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        self.steps += 1
        return super().forward(input, hx)


# What is none ---------------------------------------------------------------------------------------------------------
class NormedLSTM(nn.LSTM):
    """An LSTM of one layer with layer norm in the gates."""

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        h, c = (input.new_zeros(2, 1, input.shape[1], self.hidden_size)) if hx is None else hx
        h, c, outputs = h[0], c[0], []
        for x in input:
            gates = F.linear(x, self.weight_ih_l0, self.bias_ih_l0) + F.linear(h, self.weight_hh_l0, self.bias_hh_l0)
            i, f, g, o = F.layer_norm(gates, gates.shape[-1:]).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs), (h[None], c[None])


class ResidualCell(nn.GRUCell):
    def forward(self, input: Tensor, hx: Any = None) -> Tensor:
        state: Tensor = super().forward(input, hx)
        return state if hx is None else state + hx


class SleepingResidualCell(nn.GRUCell):
    """Its residual has a factor that is zero before it is trained."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, input: Tensor, hx: Any = None) -> Tensor:
        state: Tensor = super().forward(input, hx)
        return state if hx is None else state + self.alpha * hx


class SwitchedCell(nn.GRUCell):
    def __init__(self, *args: Any, residual: bool = False) -> None:
        super().__init__(*args)
        self.residual = residual

    def forward(self, input: Tensor, hx: Any = None) -> Tensor:
        state: Tensor = super().forward(input, hx)
        return state + 1 if self.residual else state


class Initialized(nn.GRUCell):
    """Behaves in another way once a flag is set."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("ready", torch.tensor(False))

    def forward(self, input: Tensor, hx: Any = None) -> Tensor:
        state: Tensor = super().forward(input, hx)
        return 2 * state if self.ready else state


class Doubled(nn.GRU):
    def forward(self, input: Tensor, hx: Any = None) -> Any:
        return super().forward(2 * input, hx)


class DroppedInputs(nn.GRU):
    def forward(self, input: Tensor, hx: Any = None) -> Any:
        return super().forward(F.dropout(input, 0.5, self.training), hx)


class Clipped(nn.GRU):
    def forward(self, input: Tensor, hx: Any = None) -> Any:
        return super().forward(input.clamp(-5, 5), hx)


class Halved(nn.GRU):
    def forward(self, input: Tensor, hx: Any = None) -> Any:
        return super().forward(input, None if hx is None else hx / 2)


class LearnedStart(nn.GRU):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.start = nn.Parameter(torch.zeros(1, 1, self.hidden_size))

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        return super().forward(input, self.start.expand(-1, input.shape[1], -1).contiguous() if hx is None else hx)


class Stateful(nn.GRU):
    last: Tensor | None = None

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        output, self.last = super().forward(input, self.last if hx is None and self.last is not None else hx)
        return output, self.last


class Twice(nn.GRUCell):
    def forward(self, input: Tensor, hx: Any = None) -> Tensor:
        state: Tensor = super().forward(input, super().forward(input, hx))
        return state


class OutputOnly(nn.GRU):
    def forward(self, input: Tensor, hx: Any = None) -> Any:
        return super().forward(input, hx)[0]


class NormedOutputs(nn.GRU):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.norm = nn.LayerNorm(self.hidden_size)

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        output, state = super().forward(input, hx)
        return self.norm(output), state


class NeedsLengths(nn.GRU):
    def forward(self, input: Tensor, lengths: Tensor) -> Any:
        packed = pack_padded_sequence(input, lengths, self.batch_first, enforce_sorted=False)
        output, state = super().forward(packed)
        return pad_packed_sequence(output, self.batch_first)[0], state


class Reweighted(nn.GRU):
    """Clamps its weights at every use."""

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        self.weight_hh_l0.data.clamp_(-0.1, 0.1)
        return super().forward(input, hx)


class Rewired(UGRNN):
    """Overrides a part of what its ``forward`` calls."""

    def _outputs(self, *args: Any) -> Tensor:
        return 2 * super()._outputs(*args)


class Called(nn.GRU):
    def __call__(self, *args: Any) -> Any:
        return super().__call__(2 * args[0])


# Weights that are recomputed ------------------------------------------------------------------------------------------
class WeightDrop(nn.LSTM):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        raw = self.weight_hh_l0
        del self._parameters["weight_hh_l0"]
        self.register_parameter("weight_hh_l0_raw", raw)
        self.weight_hh_l0 = raw.detach().clone()

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        self.weight_hh_l0 = F.dropout(self.weight_hh_l0_raw, 0.5, self.training)
        return super().forward(input, hx)


class LowRankCell(nn.RNNCell):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        del self._parameters["weight_hh"]
        self.left, self.right = (
            nn.Parameter(torch.ones(self.hidden_size, 1)),
            nn.Parameter(torch.ones(1, self.hidden_size)),
        )

    @property
    def weight_hh(self) -> Tensor:
        return self.left @ self.right
