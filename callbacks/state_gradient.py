"""A callback that shows at validation how gradients and perturbations travel through recurrent states."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from typing_extensions import override

from lightning_stable import checks
from lightning_stable.callbacks._arguments import bound_inside, checked_input_bound, fitting_recurrences
from lightning_stable.callbacks._class_path import RecordsClassPath
from lightning_stable.callbacks._measuring import is_measurable
from lightning_stable.callbacks._portable import Portable
from lightning_stable.callbacks._projecting import known_inputs
from lightning_stable.copying import copied
from lightning_stable.diagnostics import StateGradients, measure_state_gradients
from lightning_stable.diagnostics.jacobians import unmeasured
from lightning_stable.diagnostics.recorded_calls import RecordedCalls, Run
from lightning_stable.precision import full_precision
from lightning_stable.recurrence import recurrences_by_module
from lightning_stable.shadow.rng import isolated
from lightning_stable.stability.inputs.sets import InputBound
from lightning_stable.tensorboard import check_folder, check_writable, draw
from lightning_stable.trainers import check_strategy


class StateGradientCallback(RecordsClassPath, Portable):
    """Measures, on the first validation batches, whether the states of each recurrent layer forget or explode.

    ``validation_step`` is run once more, with gradients, on a copy of the model that shares its parameters and logs
    nothing; see :func:`~lightning_stable.diagnostics.measure_state_gradients` for what is measured.
    A model that is not certified stable may still operate in the stable regime on its data (Miller & Hardt, *Stable
    Recurrent Models*): ``callback.reports["core"].in_stable_regime``. All of these are measurements on these batches,
    **not bounds**. Nothing is done on the training path, random states and modes stay as they are.

    Logs, for every recurrent module: ``state_gradient/<module>/decay`` (fitted factor per step of the gradient of the
    loss), ``.../lyapunov`` (largest finite-time exponent of a sequence), ``.../rate_measured`` (``exp`` of it), each
    where it is finite, and to TensorBoard the figure ``state_gradient/<module>``. With several processes the first one
    speaks, for its part of the data. Windowed and bidirectional modules are skipped with a warning.

    Args:
        max_lag: Largest number of steps back.
        num_batches: Validation batches to measure, of the first data loader.
        loss: Name under which ``validation_step`` logs its loss. None takes what it returns (a scalar, or the entry
            ``"loss"``), else the first value it logs with "loss" in its name. Where there is none, growth is measured
            in random directions.
        modules: Shell-style patterns of the names of the recurrent modules; None takes all.
        input_bound: For the certified rate, see :func:`lightning_stable.certify`; None takes what a
            :class:`StabilityProjectionCallback` on the trainer knows, or the range of the inputs seen.
        every_n_epochs: Measure at the validations of every n-th epoch.
        figures: Folder for the figures as PNG files; None writes none.

    Attributes:
        reports: The latest :class:`~lightning_stable.diagnostics.StateGradients` by name of the module.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If an argument is out of range; when a run starts, if ``figures`` cannot be written to.
        MisconfigurationException: When a fit or a validation starts, if no recurrence can be measured or the strategy
            shards parameters; at validation, if ``loss`` names nothing or the model cannot be copied.

    Example:
        >>> trainer = Trainer(callbacks=[StateGradientCallback(max_lag=50)])
    """

    def __init__(
        self,
        max_lag: int = 32,
        *,
        num_batches: int = 1,
        loss: str | None = None,
        modules: str | Iterable[str] | None = None,
        input_bound: InputBound = None,
        every_n_epochs: int = 1,
        figures: str | Path | None = None,
    ) -> None:
        self.max_lag = checks.integer("max_lag", max_lag)
        self.num_batches = checks.integer("num_batches", num_batches)
        self.every_n_epochs = checks.integer("every_n_epochs", every_n_epochs)
        self.loss = None if loss is None else checks.text("loss", loss)
        self.input_bound = checked_input_bound(input_bound)
        self.modules = checks.patterns("modules", modules)
        self.figures = check_folder(figures)
        self.reports: dict[str, StateGradients] = {}
        self._parts: dict[str, list[StateGradients]] = {}
        self._warned = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse strategies that shard parameters, and a folder that no figures can be written to."""
        if stage in ("fit", "validate"):
            check_writable(self.figures)
            check_strategy(trainer, "StateGradientCallback", "whole parameters, for a copy of the model to share")
            self._parts = {}

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a model that does not fit, and warn of modules that are skipped."""
        self._check(pl_module)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do the same where a validation stands alone."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._check(pl_module)

    def _check(self, model: LightningModule) -> None:
        groups = fitting_recurrences(model, self.modules, self.input_bound)
        skipped = {name: reason for name, group in groups.items() if (reason := unmeasured(group))}
        if len(skipped) == len(groups):
            raise MisconfigurationException(
                f"StateGradientCallback needs a recurrent module with one direction and no window. Got {skipped}."
            )
        for name, reason in skipped.items():
            rank_zero_warn(f"StateGradientCallback skips {name!r}: it is {reason}.")

    @override
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Run the validation step on a copy of the model and measure the recurrent modules it called."""
        due = trainer.current_epoch % self.every_n_epochs == 0 and batch_idx < self.num_batches
        if not due or trainer.sanity_checking or dataloader_idx:
            return
        # Tensors made in inference mode, the batch and the copy included, could not be differentiated.
        with torch.inference_mode(False), torch.enable_grad(), isolated(pl_module.device):
            twin, batch = _copied(trainer, pl_module), apply_to_collection(batch, Tensor, torch.clone)
            groups = recurrences_by_module(twin, self.modules)
            measured = {name: group[0] for name, group in groups.items() if not unmeasured(group)}
            recorder = RecordedCalls(measured, results=True)
            with recorder.attached():
                loss = self._loss_of(trainer, twin, batch, batch_idx)
            for name, run in recorder.take().items():
                if not is_measurable("StateGradientCallback", name, measured[name].module, run.inputs, run.state):
                    continue
                arguments = (_of_sequence if measured[name].takes_sequences else _of_steps)(run, loss)
                bound = bound_inside(self.input_bound, name)
                bound = known_inputs(trainer, name) if bound is None else bound
                with full_precision(pl_module.device):
                    report = measure_state_gradients(
                        measured[name].module, max_lag=self.max_lag, input_bound=bound, name=name, **arguments
                    )
                self._parts.setdefault(name, []).append(report)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the measurements of all batches, log the figures and draw them."""
        parts, self._parts = self._parts, {}
        for name, reports in parts.items():
            report = self.reports[name] = StateGradients.joined(reports)
            metrics = {"decay": report.decay, "lyapunov": report.lyapunov, "rate_measured": report.rate}
            finite = {f"state_gradient/{name}/{key}": v for key, v in metrics.items() if math.isfinite(v)}
            pl_module.log_dict(finite, rank_zero_only=True)
            draw(trainer, "state_gradient", name, report.plot, self.figures)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Forget the measurements of a validation that was cut off."""
        self._parts = {}

    @override
    def _leave_run(self) -> None:
        self.reports, self._parts = {}, {}  # they have a value for every position of every batch

    def _loss_of(self, trainer: Trainer, twin: LightningModule, batch: Any, batch_idx: int) -> Tensor | None:
        logged: dict[str, Any] = {}

        def log(name: str, value: Any, *_: Any, **__: Any) -> None:
            logged.setdefault(name, value)

        twin.log = log  # type: ignore[method-assign]
        # Lightning passes the index to steps that take it, whatever they call it.
        takes_index = is_param_in_hook_signature(twin.validation_step, "batch_idx", min_args=2)
        # In evaluation mode cuDNN's recurrent kernels have no backward pass.
        with trainer.precision_plugin.val_step_context(), torch.backends.cudnn.flags(enabled=False):
            returned = twin.validation_step(*((batch, batch_idx) if takes_index else (batch,)))
        if self.loss is not None:
            if not _is_loss(logged.get(self.loss)):
                raise MisconfigurationException(
                    "`loss` must name a differentiable scalar that `validation_step` logs. Got "
                    f"{self.loss!r}; of those there are {sorted(k for k, v in logged.items() if _is_loss(v))}."
                )
            chosen: Tensor = logged[self.loss]
            return chosen
        candidates = [returned.get("loss") if isinstance(returned, Mapping) else returned]
        candidates += [value for name, value in logged.items() if "loss" in name.lower()]
        loss = next((value for value in candidates if _is_loss(value)), None)
        if loss is None and not self._warned:
            self._warned = True
            rank_zero_warn(
                "StateGradientCallback found no differentiable loss in `validation_step` and measures growth in random "
                "directions: return the loss, or log it and pass its name as `loss`."
            )
        return loss


def _copied(trainer: Trainer, model: LightningModule) -> LightningModule:
    """A copy in the same state, with the model's own parameters; hooks of this package do nothing in it."""
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    try:
        twin = copied(model, memo)
    except Exception as error:
        raise MisconfigurationException(
            f"StateGradientCallback runs `validation_step` on a copy and could not deep-copy {type(model).__name__}. "
            f"Got {type(error).__name__}: {error}"
        ) from error
    twin.trainer = trainer
    return twin


def _of_sequence(run: Run, loss: Tensor | None) -> dict[str, Any]:
    """What :func:`measure_state_gradients` is told about a run of a module that takes sequences."""
    ((output, final),) = run.returned
    parts = final if isinstance(final, tuple) else (final,)
    values, *last = _gradients(loss, [output.data if isinstance(output, PackedSequence) else output, *parts])
    state_gradients: Any = None
    if any(gradient is not None for gradient in last):
        filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parts, last, strict=True)]
        state_gradients = tuple(filled) if isinstance(final, tuple) else filled[0]
    return {"inputs": run.inputs, "state": run.state, "output_gradients": values, "state_gradients": state_gradients}


def _of_steps(run: Run, loss: Tensor | None) -> dict[str, Any]:
    """What :func:`measure_state_gradients` is told about the steps of a cell."""
    outputs = [state[0] if isinstance(state, tuple) else state for state in run.returned]
    gradients = _gradients(loss, outputs)
    values = [torch.zeros_like(out) if grad is None else grad for out, grad in zip(outputs, gradients, strict=True)]
    reached = any(gradient is not None for gradient in gradients)
    return {"inputs": run.inputs, "state": run.state, "output_gradients": torch.stack(values) if reached else None}


def _gradients(loss: Tensor | None, outputs: list[Tensor]) -> list[Tensor | None]:
    """None for an output that the loss does not depend on."""
    wanted = [output for output in outputs if output.requires_grad]
    if loss is None or not wanted:
        return [None] * len(outputs)
    gradients = iter(torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True))
    return [next(gradients) if output.requires_grad else None for output in outputs]


def _is_loss(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1 and value.requires_grad
