"""A callback that shows at validation how much context every recurrent layer uses."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from lightning_stable import checks
from lightning_stable.callbacks._arguments import bound_inside, checked_input_bound, fitting_recurrences
from lightning_stable.callbacks._class_path import RecordsClassPath
from lightning_stable.callbacks._measuring import is_measurable, of_all_processes
from lightning_stable.callbacks._portable import Portable
from lightning_stable.callbacks._projecting import known_inputs, projections_of
from lightning_stable.diagnostics import TruncationProfile, truncation_profile
from lightning_stable.diagnostics.recorded_calls import RecordedCalls
from lightning_stable.precision import full_precision
from lightning_stable.recurrence import recurrences_by_module
from lightning_stable.stability.inputs.sets import InputBound
from lightning_stable.tensorboard import boards_of, check_folder, check_writable, draw, flush, window_chart
from lightning_stable.tensorboard.board import STATISTICAL, THEORY, TUBE, last_step
from lightning_stable.trainers import check_strategy

# A longer iteration would hold up a validation.
_LONGEST_CERTIFIED = 1000


class TruncationProfileCallback(RecordsClassPath, Portable):
    """Measures, on the first validation batches, how far each recurrent layer is from its windowed forms.

    The inputs that reach a recurrent module in these batches are kept, and at the end of the validation the module is
    compared with its truncations of every length up to ``max_window``, from zero states and without dropout, see
    :func:`lightning_stable.truncation_profile`. Nothing is done on the training path.

    Logs, for every recurrent module: ``truncation/<module>/max_error`` (Euclidean norm, at ``max_window``),
    ``truncation/<module>/required_window`` (for ``tolerance``), ``truncation/<module>/tube_window`` (certified for
    these inputs, whatever comes before them), both not logged where ``max_window`` is not enough,
    ``truncation/<module>/rate`` (measured decay per step, where the errors show one), and to TensorBoard the figure
    ``truncation/<module>``; on its page "Stability" the required window stands beside the certified ones, that for all
    inputs where a :class:`StabilityProjectionCallback` is on the trainer and certifies one of at most 1,000 inputs.
    With several processes the first one speaks, for its part of the data.

    With ``coverage``, it also logs ``truncation/<module>/statistical_window``: with probability ``confidence`` this
    window is enough for the share ``coverage`` of all sequences that come from where these did, see
    :meth:`TruncationProfile.required_window`. Then the sequences of all processes count, each once, and the largest
    error is that of all of them. A warning says how many sequences would be enough where there are too few.

    Args:
        max_window: Longest window.
        tolerance: Largest Euclidean norm of the output error that ``required_window`` allows.
        modules: Shell-style patterns of the names of the recurrent modules; None takes all.
        input_bound: For the certified bound in the figure, see :func:`lightning_stable.certify`; None takes what a
            :class:`StabilityProjectionCallback` on the trainer knows, or the range of the inputs seen.
        every_n_epochs: Profile at the validations of every n-th epoch.
        num_batches: Profile the sequences of the first validation batches, this many of each process.
        coverage: Share of all sequences for which a statistical window shall be enough, in (0, 1); None asks for none.
        confidence: Probability with which it shall be, in (0, 1).
        figures: Folder for the figures as PNG files; None writes none.

    Attributes:
        profiles: The latest :class:`~lightning_stable.diagnostics.TruncationProfile` by name of the module.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If an argument is out of range; when a run starts, if ``figures`` cannot be written to.
        MisconfigurationException: When a fit or a validation starts, if the model has no recurrence or
            the strategy shards parameters.

    Example:
        >>> trainer = Trainer(callbacks=[TruncationProfileCallback(max_window=50)])
    """

    def __init__(
        self,
        max_window: int = 32,
        *,
        tolerance: float = 1e-3,
        modules: str | Iterable[str] | None = None,
        input_bound: InputBound = None,
        every_n_epochs: int = 1,
        num_batches: int = 1,
        coverage: float | None = None,
        confidence: float = 0.95,
        figures: str | Path | None = None,
    ) -> None:
        self.max_window = checks.integer("max_window", max_window)
        self.tolerance = checks.number("tolerance", tolerance, "(0, inf)")
        self.every_n_epochs = checks.integer("every_n_epochs", every_n_epochs)
        self.num_batches = checks.integer("num_batches", num_batches)
        self.coverage = None if coverage is None else checks.number("coverage", coverage, "(0, 1)")
        self.confidence = checks.number("confidence", confidence, "(0, 1)")
        self.modules = checks.patterns("modules", modules)
        self.input_bound, self.figures = checked_input_bound(input_bound), check_folder(figures)
        self.profiles: dict[str, TruncationProfile] = {}
        self._recorder = RecordedCalls({})
        self._measured: list[str] = []

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse strategies that shard parameters, and a folder that no figures can be written to."""
        if stage in ("fit", "validate"):
            check_writable(self.figures)
            check_strategy(trainer, "TruncationProfileCallback", "whole recurrent layers, to run them with windows")

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a model without a recurrence where a validation stands alone."""
        if trainer.state.fn != TrainerFn.FITTING:
            fitting_recurrences(pl_module, self.modules, self.input_bound)

    @override
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Record the calls in the first batches."""
        speaks = trainer.is_global_zero or self.coverage is not None
        due = speaks and trainer.current_epoch % self.every_n_epochs == 0
        if not due or trainer.sanity_checking or batch_idx >= self.num_batches or dataloader_idx:
            return
        if batch_idx == 0:
            groups = recurrences_by_module(pl_module, self.modules)
            self._recorder = RecordedCalls({name: group[0] for name, group in groups.items()})
        self._recorder.attach()

    @override
    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop recording until the next batch."""
        self._recorder.detach()
        self._recorder.end_batch()

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Profile the modules that were called, log the figures and draw them."""
        recorded = self._recorder.joined()
        self._recorder = RecordedCalls({})
        profiles = {name: self._profile(trainer, pl_module, name, inputs) for name, inputs in recorded.items()}
        measured = {name: profile for name, profile in profiles.items() if profile is not None}
        if self.coverage is not None and not trainer.sanity_checking:
            names = recurrences_by_module(pl_module, self.modules)
            measured = of_all_processes(trainer, pl_module.device, names, measured)
        if not trainer.is_global_zero:
            return
        for name, profile in measured.items():
            self.profiles[name] = profile
            metrics = self._metrics(name, profile)
            pl_module.log_dict(metrics, rank_zero_only=True)
            tag = f"truncation/{name}/"
            for board in boards_of(trainer):
                statistical = metrics.get(f"{tag}statistical_window", math.nan)
                board.scalars({f"{tag}required_window": statistical}, last_step(trainer), STATISTICAL)
                tube = metrics.get(f"{tag}tube_window", math.nan)
                board.scalars({f"{tag}required_window": tube}, last_step(trainer), TUBE)
            draw(trainer, "truncation", name, profile.plot, self.figures)
            self._measured.append(name)

    def _profile(
        self, trainer: Trainer, pl_module: LightningModule, name: str, inputs: Any
    ) -> TruncationProfile | None:
        module = pl_module.get_submodule(name)
        # In the dtype of the weights, from which autocast may have made less.
        inputs = inputs.to(next(module.parameters()).dtype)
        if not is_measurable("TruncationProfileCallback", name, module, inputs):
            return None
        bound = bound_inside(self.input_bound, name)
        bound = known_inputs(trainer, name) if bound is None else bound
        with full_precision(pl_module.device):
            return truncation_profile(module, inputs, self.max_window, input_bound=bound, name=name)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the certified windows, which a projection callback on the trainer knows by now."""
        measured, self._measured = self._measured, []
        reports = [callback.report for callback in projections_of(trainer) if callback.report is not None]
        bounds = [bounds for report in reports for bounds in report.bounds if bounds.name in measured]
        for board in boards_of(trainer) if bounds else []:
            for bound in bounds:
                window = bound.required_window(self.tolerance, _LONGEST_CERTIFIED)
                if window is not None:
                    tag = f"truncation/{bound.name}/required_window"
                    board.scalars({tag: float(window)}, last_step(trainer), THEORY)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a model without a recurrence; add the chart of the windows to the page in TensorBoard."""
        modules = fitting_recurrences(pl_module, self.modules, self.input_bound)
        for board in boards_of(trainer):
            board.show(window_chart(modules))

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write what TensorBoard has not written yet."""
        flush(trainer)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop recording where a validation was cut off."""
        self._recorder.detach()

    @override
    def _leave_run(self) -> None:
        self.profiles, self._recorder, self._measured = dict(self.profiles), RecordedCalls({}), []

    def _metrics(self, name: str, profile: TruncationProfile) -> dict[str, float]:
        window, statistical = profile.required_window(self.tolerance), self._statistical_window(name, profile)
        metrics = {"max_error": profile.max_error[-1].item()}
        if window is not None:
            metrics["required_window"] = float(window)
        if (tube := profile.tube_window(self.tolerance)) is not None:
            metrics["tube_window"] = float(tube)
        if statistical is not None:
            metrics["statistical_window"] = float(statistical)
        if math.isfinite(profile.rate):
            metrics["rate"] = profile.rate
        return {f"truncation/{name}/{key}": value for key, value in metrics.items()}

    def _statistical_window(self, name: str, profile: TruncationProfile) -> int | None:
        if self.coverage is None:
            return None
        try:
            return profile.required_window(self.tolerance, coverage=self.coverage, confidence=self.confidence)
        except ValueError as error:
            rank_zero_warn(f"TruncationProfileCallback has no statistical window of {name!r}. {error}")
            return None
