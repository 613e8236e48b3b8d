"""Project recurrent weights into the stable set after every optimizer step, and certify the rate."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_stable import checks
from lightning_stable.callbacks._interruptible import Interruptible
from lightning_stable.callbacks._projecting import ModelProjectorCallback
from lightning_stable.callbacks._projection_logs import log_after_step, metrics_of, show_spectra, show_target
from lightning_stable.hooks import Hook, after_steps
from lightning_stable.stability import Constraint, StabilityReport
from lightning_stable.stability.inputs.sets import InputBound
from lightning_stable.tensorboard import Entries, begin_table, boards_of, end_table, flush, projection_charts
from lightning_stable.tensorboard.board import last_step
from lightning_stable.trainers import check_strategy, logging_interval

# A projection that moves weights by less than this found no step that was made.
_SKIPPED = 1e-4


class StabilityProjectionCallback(ModelProjectorCallback, Interruptible):
    r"""Keeps every recurrence of a model contracting: ``||phi(h, x) - phi(h', x)|| <= rate ||h - h'||``.

    Right after each real optimizer step the recurrent weights are moved, in place and on their device, to the nearest
    point (by the chosen method) of the stable set: projected gradient descent as in Miller & Hardt, *Stable Recurrent
    Models*. Weights are projected once before training as well, and certified in float64 before training, at every
    validation, for every checkpoint and at the end. The certificate is in the callback's state in the checkpoint and
    in :attr:`report`; the model's own ``state_dict`` is untouched by all this.

    Logs, every ``trainer.log_every_n_steps`` steps and at every validation:

    - ``stability/rate``, the largest rate, and ``stability/<layer>/rate``,
    - ``stability/<layer>/recurrent_norm/<gate>``, Frobenius norms, as a certified network must not be an emptied one,
    - ``stability/<layer>/recurrent_norm_kept``, the norm over the norm before the first projection,
    - ``stability/projection_distance``, how far the last projection moved the weights,
    - ``stability/input_excess``, how far inputs left their set, entrywise.

    A TensorBoardLogger gets the page "Stability" of its custom scalars and, at validations, histograms:
    ``stability/<layer>/singular_values`` of the recurrent weights of an RNN and ``stability/<layer>/unit_rates``,
    whose largest is the rate, of a gated cell.

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
        every_n_steps: Project after every n-th optimizer step. Between projections the weights may leave the set.
            Validations and checkpoints get projected ones then, and training goes on from its own: looking at a run
            does not change it. The end of a fit projects for good.
        norm: Certificate, see :func:`lightning_stable.certify`; None takes the cell's default.
        method: Projection, see :func:`lightning_stable.project_`; None takes the cell's default.
        gate_bound: Largest value of LSTM's forget or GRU's update gate; None takes the cell's default.
        state_bound: As in :func:`lightning_stable.certify`; every start state of a run is compared with it.
        histograms_every_n_epochs: Write the histograms at the validations of every n-th epoch; None writes none.

    Attributes:
        report: The latest :class:`~lightning_stable.stability.StabilityReport`; None before the first one, and after
            a run that failed.
        num_projections: Projections made after optimizer steps of the latest fit, resumed ones included.
        refinements: Validations of the latest fit, resumed ones included: the norms ``full`` and ``tight`` are fitted
            to the weights there.
        followers: Second models beside the trainer's, which are projected with it between steps, until the fit ends.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If an argument is out of range; when training starts, if an argument does not fit the cells that
            it is for; during training, if weights become NaN or infinite.
        MisconfigurationException: When training starts, if the model has no recurrence, no module that ``modules``
            matches or parametrized recurrent weights, or the strategy is one that flattens parameters (FSDP1,
            DeepSpeed); ModelParallelStrategy (FSDP2) is not.

    Example:
        >>> trainer = Trainer(callbacks=[StabilityProjectionCallback(rate=0.99)])
    """

    def __init__(
        self,
        rate: float = 0.99,
        *,
        modules: str | Iterable[str] | None = None,
        input_bound: InputBound = None,
        every_n_steps: int = 1,
        norm: str | None = None,
        method: str | None = None,
        gate_bound: float | None = None,
        state_bound: float = 1.0,
        histograms_every_n_epochs: int | None = 1,
    ) -> None:
        super().__init__(Constraint(rate, norm, method, gate_bound, state_bound), modules, input_bound)
        self.every_n_steps = checks.integer("every_n_steps", every_n_steps)
        if histograms_every_n_epochs is not None:
            histograms_every_n_epochs = checks.integer("histograms_every_n_epochs", histograms_every_n_epochs)
        self.histograms_every_n_epochs = histograms_every_n_epochs
        self._log_interval = 0  # the trainer's, from the start of a fit
        self._start_counting()

    @property
    @override
    def state_key(self) -> str:
        """Name with the patterns, as several of these can project one model."""
        return f"{type(self).__qualname__}(modules={self.modules})"

    # ------------------------------------------------------------ start and end
    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse strategies that flatten parameters, and begin a new run."""
        if stage in ("fit", "validate"):
            check_strategy(
                trainer, "StabilityProjectionCallback", "recurrent matrices that can be gathered", sharded=True
            )
        if stage == "fit":  # what a checkpoint knows is restored after this
            self._forget()
            self._start_counting()
            begin_table(trainer, pl_module)

    def _start_counting(self) -> None:
        self._steps = self.num_projections = self.refinements = 0
        self._log_due = False
        self._steps_before = self._global_step = 0  # as the present batch began
        self._versions_before: list[tuple[int, int]] = []
        self._in_batch = False
        self._has_caught_up = False  # and has warned, once
        # Of the last measured projection, and by layer before the first one; there is none yet.
        self._distance: Tensor | None = None
        self._norms_before: dict[str, float] = {}

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Project and certify the model before its first step."""
        projector = self._watch(trainer, pl_module, training=True)
        self._log_interval = logging_interval(trainer)
        self._norms_before = self._norms_before or projector.recurrent_norms()
        report = self._settle()
        projector.refine(missing_only=True)
        for board in boards_of(trainer):
            board.show(projection_charts(layer.name for layer in report.layers if self._norms_before.get(layer.name)))

    @override
    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hold signals back."""
        self._hold_signals(trainer)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow the optimizers' steps and checkpoints of the weights only."""
        hooks = (after_steps(optimizer, self._after_step) for optimizer in trainer.optimizers)
        self._hooks = [hook for hook in hooks if hook is not None]  # without one, the end of the batch catches up
        if trainer.world_size == 1:
            # A checkpoint of the weights only asks no callback for its state. With several processes this cannot be
            # done: the user may read the weights on one of them.
            # torch 2.3 has the hook under its private name alone.
            name = "register_state_dict_post_hook"
            register = getattr(pl_module, name, None) or pl_module._register_state_dict_hook
            self._hooks.append(register(Hook(self._after_state_dict)))
        self._attached.restore(self._unprojected)
        self._unprojected = {}
        self._begin_training(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Certify and log projected weights, for callbacks that monitor the rate without a validation."""
        with self._settled():
            metrics = self._metrics(self._certify())
        pl_module.log_dict(metrics, logger=False, sync_dist=True, reduce_fx="max")
        self._let_signals_pass()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Project and certify the final weights."""
        self._settle()
        if unseen := self._attached.unseen_inputs():
            rank_zero_warn(
                f"The recurrences {unseen} were not projected: no inputs reached them through the forward of their "
                "modules. Pass `input_bound`, or call the modules instead of their functions."
            )
        end_table(trainer, pl_module)
        self._let_signals_pass()
        self._end_training()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop watching the model: Lightning runs no teardown after an exception."""
        # Other processes may be alive: no collective operation here.
        self.report = None
        self._look_away()
        if self._hooks:
            self._unprojected = self._attached.weights()
        self._unwatch()
        self._end_training()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop watching the model."""
        self._unwatch()
        self._end_training()
        flush(trainer)

    @property
    def steps(self) -> int:
        """Optimizer steps seen in the latest fit, resumed ones included."""
        return self._steps

    # ------------------------------------------------------- after every step
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Project after a step that an optimizer really made, also under manual optimization: torch's own hook."""
        if self._attached.has_shards and not self._in_batch:
            return  # torch makes a step of size 0 to learn what state an optimizer without any has, for a checkpoint
        self._steps += 1
        self._log_due |= self._log_interval > 0 and self._steps % self._log_interval == 0
        if self._steps % self.every_n_steps == 0:
            # The last projection before the values are logged is measured.
            measure = self._log_interval > 0 and -self._steps % self._log_interval < self.every_n_steps
            distance = self._attached.project(strict=False, measure=measure)
            self._distance = distance if measure else self._distance
            self.num_projections += 1
        else:
            self._attached.follow_sources()

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Watch the inputs, the start states and the weights of this batch."""
        monitor = self._attached.monitor
        monitor.recording = monitor.checking = True
        # Products of inputs and weights tell more, and cost as much as they do: only where a report follows.
        interval = max(1, self._log_interval)
        monitor.exact = self._steps == 0 or self._steps % interval == interval - 1
        self._steps_before, self._global_step, self._in_batch = self._steps, trainer.global_step, True
        self._versions_before = self._attached.versions()
        self._begin_batch(trainer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Project what was moved past torch's hooks; certify and log where a log line is due."""
        self._compare_processes(trainer, batch_idx)
        self._attached.expects_forwards = True
        self._catch_up(trainer)
        self._in_batch = False
        if self._log_due:
            self._log_due = False
            log_after_step(trainer, pl_module, self, self._metrics(self._certify(leading_only=True)))
        self._end_batch(trainer, pl_module)

    def _catch_up(self, trainer: Trainer) -> None:
        """Project what an optimizer moved without calling torch's step hooks, or after it called them."""
        projector, counted = self._attached, self._steps > self._steps_before
        if counted and self._steps % self.every_n_steps == 0:
            if projector.has_moved:
                self._warn_of_hooks(trainer)
                projector.project(strict=False)
            elif not all(isinstance(optimizer, Optimizer) for optimizer in trainer.optimizers):
                projector.project(strict=False)  # a wrapper may have written past torch's count of writes
        elif not counted and projector.has_moved and projector.versions() != self._versions_before:
            self._warn_of_hooks(trainer)
            self._after_step(trainer.optimizers[0], None, None)
        elif not counted and trainer.global_step > self._global_step:
            # A step that a gradient scaler skipped, or one that wrote past torch's count of writes.
            distance = projector.project(strict=False, measure=True)
            if distance is not None and distance.device.type == "cpu" and distance > _SKIPPED:
                self._warn_of_hooks(trainer)
                self._steps += 1
                self.num_projections += 1

    def _warn_of_hooks(self, trainer: Trainer) -> None:
        if not self._has_caught_up:
            self._has_caught_up = True
            names = ", ".join(sorted({type(optimizer).__name__ for optimizer in trainer.optimizers}))
            rank_zero_warn(
                f"Optimizer {names} moved recurrent weights without calling torch's step hooks, or after it did. They "
                "are projected at the end of every batch instead: forwards between several steps of one batch use "
                "weights that are not projected. Let its `step` call the hooks, as torch.optim.Optimizer does."
            )

    # ----------------------------------------------- validation and checkpoints
    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Project the weights for a validation of a fit; watch the model for one that stands alone."""
        if trainer.state.fn == TrainerFn.FITTING:
            # A resumed run makes no sanity check, and should go on alike.
            refining = self._attached.refines and not trainer.sanity_checking
            self.refinements += refining
            self._look()
            if refining:
                self._attached.refine()
            self._attached.monitor.recording = False
            self._attached.monitor.checking = True
        else:  # trainer.validate: certify, never change weights
            self._watch(trainer, pl_module, training=False)

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Project the weights once more: they may be averages by now."""
        # Lightning's WeightAveraging has put averaged weights in place by now, if it stands before this callback.
        # An average of stable weights need not be stable, and it is what is evaluated and saved.
        if trainer.state.fn == TrainerFn.FITTING:
            self._attached.project(strict=True)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Certify and log the validated weights."""
        metrics = self._metrics(self._certify())
        if not trainer.sanity_checking:
            pl_module.log_dict(metrics, sync_dist=True, reduce_fx="max")
            show_target(trainer, self, last_step(trainer))
            show_spectra(trainer, self._attached, self.histograms_every_n_epochs)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go back to the weights that are trained."""
        self._look_away()

    @override
    def state_dict(self) -> dict[str, Any]:
        """Certify the weights that are saved, and return the certificate and what a resumed run needs."""
        if not self._hooks:
            return self._state()
        unprojected = self._trained if self._looking is not None else self._attached.weights()
        with self._attached.projected(), self._attached.premises_kept():
            report = self._certify()
            moved = self._attached.differing(unprojected)
            return self._state() | {"report": report.to_dict(), "unprojected": moved}

    def _state(self) -> dict[str, Any]:
        return {
            "report": None if self.report is None else self.report.to_dict(),
            "constraint": asdict(self.constraint),
            "steps": self._steps,
            "num_projections": self.num_projections,
            "refinements": self.refinements,
            "input_ranges": {name: seen.cpu() for name, seen in self.input_ranges.items()},
            "projector": self._projector_state if self._projector is None else self._projector.state_dict(),
            "norms_before": dict(self._norms_before),
            "left_premises": self._left if self._projector is None else self._projector.left_premises,
            "unprojected": dict(self._unprojected),
        }

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save copies of the weights that are certified in place of those that are trained."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if not self._hooks:
            return
        with self._attached.projected():
            if self._attached.has_shards:
                # What the checkpoint holds may be copies made before, and the values here are those of the moment.
                whole = trainer.strategy.lightning_module_state_dict()
                checkpoint["state_dict"] = {name: value.clone() for name, value in whole.items()}
            else:
                self._attached.copy_out(checkpoint["state_dict"])

    def _after_state_dict(self, module: Any, state: dict[str, Any], *_: Any) -> None:
        """Give out copies that are stable, as for a checkpoint of the weights only, where some were not projected."""
        if self._steps % self.every_n_steps:
            with self._attached.projected():
                self._attached.copy_out(state)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        self._steps = state_dict["steps"]
        self.num_projections = state_dict["num_projections"]
        self.refinements = state_dict.get("refinements", 0)  # checkpoints of 0.1.0 know none
        self._input_ranges = dict(state_dict["input_ranges"])
        self._norms_before = dict(state_dict["norms_before"])
        self._projector_state = state_dict["projector"]
        # Checkpoints of 0.1.0 know neither.
        self._left = state_dict.get("left_premises", {})
        self._unprojected = state_dict.get("unprojected", {})
        if self._projector is not None:  # some strategies restore after on_fit_start, the weights too
            self._projector.remember(self._input_ranges)
            self._projector.load_state_dict(self._projector_state)
            self._projector.remember_left(self._left)
            self._settle()

    def table_entries(self, trainer: Trainer) -> Entries:
        """Return the target rate and the tag of the certified one, for TensorBoard's table of runs."""
        return Entries({"rate": self.constraint.rate}, ("stability/rate",))

    @override
    def _leave_run(self) -> None:
        super()._leave_run()
        self._distance, self._versions_before = None, []
        self._forget_training()
        self._norms_before = dict(self._norms_before)

    def _metrics(self, report: StabilityReport) -> dict[str, float]:
        return metrics_of(report, self._norms_before, self._distance)
