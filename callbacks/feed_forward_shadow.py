"""Train a feed-forward twin beside a recurrent model and log how far the two drift apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn import Module
from typing_extensions import override

from lightning_stable import checks
from lightning_stable.callbacks._class_path import RecordsClassPath
from lightning_stable.callbacks._interruptible import Interruptible
from lightning_stable.callbacks._portable import Portable
from lightning_stable.callbacks._projecting import reports_of
from lightning_stable.callbacks.stability_projection import StabilityProjectionCallback
from lightning_stable.callbacks.truncation_penalty import TruncationPenaltyCallback
from lightning_stable.shadow import ShadowRun, Twin, TwinProjection, TwinSource, check_model
from lightning_stable.shadow.rng import isolated
from lightning_stable.tensorboard import Entries, begin_table, boards_of, compared, comparison_charts, end_table, flush
from lightning_stable.tensorboard.board import THEORY, last_step
from lightning_stable.trainers import callbacks_of, check_strategy, lightning_class

# In a state that cannot be gone on from: the batch in which the twin's step was cut off.
_INTERRUPTED = "interrupted"


class FeedForwardShadowCallback(RecordsClassPath, Portable, Interruptible):
    r"""Trains a truncated twin beside the model: does it need to be recurrent, and how much context does it use?

    The twin is the model with every recurrent layer replaced by its windowed form, which sees the last ``window``
    inputs only and is therefore a feed-forward network. It starts from the model's weights and is trained on the same
    batches with the same dropout masks, its own optimizer and learning-rate schedule from ``configure_optimizers``,
    and the trainer's accumulation, clipping, precision and strategy. Miller & Hardt, *Stable Recurrent Models*
    (ICLR 2019), show that for a stable model trained by gradient descent the distances logged here stay small and fall
    geometrically with the window. Where a :class:`StabilityProjectionCallback` is on the trainer, the twin is
    projected after its own steps too: projected gradient descent on both, as in the theory.

    The model's own run stays bit-identical to one without this callback, but for dropout inside cuDNN. A step costs
    the model's time once more, with up to ``window`` times that of its recurrent layers, as each window is evaluated
    on its own (``step_time_ratio`` says how much); and the memory of a second model with gradients and optimizer, and
    of the initial weights.

    Logs every ``trainer.log_every_n_steps`` optimizer steps, under ``name``:

    - ``loss`` (the twin's, on this process) and ``loss_gap`` (the twin's minus the model's) of the last batch,
    - ``weight_distance``: Euclidean, over all parameters; ``weight_distance/<child>`` for each top-level child;
      ``weight_distance_relative``: over the distance the model itself has moved from its initial weights,
    - ``prediction_distance``: mean over all positions of the Euclidean norm over the last dimension;
      ``prediction_distance_relative``: Frobenius norm of the difference over that of the model's predictions,
    - ``step_time_ratio``: time of a training step with the twin over that without.

    At every validation, averaged over its batches by their size, as Lightning does: ``val_loss``, ``val_loss_gap``,
    ``val_weight_distance``, ``val_weight_distance_relative``, ``val_prediction_distance`` and
    ``val_prediction_distance_relative``. The loss is what ``validation_step`` logs as ``val_loss``, ``val/loss`` or
    ``loss``, else returns, else logs with "loss" in its name; without such a number (a metric object is none) there is
    a warning and no ``val_loss``. All of them can be monitored. Several of these callbacks with one ``name`` on a
    trainer log under ``<name>/k=<window>/``.

    With a TensorBoardLogger, the page "Stability" of its custom scalars shows the model beside the twin, whose values
    go to the run ``<run>/<name>``, and beside ``rate ** window`` for the rate that a projection callback certifies.

    What hooks of the twin log is kept apart and nothing of it reaches another logger. Hooks of other callbacks are not
    called for the twin: a callback that changes weights, gradients or batches between the model's hooks changes the
    model's alone. The exception is :class:`TruncationPenaltyCallback`, which adds the twin's own penalty to the twin's
    gradients. What callbacks freeze, unfreeze or add to the optimizer when an epoch starts, the twin follows. Where
    a model changes its batches in place, the twin sees the first of them as it was left, with a warning. Under
    ``ddp_spawn`` the twin lives in the spawned processes, and :attr:`twin` stays None here. ``self.trainer`` of the
    twin has the twin's own strategy, optimizers and metrics, no loggers, and of callbacks those penalties alone.

    A checkpoint holds the twin, and a resumed run goes on exactly. One thing it cannot hold: of a state in a registered
    buffer, which depends on how far the model has come, the unfinished windows are not saved. The resumed twin goes on
    from that state as it is, and its windows are exact again after ``window`` inputs.

    Args:
        window: Number of inputs the twin's recurrent layers see, at least 1.
        twin: None for a windowed deep copy; or a LightningModule of the model's architecture, or a function without
            arguments that makes one, for models that cannot be copied. It is set up as the trainer sets up its model
            and gets the model's weights and ``window``.
        predictions: What to compare, ``predictions(module, batch) -> Tensor``, evaluated without gradients in
            evaluation mode after the step when it is logged. By default predictions are the first floating-point
            tensors that ``forward`` returned during the step, or, where a step never calls the module itself, the
            outputs of its recurrent layers.
        name: Prefix of all logged names.

    Attributes:
        twin: The twin, during and after a fit; None before. Afterwards an ordinary module, without a trainer.

    Raises:
        TypeError: If an argument has a wrong type; when they are compared, if ``predictions`` returns no tensor.
        ValueError: If an argument is out of range.
        MisconfigurationException: When training starts, for manual optimization, several optimizers, strategies that
            shard parameters, a second callback with this window and name, a model without recurrence, one with a layer
            that has no windowed form, one that cannot be copied, one whose copy still uses it (functions that close
            over it), and a given twin of another architecture; later, for parameters that were not there then.

    Example:
        >>> shadow = FeedForwardShadowCallback(window=10)
        >>> trainer = Trainer(callbacks=[StabilityProjectionCallback(rate=0.99), shadow])
    """

    def __init__(
        self,
        window: int,
        *,
        twin: TwinSource = None,
        predictions: Callable[[LightningModule, Any], Tensor] | None = None,
        name: str = "shadow",
    ) -> None:
        window = checks.integer("window", window)
        # Modules are callable, too.
        if not (twin is None or lightning_class(twin) or (callable(twin) and not isinstance(twin, Module))):
            raise TypeError(
                "`twin` must be a LightningModule, a function without arguments that makes one, or None for a copy. "
                f"Got {twin!r}."
            )
        if not (predictions is None or callable(predictions)):
            raise TypeError(f"`predictions` must be a function of a module and a batch, or None. Got {predictions!r}.")
        self.window, self.predictions, self.name = window, predictions, checks.text("name", name)
        self.source = twin
        self.twin: LightningModule | None = None
        self._run: ShadowRun | None = None  # while a fit trains
        self._state: dict[str, Any] = {}  # of the last fit, for checkpoints made after it
        self._restored: dict[str, Any] = {}  # from a checkpoint, until the twin is made

    @property
    @override
    def state_key(self) -> str:
        """Name with the window and the prefix, as several of these can watch one run."""
        origin = "copy" if self.source is None else "given"
        return f"{type(self).__qualname__}(window={self.window}, name={self.name!r}, twin={origin!r})"

    # ------------------------------------------------------------ start and end
    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse strategies that shard parameters and a callback that logs under the same names; begin a new run."""
        if stage != "fit":
            return
        check_strategy(trainer, "FeedForwardShadowCallback", "a whole model on every device, to train a second one")
        names = [(shadow.name, shadow.window) for shadow in callbacks_of(trainer, FeedForwardShadowCallback)]
        if (count := names.count((self.name, self.window))) > 1:
            raise MisconfigurationException(
                "FeedForwardShadowCallbacks of one trainer must differ in `window` or `name`, under which they log. "
                f"Got {count} with `window={self.window}` and `name={self.name!r}`."
            )
        # What a checkpoint knows is restored after this.
        self.twin, self._state, self._restored = None, {}, {}
        begin_table(trainer, pl_module)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse models that a twin cannot follow."""
        check_model(pl_module)

    @override
    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hold signals back."""
        self._hold_signals(trainer)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the twin."""
        # Whatever sets or restores weights has done so by now.
        self._finish()
        if _INTERRUPTED in self._restored:
            raise MisconfigurationException(
                "FeedForwardShadowCallback cannot go on from a checkpoint that was made while a step of its twin "
                "was under way, by an error in it or a second signal. Resume from one before, or without this "
                f"callback. Got the twin interrupted in batch {self._restored[_INTERRUPTED]}."
            )
        twin = Twin(trainer, pl_module, self.window, self.source, self._restored)
        self.twin = twin.module
        projecting = callbacks_of(trainer, StabilityProjectionCallback)
        self._run = ShadowRun(trainer, pl_module, twin, self.predictions, lambda: _not_recording(projecting))
        with isolated(pl_module.device):
            for callback in projecting:
                projector = callback.projector_for(trainer, twin.module, ranges=callback.input_ranges)
                twin.projections[callback.state_key] = TwinProjection(projector, callback, twin.optimizer)
                callback.followers.append(twin.projections[callback.state_key])
        # Lightning's precision plugins call callbacks before backward passes and steps, and these have no other hooks.
        for penalty in callbacks_of(trainer, TruncationPenaltyCallback):
            twin.trainer.callbacks.append(penalty.for_twin(twin.module))
        if self._restored:
            twin.load_state_dict(self._restored)
            self._restored = {}
        twin.hook("on_train_start")
        for board in boards_of(trainer):
            board.show(comparison_charts(self.name))
        self._begin_training(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the twin catch up, and end its training."""
        if self._run is not None:
            self._run.catch_up()
            self._run.twin.hook("on_train_end")
        end_table(trainer, pl_module)
        self._let_signals_pass()
        self._end_training()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the model as it was: Lightning runs no teardown after an exception."""
        self._finish()
        self._end_training()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the model as it was."""
        if self._run is not None:
            self._run.twin.hook("teardown", stage)
        self._finish()
        self._end_training()
        flush(trainer)

    def _finish(self) -> None:
        if self._run is not None:
            run, self._run = self._run, None
            for penalty in run.twin.trainer.callbacks:
                penalty.leave()
            try:
                self._state = _state_of(run)
            finally:  # hooks of the model's are called for it
                run.detach()

    @override
    def _leave_run(self) -> None:
        self.twin, self._run, self._state, self._restored = None, None, {}, {}
        self._forget_training()

    # ---------------------------------------------------------------- training
    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the twin catch up, and begin its epoch."""
        if self._run is not None:
            self._run.catch_up()
            self._run.twin.hook("on_train_epoch_start")

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note what the twin will need of this batch."""
        if self._run is not None:
            self._run.start_batch(batch, batch_idx)
        self._begin_batch(trainer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Train the twin on this batch, and log where a log line is due."""
        self._compare_processes(trainer, batch_idx)
        if self._run is None:
            return
        for shadow in callbacks_of(trainer, FeedForwardShadowCallback):
            if shadow._run is not None:  # the first one's twin is no part of the model's time
                shadow._run.step_time.model_done()
        values = self._run.end_batch(outputs, batch)
        if values:
            prefix = self._prefix(trainer)
            metrics = {f"{prefix}/{name}": value for name, value in values.items()}
            # Lightning would drop values logged outside its own rhythm; its axis counts steps.
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=trainer.global_step - 1)
            pl_module.log_dict(metrics, logger=False)
            self._show(trainer, values)
        self._end_batch(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the twin catch up, and end its epoch."""
        if self._run is not None:
            self._run.catch_up()
            self._run.twin.end_epoch("train", "on_train_epoch_end")
        self._let_signals_pass()

    # -------------------------------------------------------------- validation
    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a validation of the twin; there is no twin in the sanity check and in ``trainer.validate``."""
        if self._run is not None:
            self._run.start_validation()

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Call the twin's hook."""
        if self._run is not None:
            self._run.twin.hook("on_validation_epoch_start")

    # Lightning passes the index of the data loader only if there are several, and so must we.
    @override
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, *dataloader_idx: int
    ) -> None:
        """Note what the twin will need of this batch."""
        if self._run is not None:
            self._run.start_validation_batch(batch, batch_idx)

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        *dataloader_idx: int,
    ) -> None:
        """Evaluate the twin on this batch."""
        if self._run is not None:
            self._run.end_validation_batch(outputs, batch, *dataloader_idx)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the twin's loss and how far it is from the model."""
        if self._run is not None:
            prefix, values = self._prefix(trainer), self._run.end_validation_epoch()
            pl_module.log_dict({f"{prefix}/{name}": value for name, value in values.items()}, sync_dist=True)
            self._show(trainer, values)
            for board in boards_of(trainer):
                logged = self._run.twin.log.finished
                board.scalars({n: float(v) for n, v in logged.items() if v.numel() == 1}, last_step(trainer), prefix)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the twin back to training."""
        if self._run is not None:
            self._run.twin.end_validation()

    # -------------------------------------------------------------- checkpoints
    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the twin's state; between fits, the last one's."""
        if self._run is None:
            return self._restored or self._state
        self._run.catch_up()
        return _state_of(self._run)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state for the twin, which is made when training starts: later, with every strategy."""
        self._restored = state_dict

    # ------------------------------------------------------------- TensorBoard
    def table_entries(self, trainer: Trainer) -> Entries:
        """Return the window and the tags of the final gaps and distances, for TensorBoard's table of runs."""
        names = ("val_loss_gap", "val_weight_distance_relative", "val_prediction_distance_relative")
        tags = [f"{self._prefix(trainer)}/{name}" for name in names]
        return Entries({"window": self.window}, (f"{self.name}/compared/val_loss", *tags))

    def _show(self, trainer: Trainer, values: Mapping[str, Tensor | float]) -> None:
        """Show the model, the twin and what theory expects in TensorBoard, as runs of their own under one tag."""
        boards = boards_of(trainer)
        if not boards:
            return
        rate = max((report.rate for report in reports_of(trainer)), default=1.0)
        level = rate**self.window if rate < 1 else None
        model, twin, theory = compared({name: float(value) for name, value in values.items()}, level)
        prefix = self._prefix(trainer)
        runs = {"": model, prefix: twin, THEORY + prefix.removeprefix(self.name): theory}
        for board in boards:
            for run, scalars in runs.items():
                tagged = {f"{self.name}/compared/{name}": value for name, value in scalars.items()}
                board.scalars(tagged, last_step(trainer), run)

    def _prefix(self, trainer: Trainer) -> str:
        alone = sum(callback.name == self.name for callback in callbacks_of(trainer, FeedForwardShadowCallback)) == 1
        return self.name if alone else f"{self.name}/k={self.window}"


def _state_of(run: ShadowRun) -> dict[str, Any]:
    return run.twin.state_dict() if run.interrupted is None else {_INTERRUPTED: run.interrupted}


@contextmanager
def _not_recording(callbacks: list[StabilityProjectionCallback]) -> Iterator[None]:
    """Keep the inputs inside the block from being recorded: they are no training inputs."""
    with ExitStack() as stack:
        for callback in callbacks:
            stack.enter_context(callback.recording_paused())
        yield
