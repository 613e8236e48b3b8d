"""Project recurrent weights into the stable set after every optimizer step, and certify the rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lightning_stable.stability.fast import State
from lightning_stable.stability.input_sets import InputSet
from lightning_stable.stability.monitor import Hook
from lightning_stable.stability.project import Constraint
from lightning_stable.stability.projector import Projector
from lightning_stable.stability.report import StabilityReport
from lightning_stable.tensorboard import (
    Entries,
    begin_table,
    boards_of,
    end_table,
    flush,
    rate_chart,
    writes_to_tensorboard,
)
from lightning_stable.tensorboard.board import THEORY, last_step
from lightning_stable.tensorboard.charts import TARGET

_SHARDED = (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy)
# Autocast rounds the weights again when they are used: aim far enough inside for the rounded ones to be stable too.
_AUTOCAST_MARGIN = {"bf16-mixed": 2.0**-8, "16-mixed": 2.0**-10}


class StabilityProjectionCallback(Callback):
    r"""Keeps every recurrence of a model contracting: ``||phi(h, x) - phi(h', x)|| <= rate ||h - h'||``.

    Right after each real optimizer step the recurrent weights are moved, in place and on their device, to the nearest
    point (by the chosen method) of the stable set: projected gradient descent as in Miller & Hardt, *Stable Recurrent
    Models*. Weights are projected once before training as well, and certified in float64 before training, at every
    validation, for every checkpoint and at the end. The certificate is in the callback's state in the checkpoint and
    in :attr:`report`; the model's own ``state_dict`` is untouched by all this.

    Logs, every ``trainer.log_every_n_steps`` steps and at every validation: ``stability/rate``,
    ``stability/<layer>/rate``, ``stability/<layer>/recurrent_norm/<gate>`` (Frobenius norms: a certified network must
    not be an emptied one), ``stability/<layer>/recurrent_norm_kept`` (over the norm before the first projection), and
    ``stability/projection_distance`` (how far the last step's projection moved the weights). A TensorBoardLogger gets
    the page "Stability" of its custom scalars and, at validations, histograms: ``stability/<layer>/singular_values``
    of the recurrent weights of an RNN, ``stability/<layer>/unit_rates`` (whose largest is the rate) of a gated cell.

    Callbacks that replace weights (averaging, swapping) belong before this one, so that what they leave is projected.
    With Lightning's WeightAveraging the averaged weights are projected when a validation begins: those evaluated, and
    those a ModelCheckpoint saves after it, are stable. The certificate in a checkpoint speaks of the model's own.

    Momentum and Adam's moments are left alone: they are averages of gradients, and the gradient of a projected step
    is still the gradient. A moment that keeps pushing outwards is cut back at every step.

    Args:
        rate: Largest contraction rate per step, in (0, 1).
        modules: Shell-style patterns of the names of the recurrent modules to project (``"encoder.*"``); None takes
            all.
        input_bound: What is known about the inputs of the recurrences, see :func:`lightning_stable.certify`. Plain
            RNNs need nothing. For a gated recurrence whose input set is neither given nor derived from the model, the
            range of the inputs seen in training is used, and the certificate's guarantee is ``"data"``.
        every_n_steps: Project after every n-th optimizer step. Between projections the weights may leave the set;
            validation, checkpoints and the end of an epoch project first.
        norm: Certificate, see :func:`lightning_stable.certify`; None takes the cell's default.
        method: Projection, see :func:`lightning_stable.project_`; None takes the cell's default.
        gate_bound: Largest value of LSTM's forget or GRU's update gate; None takes the cell's default.
        state_bound: Admissible states have entries of at most this size; 1 covers runs that start from zero.
        histograms_every_n_epochs: Write the histograms at the validations of every n-th epoch; None writes none.

    Attributes:
        report: The latest :class:`~lightning_stable.stability.StabilityReport`; None after a run that failed.
        num_projections: Projections made after optimizer steps of the latest fit, resumed ones included.
        followers: Called whenever the weights were projected between steps (validation, checkpoints, the end of an
            epoch), until the fit ends.

    Raises:
        ValueError: For arguments out of range; when training starts, if no recurrence is found, a pattern matches
            nothing, or recurrent weights are parametrized; during training, if weights become NaN or infinite.
        MisconfigurationException: If the strategy shards parameters (FSDP, DeepSpeed, model parallel).

    Example:
        >>> trainer = Trainer(callbacks=[StabilityProjectionCallback(rate=0.99)])
    """

    def __init__(
        self,
        rate: float = 0.99,
        *,
        modules: str | Iterable[str] | None = None,
        input_bound: Any = None,
        every_n_steps: int = 1,
        norm: str | None = None,
        method: str | None = None,
        gate_bound: float | None = None,
        state_bound: float = 1.0,
        histograms_every_n_epochs: int | None = 1,
    ) -> None:
        if not _is_count(every_n_steps):
            raise ValueError(f"`every_n_steps` must be a positive integer. Got {every_n_steps!r}.")
        if not (histograms_every_n_epochs is None or _is_count(histograms_every_n_epochs)):
            raise ValueError(
                "`histograms_every_n_epochs` must be a positive integer, or None for no histograms. "
                f"Got {histograms_every_n_epochs!r}."
            )
        self.constraint = Constraint(rate, norm, method, gate_bound, state_bound)
        self.modules = [modules] if isinstance(modules, str) else modules if modules is None else list(modules)
        if self.modules == []:
            raise ValueError("`modules` must name at least one pattern, or be None for all modules. Got [].")
        self.input_bound = input_bound
        self.every_n_steps = every_n_steps
        self.histograms_every_n_epochs = histograms_every_n_epochs
        self.report: StabilityReport | None = None
        self.num_projections = 0
        self.followers: list[Callable[[], None]] = []
        self._steps = 0
        self._projector: Projector | None = None
        self._hooks: list[RemovableHandle] = []
        self._log_interval = 0
        self._log_due = False
        self._distance: Tensor | None = None
        self._input_ranges: dict[str, Tensor] = {}
        self._projector_state: State = {}
        self._norms_before: dict[str, float] = {}
        self._warned: set[str] = set()

    @property
    @override
    def state_key(self) -> str:
        return f"{type(self).__qualname__}(modules={self.modules})"

    # ------------------------------------------------------------ start and end
    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage in ("fit", "validate") and isinstance(trainer.strategy, _SHARDED):
            raise MisconfigurationException(
                "StabilityProjectionCallback needs whole recurrent matrices on every device, which strategies that "
                f"shard parameters do not give. Got strategy {type(trainer.strategy).__name__}; use 'ddp' or 'auto'."
            )
        if stage == "fit":  # a new run; what a checkpoint knows is restored after this
            self.report, self._distance, self._log_due, self._warned = None, None, False, set()
            self._steps = self.num_projections = 0
            self._input_ranges, self._norms_before, self._projector_state = {}, {}, {}
            begin_table(trainer, pl_module)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        projector = self._watch(trainer, pl_module, training=True)
        self._log_interval = trainer.log_every_n_steps  # type: ignore[attr-defined]
        self._norms_before = self._norms_before or projector.recurrent_norms()
        report = self._settle()
        for board in boards_of(trainer):
            board.show(rate_chart(layer.name for layer in report.layers))

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hooks = [optimizer.register_step_post_hook(self._after_step) for optimizer in trainer.optimizers]
        if trainer.world_size == 1:
            # A checkpoint of the weights only asks no callback for its state. With several processes this cannot be
            # done: the user may read the weights on one of them.
            hook = Hook(lambda *_: self._settle() if self._steps % self.every_n_steps else None)
            self._hooks.append(pl_module.register_state_dict_pre_hook(hook))  # type: ignore[no-untyped-call]

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # For callbacks that monitor the rate, also without a validation set.
        pl_module.log_dict(self._metrics(self._settle()), logger=False, sync_dist=True, reduce_fx="max")

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._settle()
        if unseen := self._attached.unseen_inputs():
            rank_zero_warn(
                f"The recurrences {unseen} were not projected: no inputs reached them through the forward of their "
                "modules. Pass `input_bound`, or call the modules instead of their functions."
            )
        end_table(trainer, pl_module)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Lightning runs no teardown after an exception. Other processes may be alive: no collective operation here.
        self.report = None
        self._detach()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._detach()
        flush(trainer)

    @property
    def steps(self) -> int:
        """Optimizer steps seen in the latest fit, resumed ones included."""
        return self._steps

    @property
    def input_ranges(self) -> Mapping[str, Tensor]:
        """Maxima of ``-x`` and ``x`` of the inputs recorded so far, shape ``(2, features)``, by module name."""
        return self._input_ranges if self._projector is None else self._projector.monitor.ranges

    def known_inputs(self, module_name: str) -> InputSet | None:
        """The input set of a recurrent module, where it is given or follows from the model; None outside of runs."""
        return None if self._projector is None else self._projector.known_inputs(module_name)

    def projector_for(
        self, trainer: Trainer, module: nn.Module, *, training: bool = True, ranges: Mapping[str, Tensor] | None = None
    ) -> Projector:
        """A projector with this callback's settings for any module, such as a second model beside the trainer's.

        Args:
            trainer: Its precision and number of processes count.
            module: A module in which ``modules`` finds recurrences.
            training: Whether dropout counts as active.
            ranges: Input ranges known already, by module name.
        """
        return Projector(
            module,
            self.constraint,
            input_bound=self.input_bound,
            modules=self.modules,
            training=training,
            margin=_AUTOCAST_MARGIN.get(str(trainer.precision), 0.0),
            ranges=ranges,
            reduce_max=_reduce_max if trainer.world_size > 1 else None,
        )

    @contextmanager
    def recording_paused(self) -> Iterator[None]:
        """A block in which inputs of the model are neither recorded nor compared with their sets."""
        monitor = None if self._projector is None else self._projector.monitor
        if monitor is None:
            yield
            return
        recording, checking = monitor.recording, monitor.checking
        monitor.recording = monitor.checking = False
        try:
            yield
        finally:
            monitor.recording, monitor.checking = recording, checking

    def _watch(self, trainer: Trainer, pl_module: LightningModule, *, training: bool) -> Projector:
        self._projector = self.projector_for(trainer, pl_module, training=training, ranges=self._input_ranges)
        self._projector.load_state_dict(self._projector_state)
        self._projector.monitor.recording = not training  # only what the model trains on, see on_train_batch_start
        self._projector.attach()
        return self._projector

    def _detach(self) -> None:
        for handle in self._hooks:
            handle.remove()
        self._hooks, self.followers = [], []
        if self._projector is not None:
            self._projector.detach()
            self._input_ranges = {name: seen.clone() for name, seen in self._projector.monitor.ranges.items()}
            self._projector_state = self._projector.state_dict()
        self._projector = None

    @property
    def _attached(self) -> Projector:
        assert self._projector is not None
        return self._projector

    # ------------------------------------------------------- after every step
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Torch's step_post_hook: called after each step an optimizer really made, also under manual optimization."""
        self._steps += 1
        self._log_due |= self._log_interval > 0 and self._steps % self._log_interval == 0
        if self._steps % self.every_n_steps == 0:
            # The last projection before the values are logged is measured.
            measure = self._log_interval > 0 and -self._steps % self._log_interval < self.every_n_steps
            distance = self._attached.project(strict=False, measure=measure)
            self._distance = distance if measure else self._distance
            self.num_projections += 1

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        monitor = self._attached.monitor
        monitor.recording = True
        # Comparing inputs with their sets costs a little: only where the result is looked at.
        interval = max(1, self._log_interval)
        monitor.checking = self._steps == 0 or self._steps % interval == interval - 1

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._log_due:
            self._log_due = False
            metrics = self._metrics(self._certify(leading_only=True))
            del metrics["stability/rate"]
            together = _projections(trainer)
            if self is together[-1]:  # all have certified by now, and the model has one rate
                metrics["stability/rate"] = max(c.report.rate for c in together if c.report is not None)
            # Lightning would drop values logged outside its own rhythm, which manual optimization does not keep to.
            # Its axis are steps or, under manual optimization, batches.
            automatic = pl_module.automatic_optimization
            step = trainer.global_step - 1 if automatic else trainer.fit_loop.total_batch_idx
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=step)
            pl_module.log_dict(metrics, logger=False)
            self._show_target(trainer, step)

    # ----------------------------------------------- validation and checkpoints
    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._project_between_steps()
            self._attached.monitor.recording = False
            self._attached.monitor.checking = True
        else:  # trainer.validate: certify, never change weights
            self._watch(trainer, pl_module, training=False)

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning's WeightAveraging has put averaged weights in place by now, if it stands before this callback.
        # An average of stable weights need not be stable, and it is what is evaluated and saved.
        if trainer.state.fn == TrainerFn.FITTING:
            self._attached.project(strict=True)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = self._metrics(self._certify())
        if not trainer.sanity_checking:
            pl_module.log_dict(metrics, sync_dist=True, reduce_fx="max")
            self._show(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        # Lightning asks for this while it makes a checkpoint, holding references to the weights.
        if self._hooks:
            self._settle()
        return {
            "report": None if self.report is None else self.report.to_dict(),
            "constraint": asdict(self.constraint),
            "steps": self._steps,
            "num_projections": self.num_projections,
            "input_ranges": {name: seen.cpu() for name, seen in self.input_ranges.items()},
            "projector": self._projector_state if self._projector is None else self._projector.state_dict(),
            "norms_before": dict(self._norms_before),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps = state_dict["steps"]
        self.num_projections = state_dict["num_projections"]
        self._input_ranges = dict(state_dict["input_ranges"])
        self._norms_before = dict(state_dict["norms_before"])
        self._projector_state = state_dict.get("projector", {})
        if self._projector is not None:  # some strategies restore after on_fit_start, the weights too
            self._projector.remember(self._input_ranges)
            self._projector.load_state_dict(self._projector_state)
            self._settle()

    # ------------------------------------------------------------- TensorBoard
    def table_entries(self, trainer: Trainer) -> Entries:
        """The target rate and the certified one, for TensorBoard's table of runs."""
        return Entries({"rate": self.constraint.rate}, ("stability/rate",))

    def _show(self, trainer: Trainer) -> None:
        """The target and the histograms, at a validation."""
        self._show_target(trainer, last_step(trainer))
        interval = self.histograms_every_n_epochs
        if interval is not None and trainer.current_epoch % interval == 0 and writes_to_tensorboard(trainer):
            # In all processes: they agree on the ranges of the inputs.
            spectra = {f"stability/{name}": values for name, values in self._attached.spectra().items()}
            for board in boards_of(trainer):
                board.histograms(spectra, trainer.global_step)

    def _show_target(self, trainer: Trainer, step: int) -> None:
        """As for the rate: the largest of all callbacks, once."""
        together = _projections(trainer)
        for board in boards_of(trainer) if self is together[-1] else []:
            board.scalars({TARGET: max(callback.constraint.rate for callback in together)}, step, THEORY)

    # ------------------------------------------------------------- certificates
    def _settle(self) -> StabilityReport:
        """Project what steps since the last projection have moved, verified in float64, and certify."""
        self._project_between_steps()
        return self._certify()

    def _project_between_steps(self) -> None:
        self._attached.project(strict=True)
        for follower in self.followers:
            follower()

    def _certify(self, *, leading_only: bool = False) -> StabilityReport:
        self.report = self._attached.certify(leading_only=leading_only)
        for name, message in self._attached.uncovered_inputs().items():
            if name not in self._warned:
                self._warned.add(name)
                rank_zero_warn(message)
        return self.report

    def _metrics(self, report: StabilityReport) -> dict[str, float]:
        metrics = {"stability/rate": report.rate}
        for layer in report.layers:
            metrics[f"stability/{layer.name}/rate"] = layer.rate
            for gate, norm in layer.recurrent_norm.items():
                metrics[f"stability/{layer.name}/recurrent_norm/{gate}"] = norm
            before = self._norms_before.get(layer.name)
            if before:
                kept = math.hypot(*layer.recurrent_norm.values())
                metrics[f"stability/{layer.name}/recurrent_norm_kept"] = kept / before
        if self._distance is not None:
            metrics["stability/projection_distance"] = self._distance.item()
        return metrics


def known_inputs(trainer: Trainer, module_name: str) -> InputSet | None:
    """What the projection callbacks of a trainer know about the inputs of a recurrent module."""
    found = (callback.known_inputs(module_name) for callback in _projections(trainer))
    return next((inputs for inputs in found if inputs is not None), None)


def _projections(trainer: Trainer) -> list[StabilityProjectionCallback]:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, StabilityProjectionCallback)]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _reduce_max(tensor: Tensor) -> Tensor:
    # strategy.reduce would wait for all processes at a barrier first, and the device with them, after every step.
    torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
    return tensor
