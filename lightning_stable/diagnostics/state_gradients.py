"""How much of a state is left after some steps on real data: gradients of the loss, and growth of perturbations.

Certificates hold for every admissible state and input; what is computed here belongs to one run on given inputs.
Miller & Hardt (*Stable Recurrent Models*) found models outside the stable set that behave like stable ones on the data
they see, and called it the data-dependent regime. Every number of this module is a **measurement, not a bound**.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import PackedSequence

from lightning_stable import checks
from lightning_stable.diagnostics.jacobians import gradient_norms, lyapunov_exponents
from lightning_stable.figures import plot_decay
from lightning_stable.recurrence.registry import recurrences_of
from lightning_stable.stability.certify import certify_recurrences
from lightning_stable.stability.inputs.resolve import Sources, resolve_sources
from lightning_stable.stability.inputs.sets import Recorded, weakest_guarantee

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Gradients smaller than this underflow in float32 soon, and no decay can be read from them.
_UNDERFLOW = 1e-30


@dataclass(frozen=True)
class StateGradients:
    """Measurements on the states of one recurrent module, along its runs on given inputs. They are no bounds.

    The state is that of all layers of the module together, ``(h, c)`` for LSTM; norms are Euclidean.

    Attributes:
        norms: ``||d loss_t / d h_{t - lag}||``, shape ``(max_lag + 1, positions)``, float64, with a row for every lag
            and a column for every ``t`` of every sequence that has a loss; NaN where the run begins later.
        exponents: Finite-time Lyapunov exponent of every sequence, shape ``(sequences,)``: the logarithm per step of
            the largest factor by which a perturbation of its first state grows until its end. Short sequences measure
            transient growth.
        certified_rate: Certified rate of the module, infinite or NaN if there is none.
        guarantee: What the certified rate rests on: ``"guaranteed"``, ``"derived"`` (a set read off a traced model),
            ``"data"`` (inputs in the range of these) or ``"none"``.
        source: Where gradients start from: ``"loss"``, or ``"random"`` directions in the state at ``t``.
        name: Name of the module.
    """

    norms: Tensor
    exponents: Tensor
    certified_rate: float = math.inf
    guarantee: str = "none"
    source: str = "loss"
    name: str = ""

    @classmethod
    def joined(cls, parts: Sequence[StateGradients]) -> StateGradients:
        """Return measurements on several batches as one, with the largest certified rate and the weakest guarantee.

        Raises:
            ValueError: If there are none.
        """
        if not parts:
            raise ValueError("`parts` must be measurements, at least one. Got none.")
        lags = max(len(part.norms) for part in parts)
        padded = [pad(part.norms, (0, 0, 0, lags - len(part.norms)), value=torch.nan) for part in parts]
        worst = max(parts, key=lambda part: part.certified_rate if part.certified_rate < math.inf else math.inf)
        return replace(
            worst,
            norms=torch.cat(padded, dim=1),
            exponents=torch.cat([part.exponents for part in parts]),
            guarantee=weakest_guarantee(part.guarantee for part in parts),
        )

    @property
    def lags(self) -> Tensor:
        """``0 .. max_lag``."""
        return torch.arange(len(self.norms))

    @property
    def mean(self) -> Tensor:
        """Mean norm by lag over the positions that have one, shape ``(max_lag + 1,)``; NaN where none has."""
        return self.norms.nanmean(dim=1)

    @property
    def max(self) -> Tensor:
        """Largest norm by lag, shape ``(max_lag + 1,)``; NaN where there is none."""
        if not self.norms.shape[1]:
            return self.mean
        largest = self.norms.nan_to_num(-1.0).amax(dim=1)
        return largest.where(largest >= 0, torch.nan)

    @property
    def decay(self) -> float:
        """Fitted factor per step by which the mean norm falls; NaN if it cannot be read from the norms.

        From one lag to the next the same positions ``t`` are compared: fewer and fewer have a state that long ago,
        and their losses differ.
        """
        before, after = self.norms[:-1], self.norms[1:]
        ratios = after.nansum(dim=1) / before.where(~after.isnan(), 0.0).sum(dim=1)
        count = int((ratios.isfinite() & (self.mean[1:] > _UNDERFLOW)).long().cumprod(0).sum())
        levels = torch.cat((ratios.new_zeros(1), ratios[:count].log().cumsum(0)))
        centred = torch.arange(count + 1, dtype=levels.dtype) - count / 2
        return math.exp((centred @ levels / (centred @ centred)).item()) if count else math.nan

    @property
    def lyapunov(self) -> float:
        """The largest of the sequences' exponents."""
        return self.exponents.max().item()

    @property
    def rates(self) -> Tensor:
        """``exp(exponents)``, the measured rate per step of every sequence."""
        return self.exponents.exp()

    @property
    def rate(self) -> float:
        """The largest measured rate, ``exp(lyapunov)``."""
        return self.rates.max().item()

    @property
    def is_certified(self) -> bool:
        """Whether the certified rate is below 1."""
        return self.certified_rate < 1

    @property
    def in_stable_regime(self) -> bool:
        """Whether perturbations shrank along every sequence measured, whatever is certified: ``lyapunov < 0``."""
        return self.lyapunov < 0

    def __str__(self) -> str:
        certified = f"certified rate {self.certified_rate:.3g}" if self.is_certified else "not certified stable"
        regime = "operates in the stable regime on these data" if self.in_stable_regime else "perturbations grow"
        return (
            f"{self.name or 'the recurrence'}: {certified}; measured rate {self.rate:.3g} per step, {regime} "
            f"(a measurement, not a bound); gradients decay by {self.decay:.3g} per step"
        )

    def plot(self) -> Figure:
        """Draw the norms against the lag on a logarithmic scale, as a matplotlib figure without a display."""
        lags, largest = self.lags.tolist(), self.max.tolist()
        curves = [("largest", "largest, measured", largest), ("mean", "mean, measured", self.mean.tolist())]
        if self.is_certified and largest[0] > 0:
            label = f"certified rate {self.certified_rate:.3g} ** lag, up to a constant"
            label += {"data": " (range of this data)", "derived": " (derived inputs)"}.get(self.guarantee, "")
            curves.insert(0, ("certified", label, [largest[0] * self.certified_rate**lag for lag in lags]))
        gradient = r"$\|\partial\, loss_t / \partial h_{t-\tau}\|$"
        regime = "stable" if self.in_stable_regime else "unstable"
        certified = "" if self.is_certified else ", not certified"
        return plot_decay(
            lags,
            curves,
            xlabel=r"$\tau$ (steps back)",
            ylabel=gradient if self.source == "loss" else "growth, random directions",
            title=f"States of {self.name or 'the recurrence'}: {regime} on these data{certified}\n"
            f"measured decay {self.decay:.3g}, largest rate {self.rate:.3g} per step",
        )


def measure_state_gradients(
    recurrent: nn.Module,
    inputs: Any,
    output_gradients: Any = None,
    max_lag: int = 32,
    *,
    state: Any = None,
    state_gradients: Any = None,
    input_bound: Any = None,
    name: str = "",
) -> StateGradients:
    """Measure gradient norms and Lyapunov exponents of one recurrent module on given inputs, beside its certificate.

    See :func:`gradient_norms` and :func:`lyapunov_exponents`.

    Args:
        recurrent: A recurrent module (``nn.RNN``, ``nn.LSTM``, ``nn.GRU``, a cell, or a registered module) with one
            direction, not windowed. Dropout between layers is off.
        inputs: The inputs as the module takes them: batched or not, or a PackedSequence; for a cell, shape
            ``(time, batch, features)``.
        output_gradients: ``d loss / d output``, see :func:`gradient_norms`; None takes random directions.
        max_lag: Largest lag, at least 1. Lags that no sequence is long enough for are left out.
        state: As in :func:`gradient_norms`.
        state_gradients: As in :func:`gradient_norms`.
        input_bound: What is known about the inputs, see :func:`lightning_stable.certify`; None takes the range of
            ``inputs`` where a cell needs one.
        name: Name of the module, for texts.

    Raises:
        TypeError: As :func:`gradient_norms`.
        ValueError: As :func:`gradient_norms`.
    """
    checks.label("name", name)
    from_loss = output_gradients is not None or state_gradients is not None
    norms = gradient_norms(
        recurrent, inputs, output_gradients, max_lag, state=state, state_gradients=state_gradients
    ).flatten(1)
    # Positions without a loss say nothing about the decay of its gradient.
    norms = norms[:, norms[0] > 0].double().cpu()
    exponents = lyapunov_exponents(recurrent, inputs, state=state).double().cpu()
    rate, guarantee = _certified(recurrent, inputs, input_bound)
    return StateGradients(norms, exponents, rate, guarantee, "loss" if from_loss else "random", name)


def _certified(recurrent: nn.Module, inputs: Any, input_bound: Any) -> tuple[float, str]:
    recurrences = recurrences_of(recurrent)
    if input_bound is None:
        data = inputs.data if isinstance(inputs, PackedSequence) else inputs
        seen = data.detach().double().flatten(0, -2)
        sources: Sources = {recurrences[0].module_name: Recorded(seen.amin(0), seen.amax(0), checked=False)}
    else:
        sources = resolve_sources(recurrent, recurrences, input_bound)
    report = certify_recurrences(recurrences, sources, training=False)
    return report.rate, report.guarantee
