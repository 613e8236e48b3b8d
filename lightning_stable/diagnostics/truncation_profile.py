"""How much context a recurrent layer uses: the error of its truncation at every window, measured and certified."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from lightning_stable import checks
from lightning_stable.copying import evaluating
from lightning_stable.diagnostics.finite import check_run, checked_inputs
from lightning_stable.diagnostics.tolerance_limits import draws_needed, limit_rank
from lightning_stable.diagnostics.tube_profile import tube_profile
from lightning_stable.figures import plot_decay
from lightning_stable.recurrence import recurrences_of
from lightning_stable.stability.inputs.resolve import Sources, resolve_sources
from lightning_stable.stability.inputs.sets import Recorded
from lightning_stable.stability.window_bounds import window_bounds
from lightning_stable.truncation.exact.bidirectional import bidirectional_rows, reorder, reversal
from lightning_stable.truncation.exact.evaluate import step_of
from lightning_stable.truncation.exact.layout import Layout
from lightning_stable.truncation.exact.rows import head_rows
from lightning_stable.truncation.exact.stack import Stack, States, concatenate, stacks_of, take
from lightning_stable.truncation.windowed import Windowed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Errors below this share of the largest output are rounding, and no decay can be read from them.
_ROUNDING = {torch.float64: 1e-13, torch.float32: 1e-5}


@dataclass(frozen=True)
class TruncationProfile:
    """Difference between a recurrent layer and its windowed forms, over the windows ``1 .. max_window``.

    No window is longer than the longest sequence: with that many inputs the windowed form is the recurrence, and
    ``max_window`` below is the smaller of the two.

    Attributes:
        windows: Shape ``(max_window,)``.
        max_error: Largest Euclidean norm of the difference of the outputs over batch and time, same shape.
        mean_error: Mean of that norm over batch and time, same shape.
        sequence_error: Largest of that norm over the time of each sequence, shape ``(max_window, sequences)``.
        rate: Fitted decay of ``mean_error`` per step; NaN if it cannot be read from the errors.
        bound: Certified bound on ``max_error`` for each window, same shape; NaN where nothing is certified.
        tube: Certified for these inputs: the largest bound of all whole windows of them, whatever comes before, see
            :func:`lightning_stable.certify_windows`, same shape. NaN where no sequence has a whole window, and for
            cells without a tube or a bound on their states.
        guarantee: What the bound rests on: ``"guaranteed"``, ``"derived"`` (a set read off a traced model), ``"data"``
            (inputs in the range of these) or ``"none"``.
        output_norm: Mean Euclidean norm of the recurrent layer's outputs, to compare with.
        name: Name of the layer, for the plot.
    """

    windows: Tensor
    max_error: Tensor
    mean_error: Tensor
    sequence_error: Tensor
    rate: float
    bound: Tensor
    tube: Tensor
    guarantee: str
    output_norm: float
    name: str = ""

    def required_window(
        self, tolerance: float, *, coverage: float | None = None, confidence: float = 0.95
    ) -> int | None:
        """Return the smallest window from which on errors stay at or below ``tolerance``; None if none does.

        By default this is what was measured: it holds for these sequences. With ``coverage`` it is statistical: with
        probability ``confidence`` over the draw of these sequences, the window is enough for at least the share
        ``coverage`` of all sequences from the same source. It holds for every model, stable or not, and assumes that
        the sequences are exchangeable and that the model was not trained on them; columns of one text are not
        independent documents.

        Args:
            tolerance: Largest Euclidean norm of the error of an output.
            coverage: Share of all sequences, in (0, 1).
            confidence: Probability, in (0, 1), see :mod:`lightning_stable.diagnostics.tolerance_limits`.

        Raises:
            TypeError: If an argument is no number.
            ValueError: If the tolerance is not positive and finite, coverage or confidence are not in (0, 1), or there
                are too few sequences for them.
        """
        tolerance = checks.number("tolerance", tolerance, "(0, inf)")
        windows = windows_needed(self.sequence_error, tolerance)
        rank = 1
        if coverage is not None:
            rank = limit_rank(len(windows), coverage, confidence)
            if not rank:
                raise ValueError(
                    f"A window for coverage={coverage:g} with confidence={confidence:g} needs at least "
                    f"{draws_needed(coverage, confidence)} sequences. Got {len(windows)}; profile more sequences, or "
                    "lower `coverage` or `confidence`."
                )
        first = int(windows.sort(descending=True).values[rank - 1])
        return first if first <= len(self.windows) else None

    def tube_window(self, tolerance: float) -> int | None:
        """Return the smallest window from which on ``tube`` stays at or below ``tolerance``; None if none does.

        It is enough for these inputs, whatever comes before them.

        Raises:
            TypeError: If the tolerance is no number.
            ValueError: If it is not positive and finite.
        """
        tolerance = checks.number("tolerance", tolerance, "(0, inf)")
        tube = self.tube[~self.tube.isnan()]
        first = int(windows_needed(tube[:, None], tolerance)) if len(tube) else 1
        return first if first <= len(tube) else None

    @property
    def has_useful_tube(self) -> bool:
        """Whether some ``tube`` is below the mean norm of the outputs: one above it says nothing."""
        return bool((self.tube < self.output_norm).any())

    def plot(self) -> Figure:
        """Draw errors and bounds by the window on a logarithmic scale, as a matplotlib figure without a display."""
        largest, mean = self.max_error.tolist(), self.mean_error.tolist()
        curves = [
            ("largest", "largest error", largest),
            ("mean", "mean error", mean),
            ("level", "mean norm of the outputs", [self.output_norm] * len(mean)),
        ]
        if not self.tube.isnan().all():
            curves.insert(0, ("tube", "certified for these inputs", self.tube.tolist()))
        if not self.bound.isnan().all():
            label = "certified bound"
            label += {"data": " (range of this data)", "derived": " (derived inputs)"}.get(self.guarantee, "")
            curves.insert(0, ("certified", label, self.bound.tolist()))
        decay = "" if math.isnan(self.rate) else f": measured rate {self.rate:.3g} per step"
        figure = plot_decay(
            self.windows.tolist(),
            curves,
            xlabel="window (inputs seen)",
            ylabel="error of the output (Euclidean norm)",
            title=f"Truncation of {self.name or 'the recurrence'}{decay}",
        )
        positive = [value for value in mean if value > 0]
        if positive:  # exact windows have error 0, and bounds may lie far above what matters
            figure.axes[0].set_ylim(min(positive) / 3, 10 * max(self.output_norm, *largest))
        return figure


def windows_needed(sequence_error: Tensor, tolerance: float) -> Tensor:
    """Return for each sequence the window from which on its errors stay within the tolerance, shape ``(sequences,)``.

    Args:
        sequence_error: As in :class:`TruncationProfile`, shape ``(max_window, sequences)``.
        tolerance: Largest error.

    Returns:
        Integers; ``max_window + 1`` where the longest window is not enough.
    """
    windows = torch.arange(1, len(sequence_error) + 1)[:, None]
    return (windows * ~(sequence_error <= tolerance)).amax(0) + 1


@torch.no_grad()
def truncation_profile(
    recurrent: nn.Module, inputs: Any, max_window: int = 32, *, input_bound: Any = None, name: str = ""
) -> TruncationProfile:
    """Compare a recurrent layer with its windowed forms of every length on given inputs, from zero states.

    All windows come from one pass: after ``k`` sweeps ``S <- phi(shift(S), x)`` over all positions, ``S`` is the
    trajectory of the form with window ``k``. Dropout between layers is off.

    Args:
        recurrent: A recurrent module (``nn.RNN``, ``nn.LSTM``, ``nn.GRU``, a cell, or a registered module), windowed
            or not.
        inputs: The inputs as the module takes them: batched or not, or a PackedSequence; for a cell, shape
            ``(time, batch, features)``.
        max_window: Longest window, at least 1. Windows longer than the longest sequence have no error: they are left
            out.
        input_bound: What is known about the inputs, for the certified bound, see :func:`lightning_stable.certify`;
            None takes the range of ``inputs`` where a cell needs one.
        name: Name of the layer, for the title of the plot.

    Raises:
        TypeError: If ``max_window`` is no integer or ``recurrent`` no module.
        ValueError: If ``max_window`` is not positive, the module is not recurrent, or inputs do not fit it or are none
            at all. Weights and inputs must be finite real numbers.
    """
    max_window = checks.integer("max_window", max_window)
    checks.label("name", name)
    checks.module("recurrent", recurrent)
    layout = Layout.of(recurrent, checked_inputs(inputs), "inputs")
    max_window = min(max_window, layout.time)
    errors, by_sequence, size = _measured(recurrent, layout, max_window)
    mean = torch.stack([error[layout.valid].mean() for error in errors]).double().cpu()
    sources = _sources(recurrent, layout, input_bound)
    bound, guarantee = _bound(recurrent, sources, max_window)
    floor = _ROUNDING.get(errors[0].dtype, 1e-2) * size
    return TruncationProfile(
        windows=torch.arange(1, max_window + 1),
        max_error=by_sequence.amax(1),
        mean_error=mean,
        sequence_error=by_sequence,
        rate=_fitted_rate(mean, floor),
        bound=bound,
        tube=tube_profile(recurrences_of(recurrent), sources, layout, max_window).cpu(),
        guarantee=guarantee,
        output_norm=size,
        name=name,
    )


@torch.no_grad()
def sequence_errors(recurrent: nn.Module, inputs: Any, max_window: int) -> tuple[Tensor, float]:
    """Return ``sequence_error`` and ``output_norm`` of :func:`truncation_profile` alone, which is much faster.

    Args:
        recurrent: As for :func:`truncation_profile`.
        inputs: As for :func:`truncation_profile`.
        max_window: Longest window; one as long as the longest sequence is exact, and longer ones are left out.
    """
    layout = Layout.of(recurrent, checked_inputs(inputs), "inputs")
    _, by_sequence, size = _measured(recurrent, layout, min(max_window, layout.time))
    return by_sequence, size


def _measured(recurrent: nn.Module, layout: Layout, max_window: int) -> tuple[list[Tensor], Tensor, float]:
    """The errors at every position by window, the largest of every sequence, and the mean norm of the outputs."""
    stacks = stacks_of(recurrent)
    layout.check(recurrent, None, "inputs")
    check_run(recurrences_of(recurrent), layout.inputs)
    with _at_rest(recurrent):
        whole = _whole(recurrent, stacks, layout)
        errors = [
            torch.linalg.vector_norm(outputs - whole, dim=-1) for outputs in _windowed(stacks, layout, max_window)
        ]
    valid = layout.valid
    # NaN stays: an error that overflowed is no small one.
    by_sequence = torch.stack([error.masked_fill(~valid, 0).amax(0) for error in errors]).double().cpu()
    if layout.packed is not None and layout.packed.unsorted_indices is not None:
        by_sequence = by_sequence[:, layout.packed.unsorted_indices.cpu()]
    return errors, by_sequence, torch.linalg.vector_norm(whole[valid], dim=-1).mean().item()


@contextmanager
def _at_rest(recurrent: nn.Module) -> Iterator[None]:
    """Evaluate the module inside the block as it is stored, without dropout."""
    with evaluating(recurrent), recurrent.as_stored() if isinstance(recurrent, Windowed) else nullcontext():
        yield


def _whole(recurrent: nn.Module, stacks: tuple[Stack, ...], layout: Layout) -> Tensor:
    """Outputs of the whole recurrence, shape ``(time, batch, features)``."""
    if not recurrences_of(recurrent)[0].takes_sequences:
        return stacks[0].output(head_rows(stacks[0], layout.inputs, stacks[0].zeros(layout.inputs[:1])))
    if layout.packed is not None:
        packed, _ = recurrent(PackedSequence(layout.packed.data, layout.packed.batch_sizes))
        padded: Tensor = pad_packed_sequence(packed)[0]
        return padded
    batch_first = bool(getattr(recurrent, "batch_first", False))
    outputs: Tensor = recurrent(layout.inputs.transpose(0, 1) if batch_first else layout.inputs)[0]
    return outputs.transpose(0, 1) if batch_first else outputs


def _windowed(stacks: tuple[Stack, ...], layout: Layout, max_window: int) -> Iterator[Tensor]:
    """Outputs of the windowed forms 1, 2, ..., ``max_window``, shape ``(time, batch, features)`` each."""
    if len(stacks) == 1:
        for states in _sweeps(stacks[0], layout.inputs, max_window):
            yield stacks[0].output(states)
    elif len(stacks[0].layers) == 1:
        turned = reversal(layout.inputs, layout.lengths)
        pairs = zip(
            _sweeps(stacks[0], layout.inputs, max_window),
            _sweeps(stacks[1], reorder(layout.inputs, turned), max_window),
            strict=True,
        )
        for forward, backward in pairs:
            yield torch.cat((stacks[0].output(forward), reorder(stacks[1].output(backward), turned)), dim=-1)
    else:  # an upper layer sees both ends of its window, so every window is a run of its own
        both = (stacks[0], stacks[1])
        starts = (both[0].zeros(layout.inputs[:1]), both[1].zeros(layout.inputs[:1]))
        for window in range(1, max_window + 1):
            visited = bidirectional_rows(both, layout.inputs, min(window, layout.time), starts, layout.lengths)
            yield torch.cat([stack.output(states) for stack, states in zip(both, visited, strict=True)], dim=-1)


def _sweeps(stack: Stack, inputs: Tensor, count: int) -> Iterator[States]:
    step = step_of(stack, inputs)
    states = step(0, stack.zeros(inputs))
    yield states
    for sweep in range(1, count):
        if sweep < len(inputs):  # the rows below have seen all their inputs
            after = step(sweep, take(states, slice(sweep - 1, -1)))
            states = concatenate(take(states, slice(0, sweep)), after)
        yield states


def _sources(recurrent: nn.Module, layout: Layout, input_bound: Any) -> Sources:
    recurrences = recurrences_of(recurrent)
    if input_bound is not None:
        return resolve_sources(recurrent, recurrences, input_bound)
    seen = layout.inputs[layout.valid].double()
    return {recurrences[0].module_name: Recorded(seen.amin(0), seen.amax(0), checked=False)}


def _bound(recurrent: nn.Module, sources: Sources, max_window: int) -> tuple[Tensor, str]:
    (bounds,) = window_bounds(recurrences_of(recurrent), sources)
    errors = bounds.errors(max_window).cpu()
    return errors.where(errors.isfinite(), torch.nan), bounds.guarantee


def _fitted_rate(errors: Tensor, floor: float) -> float:
    """Slope of the logarithm of the errors, over the windows whose error is more than rounding."""
    count = int((errors > floor).long().cumprod(0).sum())
    if count < 2:
        return math.nan
    windows = torch.arange(count, dtype=torch.float64)
    centred = windows - windows.mean()
    return math.exp((centred @ errors[:count].log() / (centred @ centred)).item())
