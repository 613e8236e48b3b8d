"""Keep the best checkpoints among those that are certified stable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_stable import checks
from lightning_stable.bases import ModelCheckpoint
from lightning_stable.callbacks._arguments import checked_input_bound, fitting_recurrences
from lightning_stable.callbacks._class_path import RecordsClassPath
from lightning_stable.callbacks._portable import Portable
from lightning_stable.callbacks.stability_projection import StabilityProjectionCallback
from lightning_stable.copying import evaluating
from lightning_stable.stability import StabilityReport, certify
from lightning_stable.stability.inputs.sets import InputBound, weakest_guarantee
from lightning_stable.stability.report import format_rate, why_unstable
from lightning_stable.trainers import callbacks_of, check_strategy, classes


class StableModelCheckpoint(RecordsClassPath, ModelCheckpoint, Portable):
    """A ModelCheckpoint whose best are the best among the certified: a checkpoint without a certificate is not kept.

    Weights, averaged ones included, are certified in float64 and in evaluation mode when they are validated. They are
    certified once more when they are saved, if they are averaged or a checkpoint is due at a step that was not
    validated. With one or more :class:`StabilityProjectionCallback` on the trainer, the certificate is theirs: it is
    for the recurrences they project, by their norms, their input sets and the inputs they have seen. Without one the
    whole model is certified, and ``stability/rate`` is logged at every validation.

    A checkpoint that is not certified leaves all files as they are; whether ``save_last`` is written then depends on
    the version of Lightning. To resume a run, put a plain ModelCheckpoint beside this one.

    Args:
        monitor: Name of the logged value by which certified checkpoints are compared.
        rate: Largest certified rate that is kept, in (0, 1]; it must be below 1 in any case.
        guaranteed: Whether to keep only what is certified for declared inputs, or needs none to be declared.
        derived: Whether ``guaranteed`` admits input sets that were derived from the model, too.
        input_bound: What is known about the inputs, see :func:`lightning_stable.certify`. If it is given here, the
            whole model is certified for it.
        **kwargs: Arguments of :class:`lightning.pytorch.callbacks.ModelCheckpoint`.

    Attributes:
        report: The latest :class:`~lightning_stable.stability.StabilityReport`; None before the first one.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If an argument is out of range.
        MisconfigurationException: If an argument of a ModelCheckpoint is; when training starts, if the strategy
            flattens parameters (FSDP1, DeepSpeed) or the model has no recurrence.

    Example:
        >>> trainer = Trainer(callbacks=[StableModelCheckpoint(monitor="val_loss", save_top_k=3)])
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        rate: float = 1.0,
        guaranteed: bool = False,
        derived: bool = False,
        input_bound: InputBound = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(monitor=checks.text("monitor", monitor), **kwargs)
        self.rate = checks.number("rate", rate, "(0, 1]")
        self.guaranteed = checks.boolean("guaranteed", guaranteed)
        self.derived = checks.boolean("derived", derived)
        self.input_bound = checked_input_bound(input_bound)
        self.report: StabilityReport | None = None
        self._certified_step: int | None = None  # the ``global_step`` of the report
        self._has_warned = False

    @property
    @override
    def state_key(self) -> str:
        """Name with the arguments, as several of these can watch one run."""
        return (
            f"{super().state_key}(rate={self.rate}, guaranteed={self.guaranteed}, derived={self.derived}, "
            f"input_bound={self.input_bound!r})"
        )

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse strategies that flatten parameters, and forget the last fit's report."""
        check_strategy(trainer, "StableModelCheckpoint", "recurrent matrices that can be gathered", sharded=True)
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.report, self._certified_step, self._has_warned = None, None, False

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a model without a recurrence; a projection callback refuses it itself."""
        super().on_fit_start(trainer, pl_module)
        if not callbacks_of(trainer, StabilityProjectionCallback):
            fitting_recurrences(pl_module, None, self.input_bound)

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Certify the weights that are validated; projected and averaged by now, as checkpoint callbacks run last."""
        super().on_validation_epoch_start(trainer, pl_module)
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        report = self._certify(trainer, pl_module)
        if not callbacks_of(trainer, StabilityProjectionCallback):
            pl_module.log("stability/rate", report.rate, sync_dist=True, reduce_fx="max")

    @override
    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Return whether to keep a checkpoint: the certified ones are compared as ModelCheckpoint does."""
        # WeightAveraging came with Lightning 2.6.
        averaging = callbacks_of(trainer, classes(".callbacks", "WeightAveraging"))
        if averaging or self._certified_step != trainer.global_step:
            with _as_saved(trainer, () if self.save_weights_only else averaging):
                self._certify(trainer, trainer.lightning_module)
        # All processes decide alike, whatever the last digit of a rate is on each.
        certified = trainer.strategy.reduce_boolean_decision(self._refusal() is None)
        if not certified and not self.best_model_path and not self._has_warned:
            # Once, and early: at the end of the fit it is too late to project the model.
            self._has_warned = True
            rank_zero_warn(f"StableModelCheckpoint has kept nothing yet. {self._refusal() or ''}")
        return certified and super().check_monitor_top_k(trainer, current)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if nothing was kept."""
        super().on_train_end(trainer, pl_module)
        if self.report is not None and not self.best_model_path:
            rank_zero_warn(
                "StableModelCheckpoint kept nothing: no checkpoint was certified as asked for. "
                f"{self._refusal() or ''} Got as last report:\n{self.report}"
            )

    @override
    def _leave_run(self) -> None:
        self.best_k_models = dict(self.best_k_models)
        self.report = None if self.report is None else self.report.without_windows()

    def _refusal(self) -> str | None:
        """Return why the latest report is not good enough, and what to do; None if it is."""
        assert self.report is not None
        least = "data" if not self.guaranteed else "derived" if self.derived else "guaranteed"
        if not self.report.is_stable:
            return why_unstable(self.report)
        if self.report.rate > self.rate:
            return (
                f"The certified rate, {format_rate(self.report.rate)}, is above `rate`, {self.rate:g}: train with "
                f"StabilityProjectionCallback(rate={self.rate:g})."
            )
        if weakest_guarantee((self.report.guarantee, least)) != least:
            return (
                f"The certificate is {self.report.guarantee!r}, and `guaranteed=True` asks for {least!r}: declare "
                "`input_bound`" + ("." if self.derived else ", or take derived certificates too with `derived=True`.")
            )
        return None

    def _certify(self, trainer: Trainer, pl_module: LightningModule) -> StabilityReport:
        with evaluating(pl_module):
            self.report = self._certificate(trainer, pl_module)
        self._certified_step = trainer.global_step
        return self.report

    def _certificate(self, trainer: Trainer, pl_module: LightningModule) -> StabilityReport:
        projections = callbacks_of(trainer, StabilityProjectionCallback)
        if not projections or self.input_bound is not None:
            return certify(pl_module, input_bound=self.input_bound)
        reports = [projection.evaluation_report(trainer, pl_module) for projection in projections]
        return StabilityReport(
            tuple(layer for report in reports for layer in report.layers),
            bounds=tuple(bounds for report in reports for bounds in report.bounds),
        )


@contextmanager
def _as_saved(trainer: Trainer, averaging: Iterable[Callback]) -> Iterator[None]:
    """Put averaged weights in place inside the block, as a full checkpoint holds them."""
    for callback in averaging:
        callback.on_validation_epoch_start(trainer, trainer.lightning_module)
    try:
        yield
    finally:
        for callback in averaging:
            callback.on_validation_epoch_end(trainer, trainer.lightning_module)
