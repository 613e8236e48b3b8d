"""Project recurrent weights into the stable set after every optimizer step, and certify the rate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lightning_stable.stability.project import Constraint
from lightning_stable.stability.projector import Projector
from lightning_stable.stability.report import StabilityReport

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
    ``stability/projection_distance`` (how far the last step's projection moved the weights).

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
            validation, checkpoints and the end of training project first.
        norm: Certificate, see :func:`lightning_stable.certify`; None takes the cell's default.
        method: Projection, see :func:`lightning_stable.project_`; None takes the cell's default.
        gate_bound: Largest value of LSTM's forget or GRU's update gate; None takes the cell's default.
        state_bound: Admissible states have entries of at most this size; 1 covers runs that start from zero.

    Attributes:
        report: The latest :class:`~lightning_stable.stability.StabilityReport`.
        num_projections: Projections made after optimizer steps.

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
    ) -> None:
        if isinstance(every_n_steps, bool) or not isinstance(every_n_steps, int) or every_n_steps < 1:
            raise ValueError(f"`every_n_steps` must be a positive integer. Got {every_n_steps!r}.")
        self.constraint = Constraint(rate, norm, method, gate_bound, state_bound)
        self.modules = [modules] if isinstance(modules, str) else modules if modules is None else list(modules)
        self.input_bound = input_bound
        self.every_n_steps = every_n_steps
        self.report: StabilityReport | None = None
        self.num_projections = 0
        self._steps = 0
        self._projector: Projector | None = None
        self._hooks: list[RemovableHandle] = []
        self._log_interval = 0
        self._log_due = False
        self._distance: Tensor | None = None
        self._input_ranges: dict[str, Tensor] = {}
        self._norms_before: dict[str, float] = {}
        self._warned: set[str] = set()

    @property
    @override
    def state_key(self) -> str:
        return f"{type(self).__qualname__}(modules={self.modules})"

    # ------------------------------------------------------------ start and end
    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, _SHARDED):
            raise MisconfigurationException(
                "StabilityProjectionCallback needs whole recurrent matrices on every device, which strategies that "
                f"shard parameters do not give. Got strategy {type(trainer.strategy).__name__}; use 'ddp' or 'auto'."
            )

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        projector = self._watch(trainer, pl_module, training=True)
        self._log_interval = trainer.log_every_n_steps  # type: ignore[attr-defined]
        norms = projector.recurrent_norms()
        if self._norms_before.keys() != norms.keys():  # not restored from a checkpoint
            self._norms_before = norms
        projector.project(strict=True)
        self._certify(projector)
        self._hooks = [optimizer.register_step_post_hook(self._after_step) for optimizer in trainer.optimizers]

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._projector is not None:
            self._projector.project(strict=True)
            self._certify(self._projector)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for handle in self._hooks:
            handle.remove()
        self._hooks = []
        if self._projector is not None:
            self._projector.detach()
            self._input_ranges = dict(self._projector.monitor.ranges)
        self._projector = None

    def _watch(self, trainer: Trainer, pl_module: LightningModule, *, training: bool) -> Projector:
        self._projector = Projector(
            pl_module,
            self.constraint,
            input_bound=self.input_bound,
            modules=self.modules,
            training=training,
            margin=_AUTOCAST_MARGIN.get(str(trainer.precision), 0.0),
            ranges=self._input_ranges,
            reduce_max=partial(trainer.strategy.reduce, reduce_op="max") if trainer.world_size > 1 else None,
        )
        self._projector.attach()
        return self._projector

    # ------------------------------------------------------- after every step
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Torch's step_post_hook: called after each step an optimizer really made, also under manual optimization."""
        self._steps += 1
        due = self._log_interval > 0 and self._steps % self._log_interval == 0
        if self._steps % self.every_n_steps == 0 and self._projector is not None:
            distance = self._projector.project(strict=False, measure=due)
            self._distance = distance if due else self._distance
            self.num_projections += 1
        self._log_due |= due

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._projector is not None:
            # Comparing inputs with their sets costs a little: only where the result is looked at.
            interval = max(1, self._log_interval)
            self._projector.monitor.checking = self._steps == 0 or self._steps % interval == interval - 1

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._log_due and self._projector is not None:
            self._log_due = False
            metrics = self._metrics(self._certify(self._projector, leading_only=True))
            # Lightning would drop values logged outside its own rhythm, which manual optimization does not keep to.
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=max(trainer.global_step - 1, 0))
            pl_module.log_dict(metrics, logger=False)

    # ----------------------------------------------- validation and checkpoints
    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._projector is None:  # trainer.validate: certify, never change weights
            self._watch(trainer, pl_module, training=False)
        elif trainer.state.fn == TrainerFn.FITTING:
            self._projector.project(strict=True)
        if self._projector is not None:
            self._projector.monitor.checking = True

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._projector is not None:
            metrics = self._metrics(self._certify(self._projector))
            if not trainer.sanity_checking:
                pl_module.log_dict(metrics)

    @override
    def state_dict(self) -> dict[str, Any]:
        # Lightning asks for this while it makes a checkpoint, holding references to the weights.
        if self._projector is not None and self._hooks:
            self._projector.project(strict=True)
            self._certify(self._projector)
        ranges = self._input_ranges if self._projector is None else self._projector.monitor.ranges
        return {
            "report": None if self.report is None else self.report.to_dict(),
            "constraint": asdict(self.constraint),
            "steps": self._steps,
            "num_projections": self.num_projections,
            "input_ranges": {name: seen.cpu() for name, seen in ranges.items()},
            "norms_before": dict(self._norms_before),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps = state_dict["steps"]
        self.num_projections = state_dict["num_projections"]
        self._input_ranges = dict(state_dict["input_ranges"])
        self._norms_before = dict(state_dict["norms_before"])

    # ------------------------------------------------------------- certificates
    def _certify(self, projector: Projector, *, leading_only: bool = False) -> StabilityReport:
        self.report = projector.certify(leading_only=leading_only)
        for name, message in projector.uncovered_inputs().items():
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
