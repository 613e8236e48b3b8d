"""What a certificate rests on is checked at every forward of a run, and what leaves it takes the guarantee back."""

import math
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_stable.callbacks import StabilityProjectionCallback, StableModelCheckpoint
from tests.callbacks.projections import RATE, projection, rate
from tests.helpers import FEATURES, UNITS, Recurrent, Sequences, sequences, trainer


def fit(
    model: Recurrent, path: Path, *callbacks: Any, data: Any = None, **kwargs: Any
) -> tuple[StabilityProjectionCallback, list[str]]:
    """Fit and return the projection and the warnings about premises."""
    ours = callbacks[0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(path, *callbacks, num_sanity_val_steps=0, **kwargs).fit(model, data or sequences(), sequences())
    messages = [str(w.message) for w in caught]
    return ours, [m for m in messages if "does not cover this run" in m or "step hooks" in m]


# Inputs ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch", range(5))
def test_one_batch_outside_is_enough(batch: int, tmp_path: Path) -> None:
    """Whichever it is: none of them is a logging step."""
    data = Sequences(10)
    data.data.clamp_(-1, 1)
    data.data[2 * batch] *= 3 / data.data[2 * batch, :-1].abs().max()
    ours, messages = fit(
        Recurrent("gru", bounded=False),
        tmp_path,
        projection(input_bound=1.0),
        data=DataLoader(data, batch_size=2),
        log_every_n_steps=50,
        limit_val_batches=0,
    )
    assert ours.report is not None
    assert ours.report.guarantee == "none"
    assert not ours.report.is_stable
    assert ours.report.input_excess == pytest.approx(2.0, rel=1e-4)
    assert ours.report.required_window(0.1) is None
    assert "Pass a larger `input_bound`" in str(ours.report.layers[0].reason)
    assert len(messages) == 1


def test_inputs_inside_leave_the_guarantee(tmp_path: Path) -> None:
    ours, messages = fit(Recurrent("lstm", num_layers=2), tmp_path, projection(input_bound=2.0), max_epochs=2)
    assert ours.report is not None
    assert [layer.guarantee for layer in ours.report.layers] == ["guaranteed", "guaranteed"]
    assert (ours.report.input_excess, messages) == (0.0, [])


def test_the_excess_is_logged(tmp_path: Path) -> None:
    run = trainer(tmp_path, projection(input_bound=0.5), num_sanity_val_steps=0)
    run.fit(Recurrent("gru"), sequences(), sequences())
    assert run.callback_metrics["stability/input_excess"].item() == pytest.approx(1.5, rel=1e-4)


def test_inputs_that_are_no_numbers(tmp_path: Path) -> None:
    data = Sequences(6)
    data.data[2, 0, 0] = math.nan

    class Careful(Recurrent):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            with torch.no_grad():
                self(batch)
            return self.head.weight.square().sum()  # the weights stay finite

    loader = DataLoader(data, batch_size=2)
    ours, messages = fit(Careful("gru"), tmp_path, projection(input_bound=2.0), data=loader)
    assert ours.report is not None
    assert (ours.report.guarantee, ours.report.input_excess) == ("none", math.inf)
    assert len(messages) == 1


def test_a_derived_set_that_training_goes_past(tmp_path: Path) -> None:
    class Past(Recurrent):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.core(3 * batch)[0].square().mean()

    ours, messages = fit(Past("gru"), tmp_path, projection(), limit_val_batches=0)
    assert ours.report is not None
    assert ours.report.guarantee == "none"
    assert ours.report.input_excess > 0.1
    assert len(messages) == 1


def test_inputs_in_the_box_of_a_table_that_are_no_rows(tmp_path: Path) -> None:
    """The box of their entries does not show it; products with the weights do, where a report follows."""

    class Words(Recurrent):
        def __init__(self) -> None:
            super().__init__("gru", bounded=False)
            rows = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -1, -1]])
            self.table = nn.Embedding.from_pretrained(rows)

        def forward(self, x: Tensor) -> Tensor:
            if not hasattr(self, "table"):  # while the base is made
                return super().forward(x)
            return self.head(self.core(self.table(x.long()))[0])

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            inside_the_box = torch.ones_like(batch)  # (1, 1, 1) is no mean of the rows
            return self.core(inside_the_box)[0].square().mean()

    ours, _ = fit(Words(), tmp_path, projection(), log_every_n_steps=1, limit_val_batches=0)
    assert ours.report is not None
    assert ours.report.guarantee == "none"


def test_a_checkpoint_is_not_certified_for_a_run_that_left(tmp_path: Path) -> None:
    best = StableModelCheckpoint(dirpath=tmp_path, monitor="val_loss")
    with pytest.warns(UserWarning, match="kept nothing"):
        trainer(tmp_path, projection(input_bound=0.5), best).fit(Recurrent("gru"), sequences(), sequences())
    assert best.report is not None
    assert best.report.guarantee == "none"


@pytest.mark.parametrize(
    ("guaranteed", "derived", "bound", "kept"),
    [(True, False, 2.0, True), (True, False, None, False), (True, True, None, True), (False, False, None, True)],
)
def test_which_guarantee_is_enough(
    guaranteed: bool, derived: bool, bound: float | None, kept: bool, tmp_path: Path
) -> None:
    best = StableModelCheckpoint(dirpath=tmp_path, monitor="val_loss", guaranteed=guaranteed, derived=derived)
    trainer(tmp_path, projection(input_bound=bound), best).fit(Recurrent("gru"), sequences(), sequences())
    assert bool(best.best_model_path) == kept


# Start states ---------------------------------------------------------------------------------------------------------
class Started(Recurrent):
    """A learned start state, as forecasting models have."""

    def __init__(self, cell: str, size: float) -> None:
        super().__init__(cell)
        self.start = nn.Parameter(torch.full((1, 1, UNITS), size))

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "start"):  # while the base is made
            return super().forward(x)
        start = self.start.expand(-1, len(x), -1).contiguous()
        state = (start, start) if isinstance(self.core, nn.LSTM) else start
        return self.head(self.core(x.clamp(-2, 2), state)[0])


@pytest.mark.parametrize("cell", ["lstm", "gru", "ugrnn"])
@pytest.mark.parametrize(("size", "state_bound", "guarantee"), [(2.4, 1.0, "none"), (2.4, 3.0, "guaranteed")])
def test_start_states(cell: str, size: float, state_bound: float, guarantee: str, tmp_path: Path) -> None:
    ours, messages = fit(Started(cell, size), tmp_path, projection(input_bound=2.0, state_bound=state_bound))
    assert ours.report is not None
    assert ours.report.guarantee == guarantee
    assert len(messages) == (guarantee == "none")
    if guarantee == "none":
        assert "`state_bound`" in str(ours.report.layers[0].reason)


def test_a_start_state_outside_takes_the_windows_of_a_plain_network(tmp_path: Path) -> None:
    """Its rate holds in every state."""
    ours, messages = fit(Started("rnn", 2.4), tmp_path, projection(input_bound=2.0))
    assert ours.report is not None
    assert ours.report.guarantee == "guaranteed"
    assert ours.report.required_window(0.1) is None
    assert len(messages) == 1
    assert "`state_bound`" in messages[0]


@pytest.mark.parametrize("cell", ["lstm", "gru", "ugrnn"])
def test_runs_from_zero_only(cell: str, tmp_path: Path) -> None:
    ours, messages = fit(Started(cell, 0.9), tmp_path, projection(input_bound=2.0, state_bound=0.0))
    assert ours.report is not None
    assert ours.report.guarantee == "none"
    assert len(messages) == 1


def test_what_was_left_stays_left_after_a_resume(tmp_path: Path) -> None:
    run = trainer(tmp_path, projection(input_bound=0.5), num_sanity_val_steps=0, limit_val_batches=0)
    run.fit(Recurrent("gru"), sequences())
    run.save_checkpoint(tmp_path / "left.ckpt")
    quiet = Sequences(6)
    quiet.data *= 0.01
    ours = projection(input_bound=0.5)
    again = trainer(tmp_path, ours, max_epochs=2, num_sanity_val_steps=0, limit_val_batches=0)
    again.fit(Recurrent("gru"), DataLoader(quiet, batch_size=2), ckpt_path=tmp_path / "left.ckpt")
    assert ours.report is not None
    assert (ours.report.guarantee, ours.report.input_excess) == ("none", pytest.approx(1.5, rel=1e-4))


def test_a_module_whose_forward_was_never_seen(tmp_path: Path) -> None:
    class Functional(Recurrent):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.core.forward(batch)[0].square().mean()

    ours, messages = fit(Functional("gru"), tmp_path, projection(input_bound=2.0), limit_val_batches=0)
    assert ours.report is not None
    assert ours.report.guarantee == "none"
    assert len(messages) == 1
    assert "no forward of it was seen" in messages[0]


@pytest.mark.parametrize("called_before", [True, False])
def test_a_compiled_model(called_before: bool, tmp_path: Path) -> None:
    """One that was called before the fit goes past the hooks: nothing is claimed then, either."""
    torch._dynamo.reset()
    model = Recurrent("gru", bounded=False)
    compiled = torch.compile(model, backend="eager")
    if called_before:
        compiled(torch.zeros(2, 5, FEATURES))
    model.training_step = lambda batch, batch_idx: compiled(batch).square().mean()
    ours, messages = fit(model, tmp_path, projection(input_bound=0.5), limit_val_batches=0)
    torch._dynamo.reset()
    assert ours.report is not None
    assert ours.report.guarantee == "none"
    assert ours.report.input_excess > 1 or called_before
    assert len(messages) == 1


def test_a_state_that_is_carried_on_is_admissible(tmp_path: Path) -> None:
    class Carrying(Recurrent):
        state: Any = None

        def forward(self, x: Tensor) -> Tensor:
            output, state = self.core(x.clamp(-2, 2), self.state)
            self.state = tuple(part.detach() for part in state)
            return self.head(output)

        def on_validation_epoch_start(self) -> None:
            self.state = None

    model = Carrying("lstm", optimizer=lambda p: torch.optim.SGD(p, lr=0.01))
    model.state = None
    ours, messages = fit(model, tmp_path, projection(input_bound=2.0, rate=0.99), data=sequences(12))
    assert ours.report is not None
    assert (ours.report.guarantee, messages) == ("guaranteed", [])


# Weights --------------------------------------------------------------------------------------------------------------
def test_other_weights_than_the_stored_ones(tmp_path: Path) -> None:
    class Perturbed(Recurrent):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            changed = {"core.weight_hh_l0": 3 * self.core.weight_hh_l0}
            return torch.func.functional_call(self, changed, (batch,)).square().mean()

    ours = projection(input_bound=2.0)
    run = trainer(tmp_path, ours, log_every_n_steps=1, limit_val_batches=0)
    with pytest.warns(UserWarning, match=r"used something else in place of its parameter 'weight_hh_l0'"):
        run.fit(Perturbed("gru"), sequences())
    assert ours.report is not None
    assert ours.report.guarantee == "none"


# Steps without hooks --------------------------------------------------------------------------------------------------
class Wrapper(torch.optim.Optimizer):
    """The common style of optimizer wrappers: `step` calls the inner optimizer's function, and no hook."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner
        self.__dict__.update({k: v for k, v in inner.__dict__.items() if k not in ("step", "inner")})
        self._optimizer_step_post_hooks = type(inner._optimizer_step_post_hooks)()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else closure()
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter -= group["lr"] * parameter.grad
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)


class Lookahead(Wrapper):
    """Moves the weights again after the inner optimizer's step, whose hooks are called."""

    def register_step_post_hook(self, hook: Any) -> Any:
        return self.inner.register_step_post_hook(hook)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = self.inner.step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter *= 1.5
        return loss


@pytest.mark.parametrize("wrapper", [Wrapper, Lookahead])
@pytest.mark.parametrize("cell", ["rnn", "gru"])
def test_steps_past_the_hooks_are_projected(cell: str, wrapper: type[Wrapper], tmp_path: Path) -> None:
    rates: list[float] = []

    class Watched(Recurrent):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
            rates.append(rate(self.core, input_bound=2.0))  # the weights that are used
            return super().training_step(batch, batch_idx)

    def wrapped(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return wrapper(torch.optim.SGD(parameters, lr=0.3))

    model = Watched(cell, optimizer=wrapped)
    ours, messages = fit(model, tmp_path, projection(input_bound=2.0), data=sequences(6), limit_val_batches=0)
    assert len(rates) == 6
    assert max(rates) <= RATE * (1 + 1e-5)
    assert (ours.steps, ours.num_projections) == (6, 6)
    (message,) = messages
    assert wrapper.__name__ in message


def test_a_step_made_by_hand(tmp_path: Path) -> None:
    class ByHand(Recurrent):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Callable[[], Any]) -> None:
            closure()
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter.data.add_(parameter.grad, alpha=-0.3)  # past the counts of writes, too
            self.trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.increment_completed()
            self.trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.ready += 1

    model = ByHand("gru")
    ours, _ = fit(model, tmp_path, projection(input_bound=2.0), data=sequences(4), limit_val_batches=0)
    assert ours.num_projections >= 4
    assert rate(model.core, input_bound=2.0) <= RATE * (1 + 1e-5)


def test_hooks_that_are_called_leave_nothing_to_do(tmp_path: Path) -> None:
    ours, messages = fit(Recurrent("gru"), tmp_path, projection(input_bound=2.0, every_n_steps=2), data=sequences(5))
    assert (ours.steps, ours.num_projections, messages) == (5, 2, [])
