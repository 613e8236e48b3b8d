"""A callback that shows at validation how much context every recurrent layer uses."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_stable import checks
from lightning_stable.callbacks._arguments import bound_inside, checked_input_bound
from lightning_stable.callbacks._measuring import is_measurable
from lightning_stable.callbacks._projecting import known_inputs, projections_of
from lightning_stable.diagnostics import TruncationProfile, truncation_profile
from lightning_stable.diagnostics.recorded_calls import RecordedCalls
from lightning_stable.precision import full_precision
from lightning_stable.recurrence import recurrences_by_module
from lightning_stable.stability.inputs.sets import InputBound
from lightning_stable.tensorboard import boards_of, check_folder, draw, flush, window_chart
from lightning_stable.tensorboard.board import THEORY, last_step
from lightning_stable.trainers import check_strategy

# A longer iteration would hold up a validation.
_LONGEST_CERTIFIED = 1000


class TruncationProfileCallback(Callback):
    """Measures, on the first validation batch, how far each recurrent layer is from its windowed forms.

    The inputs that reach a recurrent module in that batch are kept, and at the end of the validation the module is
    compared with its truncations of every length up to ``max_window``, from zero states and without dropout, see
    :func:`lightning_stable.truncation_profile`. Nothing is done on the training path.

    Logs, for every recurrent module: ``truncation/<module>/max_error`` (Euclidean norm, at ``max_window``),
    ``truncation/<module>/required_window`` (for ``tolerance``; not logged where ``max_window`` is not enough),
    ``truncation/<module>/rate`` (measured decay per step, where the errors show one), and to TensorBoard the figure
    ``truncation/<module>``; on its page "Stability" the required window stands beside the certified one, where a
    :class:`StabilityProjectionCallback` is on the trainer and certifies one of at most 1,000 inputs. With several
    processes the first one speaks, for its part of the data.

    Args:
        max_window: Longest window.
        tolerance: Largest Euclidean norm of the output error that ``required_window`` allows.
        modules: Shell-style patterns of the names of the recurrent modules; None takes all.
        input_bound: For the certified bound in the figure, see :func:`lightning_stable.certify`; None takes what a
            :class:`StabilityProjectionCallback` on the trainer knows, or the range of the inputs seen.
        every_n_epochs: Profile at the validations of every n-th epoch.
        figures: Folder for the figures as PNG files; None writes none.

    Attributes:
        profiles: The latest :class:`~lightning_stable.diagnostics.TruncationProfile` by name of the module.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If an argument is out of range.
        MisconfigurationException: When the trainer starts, if the strategy shards parameters or the model has no
            recurrence.

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
        figures: str | Path | None = None,
    ) -> None:
        self.max_window = checks.integer("max_window", max_window)
        self.tolerance = checks.number("tolerance", tolerance, "(0, inf)")
        self.every_n_epochs = checks.integer("every_n_epochs", every_n_epochs)
        self.modules = checks.patterns("modules", modules)
        self.input_bound, self.figures = checked_input_bound(input_bound), check_folder(figures)
        self.profiles: dict[str, TruncationProfile] = {}
        self._recorder = RecordedCalls({})
        self._measured: list[str] = []

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a strategy that shards parameters, and a model without a recurrence."""
        check_strategy(trainer, "TruncationProfileCallback", "whole recurrent layers, to run them with windows")
        try:
            recurrences_by_module(pl_module, self.modules)
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error

    @override
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Record the calls in the first batch."""
        due = trainer.is_global_zero and trainer.current_epoch % self.every_n_epochs == 0
        if not due or trainer.sanity_checking or batch_idx or dataloader_idx:
            return
        groups = recurrences_by_module(pl_module, self.modules)
        self._recorder = RecordedCalls({name: group[0] for name, group in groups.items()})
        self._recorder.attach()

    @override
    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop recording."""
        self._recorder.detach()

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Profile the modules that were called, log the figures and draw them."""
        for name, run in self._recorder.take().items():
            module = pl_module.get_submodule(name)
            # In the dtype of the weights, from which autocast may have made less.
            inputs = run.inputs.to(next(module.parameters()).dtype)
            if not is_measurable("TruncationProfileCallback", name, module, inputs):
                continue
            bound = bound_inside(self.input_bound, name)
            bound = known_inputs(trainer, name) if bound is None else bound
            with full_precision(pl_module.device):
                profile = truncation_profile(module, inputs, self.max_window, input_bound=bound, name=name)
            self.profiles[name] = profile
            pl_module.log_dict(self._metrics(name, profile), rank_zero_only=True)
            draw(trainer, "truncation", name, profile.plot, self.figures)
            self._measured.append(name)

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
        """Add the chart of the windows to the page in TensorBoard."""
        modules = recurrences_by_module(pl_module, self.modules)
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

    def _metrics(self, name: str, profile: TruncationProfile) -> dict[str, float]:
        window = profile.required_window(self.tolerance)
        metrics = {"max_error": profile.max_error[-1].item()}
        if window is not None:
            metrics["required_window"] = float(window)
        if math.isfinite(profile.rate):
            metrics["rate"] = profile.rate
        return {f"truncation/{name}/{key}": value for key, value in metrics.items()}
