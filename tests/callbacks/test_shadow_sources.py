"""Where the twin comes from: copies, given modules and functions, and models that have no twin."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn

from lightning_stable.callbacks import FeedForwardShadowCallback
from lightning_stable.truncation import Windowed, truncate
from tests.callbacks.shadows import WHOLE, Noisy, adam, fit
from tests.helpers import FEATURES, UNITS, Recurrent, equal, weights


class Uncopyable(Noisy):
    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("no copies")


@pytest.mark.parametrize("kind", ["module", "factory", "class", "windowed"])
def test_given_twin(kind: str, tmp_path: Path) -> None:
    """It trains as a copy would, whatever its own weights were."""

    def make() -> Noisy:
        twin = Uncopyable()
        with torch.no_grad():
            for value in twin.parameters():
                value.add_(torch.rand(()))
        return twin

    given = {"module": make(), "factory": make, "class": Uncopyable, "windowed": truncate(Noisy(), 3)}[kind]
    copied, model = FeedForwardShadowCallback(1), Noisy()
    ours = FeedForwardShadowCallback(1, twin=given, name="given")
    fit(model, tmp_path, copied, ours)
    assert isinstance(ours.twin.core, Windowed)
    assert equal(weights(copied.twin), weights(ours.twin))
    assert not equal(weights(copied.twin), weights(model))
    assert (ours.twin is given) == (kind in ("module", "windowed"))


def test_given_twin_is_set_up_as_the_model_is(tmp_path: Path) -> None:
    class Late(Noisy):
        def setup(self, stage: str) -> None:
            self.extra = nn.Linear(2, 2)

        def configure_model(self) -> None:
            self.more = nn.Linear(2, 2)

        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            extra = sum(p.sum() for m in (self.extra, self.more) for p in m.parameters())
            return super().training_step(batch, batch_idx) + extra

    model, ours = Late(), FeedForwardShadowCallback(WHOLE, twin=Late)
    fit(model, tmp_path, ours, precision="64-true")
    assert equal(weights(model), weights(ours.twin))
    assert ours.twin.more.weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("twin", "message"),
    [
        (lambda: Noisy(num_layers=1), r"first mismatch 'core\.weight_ih_l1': shape \(20, 5\) in the model, None in"),
        (lambda: Noisy(num_layers=3), r"first mismatch 'core\.weight_ih_l2': shape None in the model, \(20, 5\) in"),
        (
            lambda: Noisy("gru"),
            r"first mismatch 'core\.weight_ih_l0': shape \(20, 3\) in the model, \(15, 3\) in the t",
        ),
        (lambda: nn.Linear(1, 1), r"`twin` must be a LightningModule of its own.* Got Linear"),
        (lambda window: Noisy(), r"`twin` must be a LightningModule of its own.* which raised TypeError: .*'window'"),
    ],
)
def test_twin_of_another_architecture(twin: Any, message: str, tmp_path: Path) -> None:
    model = Noisy()
    with pytest.raises(MisconfigurationException, match=message):
        fit(model, tmp_path, FeedForwardShadowCallback(1, twin=twin))
    assert not model._forward_hooks


def test_the_model_as_its_own_twin(tmp_path: Path) -> None:
    model = Noisy()
    with pytest.raises(MisconfigurationException, match="Got the model itself"):
        fit(model, tmp_path, FeedForwardShadowCallback(1, twin=model))


class Closed(Noisy):
    """Calls its recurrence in another way."""

    run: Any = None
    act: Any = None

    def __init__(self, how: str = "") -> None:
        super().__init__()
        core = self.core
        # What a copy has is its own only where it takes it from `self`.
        self.run = {
            "layer": lambda x: self.core(x),
            "forward": lambda x: core.forward(x),
            "bound": self.core.forward,
        }.get(how, core)
        if how == "hook":
            core.register_forward_hook(lambda module, args, output: setattr(self, "act", output[0]))

    def forward(self, x: Tensor) -> Tensor:
        output, _ = (self.run or self.core)(x)
        return self.head(output if self.act is None else self.act)


class ClosedInValidation(Closed):
    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.core if self.training or self.run is None else self.run)(x)[0])


@pytest.mark.parametrize(
    ("make", "message", "accumulate"),
    [
        (lambda: Closed("layer"), "a call of its LSTM", 1),
        (lambda: Closed("forward"), "a gradient of 'core.weight_ih_l0'", 3),
        (lambda: Closed("hook"), "a new value of 'act'", 3),
        (lambda: ClosedInValidation("layer"), "a call of its LSTM", 1),
    ],
)
def test_closures_over_the_model(make: Any, message: str, accumulate: int, tmp_path: Path) -> None:
    """A copy of them still works on the model; another model's own do not."""
    model, whole = make(), FeedForwardShadowCallback(WHOLE)
    settings = {"accumulate_grad_batches": accumulate, "num_sanity_val_steps": 0}
    with pytest.raises(MisconfigurationException, match=rf"closes over .* pass `twin=`.* Got {message}"):
        fit(model, tmp_path, whole, **settings)
    hooks = [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]
    assert not hooks
    alone, model, given = make(), make(), FeedForwardShadowCallback(WHOLE, twin=make)
    fit(alone, tmp_path, **settings)
    fit(model, tmp_path, given, **settings)
    assert equal(weights(alone), weights(model))
    assert equal(weights(model), weights(given.twin))


@pytest.mark.parametrize("twin", [None, lambda: Closed("bound")])
def test_a_kept_method_has_no_window(twin: Any, tmp_path: Path) -> None:
    with pytest.raises(
        MisconfigurationException, match=r"call the layer instead\. Got a kept `forward` of WindowedLSTM"
    ):
        fit(Closed("bound"), tmp_path, FeedForwardShadowCallback(1, twin=twin))


def test_a_kept_layer_is_the_copys_own(tmp_path: Path) -> None:
    model, whole, short = Closed(), FeedForwardShadowCallback(WHOLE), FeedForwardShadowCallback(1)
    fit(model, tmp_path, whole, short)
    assert equal(weights(model), weights(whole.twin))
    assert not equal(weights(model), weights(short.twin))


def test_a_twin_may_share_what_is_frozen(tmp_path: Path) -> None:
    shared = nn.Linear(FEATURES, FEATURES).requires_grad_(False)

    class Sharing(Noisy):
        def __init__(self) -> None:
            super().__init__()
            self.shared = shared

        def loss(self, batch: Tensor) -> Tensor:
            return super().loss(self.shared(batch))

    model, whole = Sharing(), FeedForwardShadowCallback(WHOLE, twin=Sharing)
    fit(model, tmp_path, whole)
    assert equal(weights(model), weights(whole.twin))


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy])
def test_sharding_strategies(strategy: type) -> None:
    run: Any = SimpleNamespace(strategy=strategy.__new__(strategy))
    with pytest.raises(MisconfigurationException, match=rf"Got strategy {strategy.__name__}; use 'ddp' or 'auto'"):
        FeedForwardShadowCallback(1).setup(run, Noisy(), "fit")
    FeedForwardShadowCallback(1).setup(run, Noisy(), "test")


class Manual(Noisy):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class NoRecurrence(Recurrent):
    def __init__(self) -> None:
        class Linear(nn.Linear):
            def forward(self, x: Tensor) -> Any:
                return super().forward(x), None

        super().__init__(Linear(FEATURES, UNITS), growth=0.0)


class NoOptimizer(Noisy):
    def configure_optimizers(self) -> None:
        return None


class Residual(nn.LSTM):
    def forward(self, *args: Any) -> Any:
        output, state = super().forward(*args)
        return output + 1, state


class OwnForward(Noisy):
    def __init__(self) -> None:
        super().__init__(Residual(FEATURES, UNITS, batch_first=True))


class Fetching(Noisy):
    def training_step(self, dataloader_iter: Any) -> Any:
        return self.loss(next(dataloader_iter)[0])


class Unfinished(Noisy):
    def __init__(self) -> None:
        super().__init__()
        self.late = nn.LazyLinear(3)


class Replaced(Noisy):
    def __init__(self) -> None:
        super().__init__()
        own = self.training_step
        self.training_step = lambda batch, batch_idx: own(batch, batch_idx)


class Counter:
    """A scheduler that does not say how far it is."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def step(self) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None: ...


class Counted(Noisy):
    def configure_optimizers(self) -> Any:
        optimizer = adam(self.parameters())
        return [optimizer], [Counter(optimizer)]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None: ...


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Manual, r"needs automatic optimization: under manual .*rhythm\. Got `automatic_optimization=False`"),
        (NoRecurrence, r"needs a recurrent model\. Got NoRecurrence with modules of types \['Linear'.*register"),
        (NoOptimizer, r"`configure_optimizers` to return one optimizer, .* Got None"),
        (OwnForward, r"cannot truncate the model\. .* Got 'core', a Residual: it does not return what"),
        (Fetching, r"Got a `training_step\(dataloader_iter\)`.*let it take `batch`"),
        (Uncopyable, r"could not deep-copy Uncopyable: pass `twin=`.* Got RuntimeError: no copies"),
        (Unfinished, r"call the model once.* Got 2 lazy ones without a shape, the first is 'late\.weight'"),
        (Replaced, r"its `training_step` was replaced, .* Pass `twin=`"),
        (Counted, r"`last_epoch`, which Counter does not have"),
    ],
)
def test_models_that_have_no_twin(model: Callable[[], L.LightningModule], message: str, tmp_path: Path) -> None:
    """Refused before the first batch, and nothing is left behind."""
    module = model()
    with pytest.raises(MisconfigurationException, match=message):
        fit(module, tmp_path, FeedForwardShadowCallback(1), num_sanity_val_steps=0)
    assert not module._forward_hooks
    assert "log" not in vars(module)
