"""Comparison of a written file with the twin."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from lightning_stable.copying import copied
from lightning_stable.export.formats import Runner
from lightning_stable.export.forms import BatchForm, StreamingForm

TOLERANCE = 1e-5
_BOUND_TOLERANCE = 1e-2
BATCH_SIZES = (1, 3, 17)


def largest_difference(answers: Iterable[tuple[Tensor, Tensor]]) -> float:
    """``max |a - b| / max(1, max |b|)``: the largest difference of two answers, the second of which is expected.

    Raises:
        ValueError: If two differ in shape, or by more than :data:`TOLERANCE`, or are not finite.
    """
    largest = 0.0
    for answer, expected in answers:
        if answer.shape != expected.shape:
            raise ValueError(
                "The exported program must agree with the truncated model. "
                f"Got shape {tuple(answer.shape)} in place of {tuple(expected.shape)}."
            )
        scale = expected.abs().amax().clamp(min=1)
        difference = ((answer - expected).abs().amax() / scale).item()
        if not difference <= TOLERANCE:
            raise ValueError(
                f"The exported program must agree with the truncated model to {TOLERANCE:g}. Got {difference:.3g}: "
                "something in the model depends on the length, or on steps other than through its recurrent layers."
            )
        largest = max(largest, difference)
    return largest


def stream(
    run: Runner, inputs: Tensor, start: tuple[Tensor, Tensor], *, batch_first: bool
) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
    """Return the answers of a streaming program, step by step, and the memory after them.

    Args:
        run: The program.
        inputs: Shape ``(batch, time, ...)`` or ``(time, batch, ...)``.
        start: ``count`` and ``recent`` before the first input.
        batch_first: Whether the batch is the first dimension of the inputs.
    """
    answers, (count, recent) = [], start
    for step in inputs.unbind(int(batch_first)):
        answer, count, recent, *_ = run((step.contiguous(), count, recent))
        answers.append(answer)
    return answers, (count, recent)


@torch.no_grad()
def compare_batches(run: Runner, reference: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> float:
    """Return the :func:`largest_difference` of a program of whole sequences and a model."""
    return largest_difference((run((inputs,))[0], reference(inputs)) for inputs in batches)


@torch.no_grad()
def compare_streams(
    run: Runner,
    reference: Callable[[Tensor], Tensor],
    batches: Iterable[Tensor],
    start: Callable[[int], tuple[Tensor, Tensor]],
    *,
    batch_first: bool,
    every_step: bool,
) -> float:
    """Return the :func:`largest_difference` of a streaming program and a model that reads the sequence whole.

    Args:
        run: The program.
        reference: The model.
        batches: Inputs of both.
        start: The memory before the first input, by the number of streams.
        batch_first: As in :func:`stream`.
        every_step: Whether the model answers at every step, with the dimension of time at the same place; if not, it
            is asked after each step.
    """
    time_dim = int(batch_first)

    def pairs() -> Iterable[tuple[Tensor, Tensor]]:
        for inputs in batches:
            answers, _ = stream(run, inputs, start(inputs.shape[1 - time_dim]), batch_first=batch_first)
            if every_step:
                yield torch.stack(answers, time_dim), reference(inputs)
            else:
                for step, answer in enumerate(answers):
                    yield answer, reference(inputs.narrow(time_dim, 0, step + 1))

    return largest_difference(pairs())


@torch.no_grad()
def check_bounds(
    form: BatchForm | StreamingForm, batches: Iterable[Tensor], *, batch_first: bool, run: Runner | None = None
) -> None:
    """Check the output ``bound`` of a form or of a program made from it.

    Args:
        form: The form.
        batches: Sequences. A stream is checked at its first steps.
        batch_first: As in :func:`stream`.
        run: The program; None checks the form alone.

    Raises:
        ValueError: If there is no bound for every step of the inputs, or one is not finite, or less than that of the
            form in float64, or not near that of the form.
    """
    exact = copied(form).to(torch.float64)
    for inputs in batches:
        if isinstance(form, StreamingForm):
            assert isinstance(exact, StreamingForm)
            step = inputs.select(int(batch_first), 0)
            given: tuple[Tensor, ...] = (step, *form.start(len(step)))
            wide: tuple[Tensor, ...] = (_wide(step), *exact.start(len(step)))
            shape = inputs.shape[1 - int(batch_first) : 2 - int(batch_first)]
        else:
            given, wide, shape = (inputs,), (_wide(inputs),), inputs.shape[:2]
        expected, least = form(*given)[-1], exact(*wide)[-1]
        bound = expected if run is None else run(given)[-1]
        if bound.shape != shape:
            raise ValueError(
                "`bound` needs a model that gives its recurrent module the steps of its inputs one by one. "
                f"Got bounds of shape {tuple(bound.shape)} for inputs of {tuple(inputs.shape)}."
            )
        if not ((bound >= least) & (bound <= (1 + _BOUND_TOLERANCE) * expected)).all():
            raise ValueError(
                "The bounds of an exported program must be finite, at least those in float64 and near those of the "
                f"form. Got {bound.min():.3g} to {bound.max():.3g} for {least.min():.3g} to {expected.max():.3g}."
            )


def _wide(inputs: Tensor) -> Tensor:
    return inputs.double() if inputs.is_floating_point() else inputs
