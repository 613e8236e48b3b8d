"""The tests that every cell of this package passes, for a cell of your own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_stable import certify, project_, truncate
from lightning_stable.callbacks import StabilityProjectionCallback
from lightning_stable.recurrence import Recurrence, recurrences_of
from lightning_stable.stability import StabilityReport
from lightning_stable.stability.inputs.resolve import Layer, resolve_sources, walk_layers
from lightning_stable.stability.inputs.sets import InputBound
from lightning_stable.testing.search import comparison_ratio, contraction_ratio

_TIME, _BATCH = 9, 3
_ROUNDING = 1e-9


class RecurrenceTests:
    """Tests of a recurrent module and its adapter, for pytest: inherit from it and make the module.

    What is claimed of the module is checked by what the module computes: its step, its contraction in every norm
    (attacked by gradient ascent in float64), its projection, its windows, its comparison map, and a training that is
    stopped and goes on.

    Attributes:
        input_bound: What is known about the inputs, as in :func:`~lightning_stable.certify`.
        rate: The target of projections; they end there if the module begins outside.
        window: The window of the truncated module.
        state_bound: The largest entry of a start state.
        pairs: Pairs of states of an attack.
        steps: Steps of the ascent of an attack.
        tolerance: How far below the target a projection may end.

    Example:
        >>> class TestMyCell(RecurrenceTests):
        ...     input_bound = 1.0
        ...
        ...     def make_module(self):
        ...         return nn.GRU(3, 5)
    """

    input_bound: InputBound = None
    rate: float = 0.9
    window: int = 4
    state_bound: float = 1.0
    pairs: int = 48
    steps: int = 40
    tolerance: float = 1e-3

    def make_module(self) -> nn.Module:
        """Return a module with fresh weights: a layer or several that take sequences, or a cell that takes a step."""
        raise NotImplementedError("A class that inherits from RecurrenceTests must have a method `make_module`.")

    # ------------------------------------------------------------------ tests
    def test_the_adapter_steps_as_the_module(self) -> None:
        """Layer by layer, the adapter's steps give the module's outputs."""
        module = self._module()
        inputs = self._inputs(module)
        torch.testing.assert_close(_by_steps(module, inputs), _run(module, inputs), rtol=0, atol=_ROUNDING)

    def test_no_pair_of_states_contracts_less_than_certified(self) -> None:
        """In every norm, before and after a projection."""
        for module in (self._module(), self._projected()):
            for layer in self._layers(module):
                for norm in layer.recurrence.norms:
                    contraction = layer.contraction(norm)
                    if not contraction.rate.isfinite():  # nothing is claimed
                        continue
                    found = contraction_ratio(layer, contraction, pairs=self.pairs, steps=self.steps, seed=0)
                    rate = float(contraction.rate)
                    assert found <= rate * (1 + _ROUNDING), (
                        f"{layer.recurrence.name} is certified to contract at {rate:.6g} in the norm {norm!r}; a step "
                        f"was found that expands a difference of two states by {found:.6g}."
                    )

    def test_something_is_certified(self) -> None:
        """A rate that is infinite promises nothing; gated cells need an ``input_bound``."""
        assert self._projected_report(self._module()).is_stable

    def test_the_projection_ends_at_the_target_and_stays(self) -> None:
        """Weights outside are moved to the target and no further; weights inside are left alone, bit for bit."""
        module = self._module()
        outside = self._certify(module).rate > self.rate
        report = self._projected_report(module)
        assert report.rate <= self.rate
        if outside:
            assert report.rate >= self.rate - self.tolerance, f"The projection went on to {report.rate:.6g}."
        before = copy.deepcopy(module.state_dict())
        self._projected_report(module)
        self._projected_report(module, (1 + self.rate) / 2)
        for name, value in module.state_dict().items():
            assert torch.equal(value, before[name]), f"{name} was inside and was moved."

    def test_a_looser_target_moves_less(self) -> None:
        """The distance of the weights before and after a projection does not grow with the rate."""
        distances = []
        for rate in (self.rate, (1 + self.rate) / 2):
            module = self._module()
            before = [value.detach().clone() for value in module.parameters()]
            self._projected_report(module, rate)
            moved = [(new - old).square().sum() for new, old in zip(module.parameters(), before, strict=True)]
            distances.append(float(torch.stack(moved).sum().detach().sqrt()))
        assert distances[1] <= distances[0] * (1 + 1e-6)

    def test_windows_are_exact(self) -> None:
        """An output of the truncated module is that of the module, started from zero with the inputs of its window."""
        module = self._module()
        inputs = self._inputs(module)
        whole = _run(truncate(copy.deepcopy(module), self.window), inputs)
        for time in range(_TIME):
            first = max(0, time + 1 - self.window)
            last = time + self.window if _is_bidirectional(module) else time + 1
            alone = _run(module, inputs[first:last])[time - first]
            torch.testing.assert_close(whole[time], alone, rtol=0, atol=_ROUNDING)

    def test_certified_windows_hold(self) -> None:
        """No truncated run is further from the whole one than the certificate says."""
        module = self._projected()
        (bounds,) = self._certify(module).bounds
        if bounds.guarantee == "none":
            pytest.skip("The adapter certifies no windows: it has no state_box.")
        inputs, errors = self._inputs(module, 4 * _TIME), bounds.errors(2 * _TIME)
        whole = _run(module, inputs)
        for window in (1, 2, self.window, 2 * _TIME):
            apart = _run(truncate(copy.deepcopy(module), window), inputs) - whole
            assert apart.norm(dim=-1).max() <= errors[window - 1] * (1 + _ROUNDING) + _ROUNDING

    def test_the_comparison_map_bounds_every_step(self) -> None:
        """For pairs of states and of inputs, entry by entry."""
        compared = [layer for layer in self._layers(self._projected()) if _comparison(layer)]
        if not compared:
            pytest.skip("The adapter has no comparison map.")
        for layer in compared:
            found = comparison_ratio(layer, pairs=self.pairs, steps=self.steps, seed=0)
            assert found <= 1 + _ROUNDING, (
                f"The comparison map of {layer.recurrence.name} was left: an entry changed by {found:.6g} times as "
                "much as the map allows."
            )

    def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(self, tmp_path: Path) -> None:
        """With the projection after every step; all weights are equal, bit for bit."""
        whole = self._trained(tmp_path / "whole", 2)
        self._trained(tmp_path / "parts", 1)
        parts = self._trained(tmp_path / "parts", 2, ckpt_path=str(tmp_path / "parts" / "last.ckpt"))
        for name, value in parts.state_dict().items():
            assert torch.equal(value, whole.state_dict()[name]), f"{name} differs after a resume."

    # ---------------------------------------------------------------- helpers
    def _module(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make_module().double()

    def _inputs(self, module: nn.Module, time: int = _TIME) -> Tensor:
        """Admissible inputs, shape ``(time, batch, features)``."""
        layer = self._layers(module)[0]
        generator = torch.Generator().manual_seed(0)
        count, size = time * _BATCH, layer.recurrence.input_size
        directions = torch.randn(count, size, generator=generator, dtype=torch.float64)
        known = layer.inputs
        values = directions if known is None else known.maximizer(directions)
        return values.view(time, _BATCH, size)

    def _certify(self, module: nn.Module) -> StabilityReport:
        return certify(module, input_bound=self.input_bound, state_bound=self.state_bound)

    def _projected_report(self, module: nn.Module, rate: float | None = None) -> StabilityReport:
        return project_(
            module,
            self.rate if rate is None else rate,
            input_bound=self.input_bound,
            state_bound=self.state_bound,
        )

    def _projected(self) -> nn.Module:
        module = self._module()
        self._projected_report(module)
        return module

    def _layers(self, module: nn.Module) -> list[Layer]:
        recurrences = recurrences_of(module)
        sources = resolve_sources(module, recurrences, self.input_bound, state_bound=self.state_bound)
        return list(walk_layers(recurrences, sources, self.state_bound))

    def _trained(self, folder: Path, epochs: int, ckpt_path: str | None = None) -> nn.Module:
        torch.manual_seed(0)
        module = self.make_module()
        inputs = self._inputs(module.double()).float()
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            default_root_dir=folder,
            callbacks=[StabilityProjectionCallback(self.rate, input_bound=_for_core(self.input_bound))],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        model = _Trained(module.float())
        batches: Any = [inputs, inputs.flip(0)]
        trainer.fit(model, torch.utils.data.DataLoader(batches, batch_size=None), ckpt_path=ckpt_path)
        trainer.save_checkpoint(folder / "last.ckpt")
        return model


class _Trained(LightningModule):
    """Learns the sum of its inputs so far."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core = core

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        outputs = _run(self.core, batch)
        error: Tensor = outputs.sum(-1) - batch.sum(-1).cumsum(0)
        return error.square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.05)


def _for_core(bound: InputBound) -> InputBound:
    """Return a bound by the names inside a model whose attribute is the module."""
    if isinstance(bound, dict):
        return {f"core.{name}" if name else "core": value for name, value in bound.items()}
    return bound


def _comparison(layer: Layer) -> bool:
    recurrence = layer.recurrence
    box = recurrence.state_box(layer.weights, layer.drive, layer.state_bound)
    return box is not None and recurrence.comparison(layer.weights, layer.drive, layer.state_bound) is not None


def _is_bidirectional(module: nn.Module) -> bool:
    return any(recurrence.direction == "backward" for recurrence in recurrences_of(module))


def _run(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return the module's own outputs for ``(time, batch, features)``, from zero."""
    recurrence = recurrences_of(module)[0]
    if recurrence.takes_sequences:
        first = getattr(module, "batch_first", False)
        outputs, _ = module(inputs.transpose(0, 1) if first else inputs)
        return outputs.transpose(0, 1) if first else outputs  # type: ignore[no-any-return]
    return torch.stack(list(_cell_outputs(module, recurrence, inputs)))


def _cell_outputs(module: nn.Module, recurrence: Recurrence, inputs: Tensor) -> Iterator[Tensor]:
    state: Any = recurrence.initial_state(inputs[0])[: recurrence.state_parts]
    state = state if len(state) > 1 else state[0]
    for step in inputs:
        state = module(step, state)
        yield state[0] if isinstance(state, tuple) else state


def _by_steps(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return what the adapters' steps make of the inputs, one layer after the other."""
    recurrences = recurrences_of(module)
    for depth in range(1 + max(recurrence.layer for recurrence in recurrences)):
        here = [recurrence for recurrence in recurrences if recurrence.layer == depth]
        inputs = torch.cat([_directed(recurrence, inputs) for recurrence in here], dim=-1)
    return inputs


def _directed(recurrence: Recurrence, inputs: Tensor) -> Tensor:
    forward = recurrence.direction == "forward"
    state, outputs = recurrence.initial_state(inputs[0]), []
    for step in inputs if forward else inputs.flip(0):
        state = recurrence.step(step, state)
        outputs.append(recurrence.output(state))
    return torch.stack(outputs if forward else outputs[::-1])
