"""A callback that trains recurrent layers to depend on their last inputs alone, on the data they see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from typing_extensions import override

from lightning_stable import checks
from lightning_stable.callbacks._arguments import fitting_recurrences, module_patterns
from lightning_stable.callbacks._class_path import RecordsClassPath
from lightning_stable.callbacks._portable import Portable
from lightning_stable.diagnostics.recorded_calls import RecordedCalls, Run
from lightning_stable.trainers import check_strategy
from lightning_stable.truncation.exact.stack import Stack, stacks_of
from lightning_stable.truncation.restarts import restart_difference


class TruncationPenaltyCallback(RecordsClassPath, Portable):
    r"""Shortens the window that recurrent layers need on the data, without a certificate.

    At every optimizer step the gradient of :math:`\text{weight} \cdot \sum \|y - y'\|^2 / \sum \|y\|^2` is added to
    that of the loss, for each recurrent module by itself: ``y`` is its output, and ``y'`` its output where the state of
    all its layers was zero ``window`` inputs before, at random places in the sequences of the latest batch. Inputs
    and the states in which runs restart are constants, so that only the module's own weights have such a gradient.
    This is a measure for the training data, **not a bound**: nothing is promised for other inputs. A certificate is
    what :class:`StabilityProjectionCallback` gives; both work together. Afterwards measure the window with
    :class:`TruncationProfileCallback`.

    The run is otherwise untouched: no loss, no random number of it and no other gradient changes, and ``weight=0``
    leaves it as it is without the callback. What is added is the mean over processes, comes before clipping, and is
    computed with the stored weights in their own precision; what overflows is left out. Places are drawn from ``seed``
    and the number of steps made, so a resumed run goes on exactly. A parameter that the loss gave no gradient, or that
    the optimizer does not hold, gets none. Where a module is called several times in a step, its longest call counts,
    and cells are taken with all their steps as one sequence. Padding in a tensor counts as input; that behind a
    PackedSequence is none.

    The twin of a :class:`FeedForwardShadowCallback` gets the same penalty at the same places, that of its stored
    recurrence. So the two trainings still differ in nothing but the window.

    Logs, where Lightning logs steps: ``penalty/<module>/loss``, the squared relative difference without its weight,
    averaged over processes.

    Args:
        window: Number of inputs after which outputs are to agree, at least 1. Calls with no more inputs than that (of
            bidirectional modules, than twice that less one) hold no place to restart; a callback that found none in
            an epoch warns.
        weight: Factor of the penalty, at least 0. Begin with 1; 10 roughly halves the window at some cost.
        modules: Shell-style patterns of the names of the recurrent modules; None takes all.
        num_restarts: Places drawn for every module and step. Each costs ``2 * window`` steps of one sequence, and
            those before it without a gradient.
        seed: Seed of the places.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If an argument is out of range.
        MisconfigurationException: When training starts, for manual optimization, a strategy that shards parameters, or
            a model without a recurrence that ``modules`` matches.

    Example:
        >>> trainer = Trainer(callbacks=[TruncationPenaltyCallback(window=24)])
    """

    def __init__(
        self,
        window: int,
        weight: float = 1.0,
        *,
        modules: str | Iterable[str] | None = None,
        num_restarts: int = 8,
        seed: int = 0,
    ) -> None:
        self.window = checks.integer("window", window)
        self.weight = checks.number("weight", weight, "[0, inf)")
        self.modules = module_patterns(modules)
        self.num_restarts = checks.integer("num_restarts", num_restarts)
        self.seed = checks.seed("seed", seed)
        self._logs = True
        self._leave_run()

    @override
    def _leave_run(self) -> None:
        self._stacks: dict[str, tuple[Stack, ...]] = {}
        self._recorder = RecordedCalls({})
        self._runs: Mapping[str, Run] = {}  # of the latest training step
        self._without: set[str] = set()  # modules that held no place to restart in this epoch

    # ------------------------------------------------------------ start and end
    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse strategies that shard parameters."""
        if stage == "fit":
            check_strategy(trainer, "TruncationPenaltyCallback", "whole recurrent layers, to restart them")

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse models that do not fit."""
        if not pl_module.automatic_optimization:
            raise MisconfigurationException(
                "TruncationPenaltyCallback needs automatic optimization: it adds its gradient between the backward "
                "pass and the optimizer's step, which Lightning makes known there alone. Got "
                "`automatic_optimization=False`."
            )
        fitting_recurrences(pl_module, self.modules)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow the calls of the recurrent modules."""
        self.follow(pl_module)

    def follow(self, module: LightningModule) -> None:
        """Record the calls of a module's recurrences from now on."""
        self.leave()
        if self.weight:
            groups = fitting_recurrences(module, self.modules)
            self._stacks = {name: stacks_of(group[0].module) for name, group in groups.items()}
            self._without = set(groups)
            first = {name: group[0] for name, group in groups.items()}
            self._recorder = RecordedCalls(first, differentiated=True)
            self._recorder.attach()

    def leave(self) -> None:
        """Leave the module as it was."""
        self._recorder.detach()
        self._leave_run()

    def for_twin(self, twin: LightningModule) -> TruncationPenaltyCallback:
        """Return a callback that adds the same to the gradients of a second model beside the trainer's."""
        copy = TruncationPenaltyCallback(
            self.window, self.weight, modules=self.modules, num_restarts=self.num_restarts, seed=self.seed
        )
        copy._logs = False
        copy.follow(twin)
        return copy

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the model as it was: Lightning runs no teardown after an exception."""
        self.leave()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the model as it was."""
        self.leave()

    # ---------------------------------------------------------------- training
    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to look for modules that hold no place to restart."""
        self._without = set(self._stacks)

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Keep the calls of this training step; of accumulated batches the last one stays."""
        self._runs = self._recorder.take()

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Add the gradient of the penalty; gradients are averaged over processes and unscaled by now, not clipped."""
        runs, self._runs = self._runs, {}
        self._recorder.take()  # what the backward pass has recomputed is no training step
        if not self._stacks:
            return
        # A fresh generator for every step: there is no state to save, and a twin draws the same.
        generator = torch.Generator().manual_seed((self.seed + 0x9E3779B97F4A7C15 * trainer.global_step) % 2**63)
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        parameters: dict[str, list[Parameter]] = {}
        added: dict[str, list[Tensor]] = {}
        several = trainer.world_size > 1
        for name, stacks in self._stacks.items():
            all_of_it = stacks[0].layers[0].module.parameters()
            trained = [p for p in all_of_it if p.requires_grad and p.grad is not None and id(p) in held]
            if trained and (found := self._gradient(name, trained, runs.get(name), generator, several)):
                parameters[name], added[name] = trained, found
        if several and added:
            added = _mean(added)
        scaler: Any = getattr(trainer.precision_plugin, "scaler", None)
        inner = getattr(optimizer, "optimizer", optimizer)
        scaled = scaler is not None and getattr(inner, "_step_supports_amp_scaling", False)
        for name, (*gradients, difference, count) in added.items():
            finite = torch.stack([gradient.isfinite().all() for gradient in gradients]).all()
            for parameter, gradient in zip(parameters[name], gradients, strict=True):
                assert parameter.grad is not None
                gradient = gradient.where(finite, torch.zeros_like(gradient))
                # An optimizer that divides by the scale itself, such as a fused one, has scaled gradients here.
                gradient = scaler.scale(gradient) if scaled else gradient
                parameter.grad.add_(gradient.to(parameter.grad.dtype))
            if self._logs:
                pl_module.log(f"penalty/{name}/loss", difference / count)

    def _gradient(
        self, name: str, parameters: list[Parameter], run: Run | None, generator: torch.Generator, several: bool
    ) -> list[Tensor]:
        """The gradients, the difference, and 1; where nothing restarts nothing, or zeros for the mean of several."""
        difference = None
        if run is not None:
            with torch.enable_grad():
                difference = restart_difference(
                    self._stacks[name], run.inputs, run.state, self.window, self.num_restarts, generator
                )
        if difference is None:
            zero = torch.zeros((), device=parameters[0].device)
            return [*map(torch.zeros_like, parameters), zero, zero] if several else []
        self._without.discard(name)
        gradients = torch.autograd.grad(self.weight * difference, parameters, allow_unused=True, materialize_grads=True)
        return [*gradients, difference.detach(), torch.ones_like(difference)]

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn of modules that never held a place to restart."""
        if self._without and self._logs:
            rank_zero_warn(
                f"TruncationPenaltyCallback(window={self.window}) did nothing for {sorted(self._without)} in this "
                "epoch: no differentiated call had more inputs than the window (of bidirectional modules, than twice "
                "the window less one), or the optimizer trains none of their parameters. Lower `window`, or train on "
                "longer sequences."
            )
            self._without = set()


def _mean(values: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    """The mean over all processes, which all have the same names and shapes, in one message."""
    tensors = [tensor for group in values.values() for tensor in group]
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    flat = torch.cat([tensor.detach().to(dtype).flatten() for tensor in tensors])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    parts = iter(torch.split(flat, [tensor.numel() for tensor in tensors]))
    return {
        name: [part.view_as(tensor) for tensor, part in zip(group, parts, strict=False)]
        for name, group in values.items()
    }
