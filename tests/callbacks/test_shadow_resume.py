"""Checkpoints of the twin, resumed runs, and what is left after a fit or an exception."""

import copy
import pickle
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn

from lightning_stable.callbacks import FeedForwardShadowCallback
from lightning_stable.hooks import Hook, _nothing
from lightning_stable.truncation import Windowed, truncate
from tests.callbacks.shadows import (
    WHOLE,
    Loader,
    Noisy,
    Scheduled,
    adam,
    data,
    every_epoch,
    fit,
    half,
    plateau,
    projection,
    seed,
    state,
    two_schedulers,
)
from tests.helpers import FEATURES, equal, resumes_inside_an_epoch, sequences, trainer, weights


def test_a_checkpoint_in_the_middle_of_a_batch(tmp_path: Path) -> None:
    """A callback before ours saves when the model has made its step and the twin has not."""

    class Save(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 2:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    def settings() -> list[L.Callback]:
        return [projection(every_n_steps=3), FeedForwardShadowCallback(WHOLE)]

    model, callbacks = Noisy(growth=1.0), settings()
    fit(model, tmp_path, Save(), *callbacks, enable_checkpointing=True)
    assert equal(weights(model), weights(callbacks[1].twin))
    content = torch.load(tmp_path / "middle.ckpt", weights_only=True)
    saved = content["callbacks"][callbacks[1].state_key]["checkpoint"]["state_dict"]
    # The model's weights are projected copies there, and those that it is trained on lie beside them.
    trained = content["callbacks"][callbacks[0].state_key]["unprojected"]
    assert trained
    for name, value in trained.items():
        layer, role = name.removeprefix("core.").split("/")
        assert not torch.equal(content["state_dict"][f"core.{role}_{layer}"], value)
        content["state_dict"][f"core.{role}_{layer}"] = value
    assert equal(saved, content["state_dict"])


class Seeded(Scheduled):
    """Its random numbers depend on the batch alone, as Lightning saves no generators."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        L.seed_everything(100 * self.trainer.current_epoch + batch_idx, verbose=False)
        super().on_train_batch_start(batch, batch_idx)
        self.batches = getattr(self, "batches", 0) + 1

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        # The twins' scalers have a history of their own.
        overflows = batch_idx == 1 and isinstance(self.core, Windowed) and str(self.trainer.precision) == "16-mixed"
        return super().training_step(batch, batch_idx) * (float("inf") if overflows else 1.0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["batches"] = self.batches
        checkpoint["renamed"] = checkpoint.pop("state_dict")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.batches = checkpoint["batches"]
        checkpoint["state_dict"] = checkpoint.pop("renamed")


STEPS, EPOCHS = (two_schedulers, {}), (every_epoch, {"accumulate_grad_batches": 3})


PLATEAU, HALF = (plateau("val_loss"), {}), (two_schedulers, {"half": True})


PROJECT = (every_epoch, {"project": 2})


# Lightning itself does not resume a plateau's scheduler exactly within a run: it leaves out the next epoch's step.
@pytest.mark.parametrize(
    ("setting", "stop", "late"),
    [
        (STEPS, "middle", False),
        (STEPS, "end", True),
        (EPOCHS, "middle", True),
        (EPOCHS, "after", False),
        (PLATEAU, "after", False),
        (HALF, "middle", False),
        (HALF, "end", False),
        (PROJECT, "middle", True),
        (PROJECT, "end", False),
        (PROJECT, "after", False),
    ],
    ids=lambda value: value[0].__qualname__.partition(".")[0] if isinstance(value, tuple) else str(value),
)
def test_resumed_equals_uninterrupted(
    setting: tuple[Any, dict[str, Any]], stop: str, late: bool, tmp_path: Path
) -> None:
    """Bit for bit: model, both twins, and all that is in the checkpoint."""
    if stop == "middle" and not resumes_inside_an_epoch:
        pytest.skip("needs Lightning 2.6")
    make, settings = setting[0], dict(setting[1])
    with_half, every = settings.pop("half", False), settings.pop("project", 0)

    class Late(SingleDeviceStrategy):
        restore_checkpoint_after_setup = True

    def run(folder: str, ckpt: Path | None = None, **kwargs: Any) -> tuple[Any, ...]:
        core = "gru" if with_half else "lstm"  # of which there is no half-precision form on a CPU
        model = Seeded(make, core=core, growth=1.0 if every else 0.0, bounded=not every)
        shadows = [FeedForwardShadowCallback(1), FeedForwardShadowCallback(2)]
        save = ModelCheckpoint(
            tmp_path / folder, "{step}", save_top_k=-1, every_n_train_steps=None if stop == "end" else 4
        )
        others = [projection(every_n_steps=every)] if every else []
        if with_half:
            kwargs["plugins"] = [half(init_scale=2.0, growth_interval=3)]
        if late and ckpt is not None:
            kwargs["strategy"] = Late("cpu")
        seed()
        fitting = trainer(tmp_path, *shadows, *others, save, **({"max_epochs": 3} | settings | kwargs))
        fitting.fit(model, Loader(6), sequences(2), ckpt_path=ckpt)
        return fitting, model, *shadows

    steps = -(-6 // settings.get("accumulate_grad_batches", 1))
    name = {"middle": f"step={8 if steps == 6 else 4}", "end": f"step={steps}", "after": "after"}[stop]
    if stop == "after":
        run("whole", max_epochs=2)[0].save_checkpoint(tmp_path / "whole" / "after.ckpt")
    whole = run("whole")
    resumed = run("resumed", tmp_path / "whole" / f"{name}.ckpt")
    assert resumed[0].global_step == whole[0].global_step == 3 * steps
    assert equal(state(resumed[1]), state(whole[1]))
    for first, second in zip(resumed[2:], whole[2:], strict=True):
        assert equal(state(first.twin), state(second.twin))
        assert first.twin.batches == second.twin.batches == 18
        ours, theirs = first.state_dict(), second.state_dict()
        for values in (ours, theirs):
            assert values.pop("values")
        assert str(ours) == str(theirs)
        assert not equal(state(first.twin), state(resumed[1]))
    assert not equal(state(resumed[2].twin), state(resumed[3].twin))
    assert not resumed[0].callback_metrics["shadow/k=1/val_weight_distance_relative"].isnan()


class Rebuilt(Noisy):
    """Its hooks read the whole checkpoint, and make its recurrent layer anew."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__(num_layers=layers)
        self.save_hyperparameters()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        L.seed_everything(batch_idx, verbose=False)
        super().on_train_batch_start(batch, batch_idx)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["hyper_parameters"].update(units=self.core.hidden_size)
        checkpoint["steps"] = checkpoint["global_step"], len(checkpoint["optimizer_states"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        arguments = checkpoint["hyper_parameters"]
        self.steps = checkpoint["steps"]
        self.core = nn.LSTM(FEATURES, arguments["units"], arguments["layers"], batch_first=True, dropout=0.2)


def test_hooks_of_the_twin_see_a_whole_checkpoint(tmp_path: Path) -> None:
    """A layer that they make anew is trained, and has the window."""

    def run(epochs: int, ckpt: Path | None = None) -> tuple[L.Trainer, Any, FeedForwardShadowCallback]:
        model, ours = Rebuilt(), FeedForwardShadowCallback(2)
        fitting = trainer(tmp_path, ours, projection(), max_epochs=epochs)
        fitting.fit(model, Loader(6), sequences(2), ckpt_path=ckpt)
        return fitting, model, ours

    run(1)[0].save_checkpoint(tmp_path / "first.ckpt")
    _, model, ours = run(2)
    _, resumed, twins = run(2, tmp_path / "first.ckpt")
    assert resumed.steps == twins.twin.steps == (6, 1)
    assert isinstance(twins.twin.core, Windowed)
    assert not isinstance(resumed.core, Windowed)
    assert equal(weights(resumed), weights(model))
    assert equal(weights(twins.twin), weights(ours.twin))


def test_a_hook_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    class Failing(Noisy):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            raise KeyError("as planned")

    model, ours = Failing(), FeedForwardShadowCallback(1)
    with pytest.raises(KeyError, match="as planned"):
        fit(model, tmp_path, ours)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert "log" not in vars(ours.twin)


def test_callbacks_have_states_of_their_own(tmp_path: Path) -> None:
    shadows = [
        FeedForwardShadowCallback(1),
        FeedForwardShadowCallback(2),
        FeedForwardShadowCallback(1, name="other"),
        FeedForwardShadowCallback(1, name="given", twin=Noisy),
    ]
    run = fit(Noisy(), tmp_path, *shadows)
    run.save_checkpoint(tmp_path / "model.ckpt")
    states = torch.load(tmp_path / "model.ckpt", weights_only=True)["callbacks"]
    assert set(states) == {shadow.state_key for shadow in shadows}
    for shadow in shadows:
        assert equal(states[shadow.state_key]["checkpoint"]["state_dict"], shadow.twin.state_dict())


def test_a_checkpoint_from_before_the_callback(tmp_path: Path) -> None:
    """The twin then starts where the model stands, with its optimizer and schedule."""
    run = trainer(tmp_path, max_epochs=1)
    run.fit(Seeded(every_epoch), Loader(6))
    run.save_checkpoint(tmp_path / "model.ckpt")
    model, ours = Seeded(every_epoch), FeedForwardShadowCallback(WHOLE)
    run = trainer(tmp_path, ours, max_epochs=3)
    run.fit(model, Loader(6), ckpt_path=tmp_path / "model.ckpt")
    assert run.global_step == 18
    assert equal(weights(model), weights(ours.twin))


def test_two_fits_with_one_callback(tmp_path: Path) -> None:
    model, ours = Noisy(optimizer=adam), FeedForwardShadowCallback(WHOLE)
    run = fit(model, tmp_path, ours)
    first = ours.twin
    run.fit_loop.max_epochs = 4
    run.fit(model, *data())
    assert ours.twin is not first
    assert equal(weights(ours.twin), weights(model))
    assert not equal(weights(first), weights(model))
    fit(Noisy("gru"), tmp_path, ours)
    assert isinstance(ours.twin.core, nn.GRU)


@pytest.mark.parametrize("what", ["fit", "validate", "sanity check"])
def test_nothing_is_lost_where_nothing_is_trained(what: str, tmp_path: Path) -> None:
    """A state that was loaded is saved again."""
    if what == "validate" and not resumes_inside_an_epoch:
        pytest.skip("Lightning 2.4 gives callbacks their state in a fit alone")

    class Fails(Seeded):
        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            raise RuntimeError("as planned")

    def run(epochs: int, ckpt: str | None = None, kind: type[Seeded] = Seeded) -> tuple[L.Trainer, Any, Any]:
        model, ours = kind(every_epoch), FeedForwardShadowCallback(1)
        fitting = trainer(tmp_path, ours, OnExceptionCheckpoint(tmp_path, "exception"), max_epochs=epochs)
        if what == "validate" and epochs == 1 and ckpt:
            fitting.validate(model, sequences(2), ckpt_path=tmp_path / ckpt, verbose=False)
        else:
            fitting.fit(model, Loader(6), sequences(2), ckpt_path=ckpt and tmp_path / ckpt)
        return fitting, model, ours

    run(1)[0].save_checkpoint(tmp_path / "first.ckpt")
    if what == "sanity check":
        with pytest.raises(RuntimeError, match="as planned"):
            run(2, "first.ckpt", Fails)
        (tmp_path / "exception.ckpt").rename(tmp_path / "again.ckpt")
    else:
        run(1, "first.ckpt")[0].save_checkpoint(tmp_path / "again.ckpt")
    first, again = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("first", "again"))
    assert str(again["callbacks"]) == str(first["callbacks"])
    if what == "fit":
        whole, resumed = run(2)[-1], run(2, "again.ckpt")[-1]
        assert equal(state(resumed.twin), state(whole.twin))


class Undetached(Noisy):
    """Keeps states with their history, detached at the beginning of the next step only."""

    kept: Any = None

    def loss(self, batch: Tensor) -> Tensor:
        before = None if self.kept is None else tuple(value.detach() for value in self.kept["now"][0])
        output, after = self.core(batch, before)
        if self.training:
            self.kept = {"now": [after]}
        return self.head(output).square().mean()


def test_a_state_with_history_is_copied(tmp_path: Path) -> None:
    model, ours = Undetached(), FeedForwardShadowCallback(WHOLE)
    run = fit(model, tmp_path, ours)
    run.fit_loop.max_epochs = 4
    run.fit(model, *data())
    assert equal(weights(ours.twin), weights(model))
    assert model.kept["now"][0][0].grad_fn is not None


def test_the_twin_is_an_ordinary_module_afterwards(tmp_path: Path) -> None:
    ours, model = FeedForwardShadowCallback(1), Noisy()
    assert ours.twin is None
    run = fit(model, tmp_path, ours)
    with pytest.raises(RuntimeError, match="not attached"):
        _ = ours.twin.trainer
    assert "log" not in vars(ours.twin)
    (values,) = trainer(tmp_path).test(ours.twin, sequences(), verbose=False)
    (others,) = trainer(tmp_path).test(model, sequences(), verbose=False)
    assert values["test_loss"] != others["test_loss"]
    fresh = Noisy()
    fresh.load_state_dict(ours.twin.state_dict())
    assert equal(weights(truncate(fresh, 1)), weights(ours.twin))
    assert run.lightning_module is model
    before = weights(ours.twin)
    run.validate(model, sequences(), verbose=False)
    run.test(model, sequences(), verbose=False)
    assert equal(before, weights(ours.twin))


@pytest.mark.parametrize("where", ["training_step", "validation_step", "on_validation_epoch_end"])
@pytest.mark.parametrize("who", ["model", "twin"])
def test_exceptions_leave_nothing_behind(where: str, who: str, tmp_path: Path) -> None:
    class Failing(Noisy):
        fails = True

        def fail(self, name: str) -> None:
            own = type(self.core) is nn.LSTM
            if self.fails and name == where and own == (who == "model") and not self.trainer.sanity_checking:
                raise RuntimeError("as planned")

        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            if batch_idx == 5:
                self.fail("training_step")
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            self.fail("validation_step")

        def on_validation_epoch_end(self) -> None:
            self.fail("on_validation_epoch_end")

    model, shadows = Failing(), [FeedForwardShadowCallback(1), FeedForwardShadowCallback(WHOLE)]
    with pytest.raises(RuntimeError, match="as planned"):
        fit(model, tmp_path, *shadows, projection(), OnExceptionCheckpoint(tmp_path))
    assert "log" not in vars(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for hooks in ((*m._forward_hooks.values(), *m._forward_pre_hooks.values()) for m in shadows[0].twin.modules()):
        assert all(isinstance(hook, Hook) and hook._function is _nothing for hook in hooks)  # of the model it copied
    assert "log" not in vars(shadows[0].twin)
    saved = torch.load(tmp_path / "on_exception.ckpt", weights_only=True)["callbacks"]
    assert {shadow.state_key for shadow in shadows} <= saved.keys()
    model.fails = False
    fit(model, tmp_path, *shadows)
    assert equal(weights(model), weights(shadows[1].twin))


def test_pickles_before_and_after_a_fit(tmp_path: Path) -> None:
    ours = FeedForwardShadowCallback(3, name="x")
    again = pickle.loads(pickle.dumps(ours))
    assert again.__dict__ == ours.__dict__
    fit(Scheduled(every_epoch), tmp_path, again)
    for copied in (copy.deepcopy(again), pickle.loads(pickle.dumps(again))):
        assert copied.twin is None  # it is as large as the model
        assert (copied.window, copied.name) == (3, "x")
