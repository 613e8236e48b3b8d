"""Models that must derive, and what a refusal says."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.utils.rnn import PackedSequence

from lightning_stable.stability.inputs.derive import derive
from lightning_stable.stability.inputs.watch import Hook
from tests.helpers import takes_stand_ins
from tests.stability.inputs.tracing import test_tricky_effects as effects
from tests.stability.inputs.tracing import test_tricky_looks as looks
from tests.stability.inputs.tracing import test_tricky_state as state
from tests.stability.inputs.tracing.tricky import (
    UNITS,
    VOCAB,
    Base,
    Case,
    N,
    Plain,
    X,
    once,
    plain,
    seen_by_core,
)


@pytest.mark.parametrize("register", [register_module_forward_pre_hook, register_module_forward_hook])
def test_global_hooks_are_refused(register: Any) -> None:
    model = Plain()
    assert "core" in derive(model).sets
    handle = register(lambda module, *args: None)
    try:
        assert "global forward hook" in derive(model).reasons["core"]
    finally:
        handle.remove()
    assert "core" in derive(model).sets


def test_a_layer_of_torch_that_is_patched_is_not_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    own = nn.Embedding.forward
    monkeypatch.setattr(nn.Embedding, "forward", lambda self, x: own(self, x) * 5)
    assert "core" in derive(Plain()).reasons


torch.fx.wrap("wrapped_double")


def wrapped_double(y: Tensor) -> Tensor:
    return y * 2


def test_a_wrapped_function_cannot_be_followed() -> None:
    forward = lambda self, x: (self.core(self.emb(x)), wrapped_double(x))  # noqa: E731
    model = type("Wrapping", (Base,), {"forward": forward})()
    assert "`wrapped_double` is wrapped" in derive(model).reasons["core"]


def test_there_are_enough_tricky_models() -> None:
    cases = [case for file in (effects, looks, state) for case in file.CASES.values()]
    assert sum(case.limit is None for case in cases) >= 60


# Models that must derive ----------------------------------------------------------------------------------------------
BENIGN: dict[str, tuple[Callable[..., Any], Callable[[Any], Any]]] = {}


def benign(name: str, run: Callable[[Any], Any] = once) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(forward: Callable[..., Any]) -> Callable[..., Any]:
        BENIGN[name] = forward, run
        return forward

    return register


benign("plain")(plain)


@benign("an optional state", lambda m: m(X, torch.zeros(1, 2, UNITS)))
def optional_state(self: Any, x: Tensor, state: Any = None) -> Any:
    out, state = self.core(self.emb(x), state)
    return self.head(out), state


@benign("a state of two parts", lambda m: m(X, (torch.zeros(1, 2, UNITS), X)))
def state_of_two(self: Any, x: Tensor, state: Any = None) -> Any:
    hidden = None
    if state is not None:
        hidden, _ = state
    return self.core(self.emb(x), hidden)


@benign("lengths", lambda m: m(X, torch.tensor([3, 2])))
def with_lengths(self: Any, x: Tensor, lengths: Tensor) -> Any:
    packed = nn.utils.rnn.pack_padded_sequence(self.emb(x), lengths.cpu(), batch_first=True, enforce_sorted=False)
    out, _ = nn.utils.rnn.pad_packed_sequence(self.core(packed)[0], batch_first=True)
    return self.head(out)


@benign("optional lengths", lambda m: m(X, torch.tensor([3, 2])))
def optional_lengths(self: Any, x: Tensor, lengths: Tensor | None = None) -> Any:
    y = self.emb(x)
    if lengths is not None:
        y = nn.utils.rnn.pack_padded_sequence(y, lengths, batch_first=True, enforce_sorted=False)
    return self.core(y)


@benign("a state kept")
def state_kept(self: Any, x: Tensor) -> Any:
    out, state = self.core(self.emb(x), self.kept)
    self.kept = state.detach()
    return self.head(out)


@benign("a counter nobody looks at")
def idle_counter(self: Any, x: Tensor) -> Any:
    self.calls += 1
    self.history.append(self.calls)
    self.steps += 1
    return self.core(self.emb(x))


@benign("outputs in place")
def outputs_in_place(self: Any, x: Tensor) -> Any:
    out = self.core(self.emb(x))[0].clone()
    out[:, 0] = 0
    out *= 2
    return self.head(out)


@benign("a residual connection around the recurrence")
def residual(self: Any, x: Tensor) -> Any:
    y = self.emb(x)
    return torch.cat([self.core(y)[0], y], -1)


@benign("flattened parameters")
def flattened(self: Any, x: Tensor) -> Any:
    self.core.flatten_parameters()
    return self.core(self.emb(x))


@benign("gradients off inside")
@torch.no_grad()
def without_gradients(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x))


@benign("its own type")
def own_type(self: Any, x: Tensor) -> Any:
    return {type(self).__name__: self.core(self.emb(x))[0]}


@benign("unused arguments", lambda m: m(X, 1, factor=2))
def unused(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    return self.core(self.emb(x))


@benign("a size", once)
def sized(self: Any, x: Tensor) -> Any:
    out = self.core(self.emb(x))[0]
    return out / np.sqrt(UNITS), out.size(1), out.mean(1)


@benign("a batch", lambda m: m({"x": X, "y": X}))
def batch(self: Any, batch: Any) -> Any:
    return self.core(self.emb(batch["x"])), batch["y"]


@benign("a batch of attributes", lambda m: m(SimpleNamespace(x=X)))
def attributes(self: Any, batch: Any) -> Any:
    return self.core(self.emb(batch.x))


@benign("a cast by `type`")
def type_cast(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x))[0].type(torch.float64)


@benign("a check", once)
def checked(self: Any, x: Tensor) -> Any:
    if x is None:
        raise ValueError("`x` must be given.")
    return self.core(self.emb(x).clamp(-1.0, 1.0))


@benign("flags", lambda m: m(X, last=True))
def flags(self: Any, x: Tensor, last: bool = False) -> Any:
    out, state = self.core(self.emb(x))
    return (out[:, -1] if last else out), state


@benign("the device of an argument")
def device_of(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x.to(self.head.weight.device)).to(x.device))


@benign("noise off the way", once)
def noise(self: Any, x: Tensor) -> Any:
    out = self.core(self.emb(x))[0]
    return out + torch.randn_like(out)


@benign("noise before a bound")
def bounded_noise(self: Any, x: Tensor) -> Any:
    return self.core((self.emb(x) + torch.randn(N)).clamp(-1.0, 1.0))


@benign("another sequence length")
def cut(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x[:, :2]))


@benign("a helper of the model")
def helped(self: Any, x: Tensor) -> Any:
    return self.core(embedded(self, x))


def embedded(model: Any, x: Tensor) -> Tensor:
    return model.drop(model.emb(x))


@benign("the first state on the device of the input")
def first_state(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x), torch.zeros(1, x.size(0), UNITS, device=x.device))


@benign("the first state of the input's type, in place")
def first_state_in_place(self: Any, x: Tensor) -> Any:
    y = self.emb(x)
    (size, _), state = x.shape, torch.empty(1, x.shape[0], UNITS, dtype=y.dtype, device=x.device)
    return self.core(y, state.zero_()), torch.ones(size, device=x.device)


@benign("the first state like a parameter, in place")
def first_state_like_a_parameter(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x), next(self.emb.parameters()).new_zeros(1, x.size(0), UNITS).add_(1.0))


@benign("the first state on the device of a parameter")
def first_state_beside_a_parameter(self: Any, x: Tensor) -> Any:
    weight = next(self.emb.parameters())
    state = torch.full((1, x.size(0), UNITS), 0.5, device=weight.device, dtype=weight.dtype)
    return self.core(self.emb(x), state)


@benign("positions off the way")
def positions(self: Any, x: Tensor) -> Any:
    steps, out = torch.arange(x.size(1), device=x.device), self.core(self.emb(x))[0]
    return out + steps[None, :, None] + torch.eye(UNITS, device=x.device)[: x.size(1)]


@benign("whether the input is a tensor", lambda m: m(X.tolist()))
def made_a_tensor(self: Any, x: Any) -> Any:
    if not isinstance(x, torch.Tensor):
        x = torch.tensor(x)
    return self.core(self.emb(x))


@benign("an input that must be a tensor")
def must_be_a_tensor(self: Any, x: Any) -> Any:
    if not torch.is_tensor(x):
        raise TypeError("`x` must be a tensor.")
    return self.core(self.emb(x))


@benign("whether the recurrence returns a tuple")
def returned_tuple(self: Any, x: Tensor) -> Any:
    out = self.core(self.emb(x))
    if isinstance(out, tuple):
        out = out[0]
    if isinstance(out, PackedSequence):
        out, _ = nn.utils.rnn.pad_packed_sequence(out, batch_first=True)
    return self.head(out)


@benign("the mean of what is no padding")
def masked_mean(self: Any, x: Tensor) -> Any:
    out, mask = self.core(self.emb(x))[0], (x != 0).unsqueeze(-1)
    return (out * mask).sum(1) / mask.sum(1).clamp(min=1)


@benign("the last step of every sequence", lambda m: m(X, torch.tensor([3, 2])))
def last_steps(self: Any, x: Tensor, lengths: Tensor) -> Any:
    return self.core(self.emb(x))[0].gather(1, (lengths - 1).view(-1, 1, 1).expand(-1, 1, UNITS))


@benign("a loss if there are labels", lambda m: m(X, X % 2))
def loss(self: Any, x: Tensor, labels: Any = None) -> Any:
    out = self.head(self.core(self.emb(x.long()))[0])
    if labels is not None:
        return nn.functional.cross_entropy(out.flatten(0, 1), labels.flatten())
    return out


@benign("a key that may be missing", lambda m: m({"x": X}))
def optional_key(self: Any, batch: Any) -> Any:
    return self.core(self.emb(batch["x"])), batch.get("lengths")


@benign("the time it takes")
def timed(self: Any, x: Tensor) -> Any:
    start, out = time.time(), self.core(self.emb(x))[0]
    self.took = time.time() - start
    return out


@benign("a loop over steps of the output")
def decoded(self: Any, x: Tensor) -> Any:
    out = self.core(self.emb(x))[0]
    return torch.stack([self.head(out[:, step]) for step in range(2)], 1)


NEED_STAND_INS = ("a counter nobody looks at", "the first state like a parameter, in place")


@pytest.mark.parametrize(
    ("forward", "run"),
    [
        pytest.param(*case, id=name, marks=takes_stand_ins if name in NEED_STAND_INS else ())
        for name, case in BENIGN.items()
    ],
)
def test_a_model_that_can_be_followed_is_derived(forward: Any, run: Any) -> None:
    case = Case(forward, lambda m: None, (run, run), None, (Base,))
    model = case.build()
    derivation = derive(model)
    assert "core" in derivation.sets, derivation.reasons
    for inputs in seen_by_core(model, case):
        data = inputs.data if isinstance(inputs, PackedSequence) else inputs
        assert derivation.sets["core"].excess(data) <= 1e-6


class Hyper(L.LightningModule):
    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.emb, self.core = nn.Embedding(VOCAB, N), nn.GRU(N, UNITS, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        return self.core(self.emb(x.to(self.device)))[0] * self.hparams.factor


def test_a_lightning_module_that_reads_its_hyperparameters_is_derived() -> None:
    derivation = derive(Hyper())
    assert "core" in derivation.sets, derivation.reasons


def test_a_model_compiled_in_place_is_derived() -> None:
    model = nn.Sequential(Plain(), nn.Identity())
    model[0].compile(backend="eager")
    assert "0.core" in derive(model).sets
    assert model[0]._compiled_call_impl is not None


def test_hooks_that_only_watch_are_no_obstacle() -> None:
    model = Plain()
    for module in (model, model.emb, model.core):
        module.register_forward_pre_hook(Hook(lambda *args: None))
    assert "core" in derive(model).sets


def test_a_refusal_says_what_stood_in_the_way_and_what_to_declare() -> None:
    model = Plain()
    model.forward = lambda x: x
    reason = "No inputs of 'core' are derived: `forward` of Plain was replaced on the instance; declare `input_bound`."
    assert derive(model).reasons == {"core": reason}


def test_too_many_ways_to_call_a_model_are_refused() -> None:
    arguments = ", ".join(f"a{index}=None" for index in range(8))
    scope: dict[str, Any] = {}
    exec(f"def forward(self, x, {arguments}): return self.core(self.emb(x))", scope)
    model = type("Many", (Base,), {"forward": scope["forward"]})()
    assert "more than 128 ways" in derive(model).reasons["core"]


def test_a_profiler_goes_on_after_a_trace() -> None:
    events = []

    def profile(frame: Any, event: str, argument: Any) -> None:
        events.append(event)

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        derive(Plain())
        assert sys.getprofile() is profile
    finally:
        sys.setprofile(before)
    assert events


def test_the_forward_of_the_class_may_stand_on_the_instance() -> None:
    model = Plain()
    model.forward = model.forward  # type: ignore[method-assign]
    assert derive(model).sets.keys() == {"core"}
