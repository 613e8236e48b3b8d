"""Recurrent layers with what makes deep networks trainable between them: residual connections and normalisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_stable.truncation import Windowed

State = tuple[Any, ...]
Evaluate = Callable[[nn.Module, Tensor, Tensor | None], Tensor]


class RecurrentStack(nn.Module):
    """Recurrent networks of one layer each, one above the other: ``x + layer(dropout(norm(x)))`` above the first.

    Each layer is a recurrence of its own. It has its own certificate and its own window, so that with windows of ``k``
    inputs an output depends on ``layers * (k - 1) + 1`` inputs. The outputs of a LayerNorm are a known set, from which
    the layer above is certified. Residual sums without normalisation are not: declare ``input_bound`` for gated cells
    then.

    Args:
        layers: The recurrent networks, batch first; the outputs of each have the size of the inputs of the next.
        residual: Whether every layer but the first adds its outputs to its inputs.
        normalize: Whether every layer but the first reads normalised inputs.
        dropout: Dropout of what every layer but the first reads.
    """

    def __init__(
        self, layers: Sequence[nn.RNNBase], *, residual: bool = False, normalize: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norms = nn.ModuleList(
            nn.LayerNorm(layer.input_size) if normalize else nn.Identity() for layer in layers[1:]
        )
        self.dropout = nn.Dropout(dropout)
        self.residual = residual
        self.bidirectional = layers[0].bidirectional
        self.output_size = layers[-1].hidden_size * (1 + self.bidirectional)

    @property
    def receptive_field(self) -> int | None:
        """How many inputs an output depends on; None if on all."""
        windows = [layer.window for layer in self.layers if isinstance(layer, Windowed)]
        return sum(windows) - len(windows) + 1 if windows else None

    def forward(self, inputs: Tensor, hx: State | None = None) -> tuple[Tensor, State]:
        """Run over sequences.

        Args:
            inputs: Shape ``(batch, time, input_size)``.
            hx: The state of every layer before the first input, as the layer takes it; zeros by default.

        Returns:
            Outputs of shape ``(batch, time, output_size)`` and the states after the last input, as ``hx``.
        """
        states: State = ()
        values = inputs
        for index, layer in enumerate(self.layers):
            output, state = layer(self._read(index, values), None if hx is None else hx[index])
            states = (*states, state)
            values = self._joined(index, values, output)
        return values, states

    def outputs(self, inputs: Tensor, lengths: Tensor | None, evaluate: Evaluate) -> Tensor:
        """Return the outputs for padded sequences; ``evaluate`` returns those of one layer."""
        values = inputs
        for index, layer in enumerate(self.layers):
            values = self._joined(index, values, evaluate(layer, self._read(index, values), lengths))
        return values

    def _read(self, index: int, values: Tensor) -> Tensor:
        """Return what a layer reads of the outputs below."""
        if index == 0:
            return values
        read: Tensor = self.dropout(self.norms[index - 1](values))
        return read

    def _joined(self, index: int, values: Tensor, output: Tensor) -> Tensor:
        return values + output if self.residual and index else output
