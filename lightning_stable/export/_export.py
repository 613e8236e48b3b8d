"""Write the ``window`` twin of a model to a file that needs neither this package nor the class of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.utils.rnn import PackedSequence

from lightning_stable import checks
from lightning_stable.copying import copied
from lightning_stable.export.bounds import bounded
from lightning_stable.export.examples import example_for, random_batch
from lightning_stable.export.formats import FORMATS, Format, Runner, checked_path, runner_of
from lightning_stable.export.forms import BatchForm, StreamingForm, first_tensor
from lightning_stable.export.metadata import Metadata
from lightning_stable.export.trace import describe, trace
from lightning_stable.export.verify import BATCH_SIZES, check_bounds, compare_batches, compare_streams
from lightning_stable.files import replacing
from lightning_stable.hooks import Hook
from lightning_stable.quiet import silent
from lightning_stable.recurrence import recurrences_by_module
from lightning_stable.recurrence.enclosed import Premises
from lightning_stable.recurrence.forms import original_class
from lightning_stable.recurrence.registry import is_recurrent, recurrent_modules
from lightning_stable.stability import StabilityReport, certify
from lightning_stable.truncation import Windowed, truncate

_INPUTS, _MEMORY = ("input", "count", "recent"), ("next_count", "next_recent")


@dataclass(frozen=True)
class Exported:
    """What :func:`export` wrote.

    Attributes:
        path: The file.
        metadata: What the file says about itself.
        difference: Largest difference of an entry of its answers from the truncated model's, relative to the largest
            entry if that is above 1.
        recurrent_difference: Largest difference of the answers of the truncated and of the recurrent model, measured
            on a random batch: what the window leaves out.
        output_norms: By the name of the recurrent module: the mean Euclidean norm of its outputs on that batch. A
            certified error above it says nothing.
    """

    path: Path
    metadata: Metadata
    difference: float
    recurrent_difference: float
    output_norms: dict[str, float]


@torch.no_grad()
def export(
    model: nn.Module,
    window: int | None,
    path: str | Path,
    *,
    format: str = "onnx",
    streaming: bool = False,
    example: Tensor | None = None,
    batch_first: bool | None = None,
    input_bound: Any = None,
    report: StabilityReport | None = None,
    bound: bool | None = None,
) -> Exported:
    """Write the ``window`` twin of a model as an ONNX file or a torch.export program, after checking its answers.

    The program takes one tensor of whole, equally long sequences, as ``model.forward`` takes it first, and returns the
    model's answer in evaluation mode (the first one, if there are several, such as a state). Batches have any size and
    sequences any length, unless the model itself is made for one length, that of the example. With ``streaming`` the
    program takes one step and a memory instead, see :class:`~lightning_stable.export.StreamingForm`.

    With ``bound`` the last output of the program is a bound beside every output. At that step the output of the
    recurrent module, as the program computes it, and that of the recurrence from *any* admissible state differ by at
    most that much in the Euclidean norm, whatever came before the window, see
    :func:`~lightning_stable.certify_windows`. The recurrence may be exact, or rounded as the program is: rounding is
    part of the bound.

    The file is run on random batches of 1, 3 and 17 sequences and compared with :func:`~lightning_stable.truncate`'s
    twin to 1e-5 before it takes its name; if they differ, no file is left.

    Args:
        model: A recurrent layer or any module that holds some, windowed or not, compiled or not. It is not changed.
        window: Inputs a recurrent layer sees; None takes the window of a model that is windowed.
        path: The file, ``.onnx`` or ``.pt2``; it is replaced if it exists. Weights beyond 2 GB lie beside an ONNX file.
        format: ``"onnx"`` or ``"torch-export"``.
        streaming: Whether to export one step of a stream.
        example: A batch of inputs; steps are drawn from it at random. None makes one for recurrent layers and for
            :mod:`lightning_stable.models`.
        batch_first: Whether inputs are ``(batch, time, ...)``; None asks a recurrent layer, and is True otherwise.
        input_bound: What is known about the inputs, for the certificate, see :func:`~lightning_stable.certify`.
        report: A certificate of the model, where there is one already.
        bound: Whether the program returns a bound beside every output. None does so where the model is certified as
            stable and has one recurrent module, which it calls once.

    Returns:
        The path, the metadata and the differences between the answers.

    Raises:
        TypeError: If ``model`` is no module.
        ValueError: If an argument is not understood; the model has a cell, cannot be traced, or cannot stream; or the
            file does not agree with the truncated model.
        ModuleNotFoundError: If a package for ONNX is missing; the extra ``export`` brings them.
    """
    checks.module("model", model)
    path = checked_path(path, format)
    window = None if window is None else checks.integer("window", window)
    checks.boolean("streaming", streaming)
    if batch_first is not None:
        checks.boolean("batch_first", batch_first)
    if bound is not None:
        checks.boolean("bound", bound)
    if report is not None and not isinstance(report, StabilityReport):
        raise TypeError(f"`report` must be a StabilityReport, or None. Got {checks.shown(report)}.")
    FORMATS[format].check()
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    window = _window_of(model) if window is None else window
    batch_first = _batch_first_of(model) if batch_first is None else batch_first
    recurrent = recurrent_form(model)
    reference = _answers_of(truncate(recurrent, window, share=True).eval())
    example = _checked_example(example_for(model) if example is None else example, recurrent)
    generator = torch.Generator().manual_seed(0)
    draw = partial(random_batch, example, batch_first=batch_first, generator=generator)
    one = example[:1] if batch_first else example[:, :1]
    _check_takes_tensors(recurrent, one)
    reference(one)  # before the long wait for a trace

    report = certify(recurrent, input_bound=input_bound) if report is None else report
    every_step = streaming and _has_time(reference, draw, (window + 2, window + 3), int(batch_first))

    def make(premises: Sequence[Premises] | None) -> BatchForm | StreamingForm:
        if streaming:
            return StreamingForm(recurrent, window, premises, batch_first=batch_first, every_step=every_step)
        return BatchForm(recurrent, window, premises, batch_first=batch_first)

    form, bounds = make(None), None
    if bound or (bound is None and report.is_stable):
        try:
            bounds = bounded(recurrent, input_bound)
            form = make(bounds.premises)
            check_bounds(form, [draw(2, example.shape[int(batch_first)])], batch_first=batch_first)
        except (RuntimeError, TypeError, ValueError):  # also what a model's own code says of float64
            if bound:
                raise
            form, bounds = make(None), None
    program, axes, only = trace(form, draw, window + 2, example.shape[int(batch_first)], batch_first=batch_first)
    lengths = (window + 3, 1, 2 * window + 2) if only is None else (only,) * len(BATCH_SIZES)
    batches = [draw(batch, length) for batch, length in zip(BATCH_SIZES, lengths, strict=True)]
    compare = partial(_compare, form, reference, batches)
    compare(runner_of(program))  # before the long wait for a file

    names = ("output", *(_MEMORY if streaming else ()), *(() if bounds is None else ("bound",)))
    inputs, outputs = describe(program, axes, (_INPUTS, names))
    metadata = Metadata.of(
        report,
        window,
        bound=None if bounds is None else bounds.metadata,
        model=original_class(model).__name__,
        form="streaming" if streaming else "batch",
        inputs=inputs,
        outputs=outputs,
    )
    difference = _write(program, path, metadata, FORMATS[format], compare)
    answer, norms = _answer_and_norms(recurrent, batches[-1])
    return Exported(path, metadata, difference, (reference(batches[-1]) - answer).abs().amax().item(), norms)


def recurrent_form(model: nn.Module) -> nn.Module:
    """Return a copy of a model as the recurrent one: on the CPU, in evaluation mode, of at least float32."""
    recurrent = copied(model).cpu().eval()
    for recurrence, *_ in recurrences_by_module(recurrent).values():
        recurrence.module.__class__ = original_class(recurrence.module)
    return recurrent.to(torch.promote_types(next(recurrent.parameters()).dtype, torch.float32))


def _answer_and_norms(model: nn.Module, inputs: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Return the answer of a model, and the mean norm of the outputs of its recurrent modules by their names."""
    norms: dict[str, float] = {}

    def note(name: str, module: nn.Module, args: tuple[Any, ...], outputs: Any) -> None:
        norms[name] = first_tensor(outputs).norm(dim=-1).mean().item()

    hooks = [
        module.register_forward_hook(Hook(partial(note, name))) for name, module in recurrent_modules(model).items()
    ]
    answer = first_tensor(model(inputs))
    for hook in hooks:
        hook.remove()
    return answer, norms


def _check_takes_tensors(model: nn.Module, inputs: Tensor) -> None:
    """Refuse a model that packs its sequences, in words: a trace only says that lengths depend on data."""
    packed: set[str] = set()

    def note(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(isinstance(value, PackedSequence) for value in (*args, *kwargs.values())):
            packed.add(name)

    hooks = [
        module.register_forward_pre_hook(Hook(partial(note, name)), with_kwargs=True)
        for name, module in recurrent_modules(model).items()
    ]
    with suppress(Exception):  # what else is wrong with the model is said where it is run next
        model(inputs)
    for hook in hooks:
        hook.remove()
    if packed:
        raise ValueError(
            "The model must call its recurrent layers on tensors: a program for sequences of one length has no packed "
            f"ones. Got a PackedSequence for {sorted(packed)}. Export a `forward` that leaves the packing out: layers "
            "that run forward give the same outputs up to the end of each sequence, whatever pads it."
        )


def _checked_example(example: Tensor, model: nn.Module) -> Tensor:
    checks.real_tensor("example", example)
    if example.dim() < 2 or 0 in example.shape:
        raise ValueError(
            f"`example` must be a batch of sequences, a tensor of at least 2 dimensions. Got {tuple(example.shape)}."
        )
    if not torch.isfinite(example).all():
        raise ValueError("`example` must be finite. Got NaN or Inf.")
    example = example.detach().cpu()
    return example.to(next(model.parameters()).dtype) if example.is_floating_point() else example


def _window_of(model: nn.Module) -> int:
    modules = [recurrence.module for (recurrence, *_) in recurrences_by_module(model).values()]
    windows = {module.window if isinstance(module, Windowed) else None for module in modules}
    window = windows.pop() if len(windows) == 1 else None
    if window is None:
        raise ValueError("`window` must be given, unless all recurrent layers have the same one. Got None.")
    return window


def _batch_first_of(model: nn.Module) -> bool:
    return bool(getattr(model, "batch_first", False)) if is_recurrent(model) else True


def _answers_of(twin: nn.Module) -> Callable[[Tensor], Tensor]:
    def reference(inputs: Tensor) -> Tensor:
        try:
            answer = twin(inputs)
        except Exception as error:  # whatever the model's own code runs into
            raise ValueError(f"The model must take inputs of shape {tuple(inputs.shape)}. Got {error}.") from error
        return first_tensor(answer)

    return reference


def _has_time(
    reference: Callable[[Tensor], Tensor], draw: Callable[[int, int], Tensor], times: Sequence[int], time_dim: int
) -> bool:
    """Whether the answer has as many steps as the inputs, whatever their length."""
    answers = ((reference(draw(2, time)).shape, time) for time in times)
    return all(len(shape) > time_dim and shape[time_dim] == time for shape, time in answers)


def _compare(
    form: BatchForm | StreamingForm, reference: Callable[[Tensor], Tensor], batches: Sequence[Tensor], run: Runner
) -> float:
    """Return how far a program of the form is from the reference; its bounds must be those of the form."""
    batch_first = bool(form.time_dim)
    if isinstance(form, BatchForm):
        difference = compare_batches(run, reference, batches)
    else:
        difference = compare_streams(
            run, reference, batches, form.start, batch_first=batch_first, every_step=form.every_step
        )
    if form.premises is not None:
        check_bounds(form, batches, batch_first=batch_first, run=run)
    return difference


def _write(
    program: ExportedProgram, path: Path, metadata: Metadata, format: Format, compare: Callable[[Runner], float]
) -> float:
    """Write a file which takes its name once it is compared; return how far it is from the reference."""
    with replacing(path) as written:
        with silent():
            format.write(program, written, metadata)
            run = format.open(written)
        return compare(run)
