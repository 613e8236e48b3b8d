"""Models written to fool the derivation: run as their author would run them, none leaves a set that was derived."""

from __future__ import annotations

import contextlib
import enum
import itertools
import operator
import os
import random
import sys
import time
import weakref
from collections import UserDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from lightning_stable.stability import FiniteSet
from lightning_stable.stability.inputs.derive import derive
from lightning_stable.stability.inputs.watch import Hook

VOCAB, N, UNITS = 7, 4, 5
X = torch.randint(VOCAB, (2, 3), generator=torch.Generator().manual_seed(0))


class Base(nn.Module):
    """Parts to build from. The table is in [0.5, 1], so that whatever is scaled or rounded leaves it."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.loud = nn.Embedding(VOCAB, N), nn.Embedding(VOCAB, N)
        nn.init.uniform_(self.emb.weight, 0.5, 1.0)
        nn.init.constant_(self.loud.weight, 5.0)
        self.drop, self.core, self.head = nn.Dropout(0.0), nn.GRU(N, UNITS, batch_first=True), nn.Linear(UNITS, 2)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("steps", torch.zeros(()))
        self.calls, self.kept, self.history = 0, None, []  # type: int, Any, list[Any]
        self.table, self.settings, self.array = {"calls": 0}, SimpleNamespace(calls=0), np.zeros(1)
        self.plain = torch.ones(2)


@dataclass
class Case:
    """A model, how it is prepared and run, and why a set may be derived all the same."""

    forward: Callable[..., Any]
    prepare: Callable[[Any], Any]
    runs: tuple[Callable[[Any], Any], ...]
    limit: str | None
    bases: tuple[type, ...]

    def build(self) -> Any:
        torch.manual_seed(0)
        model = type("Tricky", self.bases, {"forward": self.forward})()
        self.prepare(model)
        return model


CASES: dict[str, Case] = {}


def once(m: Any) -> Any:
    return m(X)


def tricky(
    name: str,
    *runs: Callable[[Any], Any],
    prepare: Callable[[Any], Any] = lambda m: None,
    limit: str | None = None,
    bases: tuple[type, ...] = (Base,),
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(forward: Callable[..., Any]) -> Callable[..., Any]:
        assert name not in CASES
        CASES[name] = Case(forward, prepare, runs or (once, once, once), limit, bases)
        return forward

    return register


def plain(self: Any, x: Tensor) -> Any:
    return self.head(self.core(self.drop(self.emb(x)))[0])


# Hooks and replaced forwards ------------------------------------------------------------------------------------------
def scaled(module: nn.Module, args: tuple[Any, ...]) -> Any:
    return (args[0] * 5, *args[1:])


def scaled_output(module: nn.Module, args: Any, output: Any) -> Any:
    return output * 5


class Plain(Base):
    forward = plain


def replace(m: Any, name: str, factor: float = 5.0) -> None:
    module = m.get_submodule(name)
    own = module.forward
    module.forward = lambda x, *rest: own(x, *rest) * factor


tricky("pre-hook of the recurrence", prepare=lambda m: m.core.register_forward_pre_hook(scaled))(plain)
tricky("pre-hook of a layer", prepare=lambda m: m.drop.register_forward_pre_hook(scaled))(plain)
tricky("hook of a layer", prepare=lambda m: m.emb.register_forward_hook(scaled_output))(plain)
tricky("hook of an identity", prepare=lambda m: m.drop.register_forward_hook(scaled_output))(plain)
tricky("forward of a layer replaced", prepare=lambda m: replace(m, "emb"))(plain)
tricky("forward of dropout replaced", prepare=lambda m: replace(m, "drop"))(plain)


tricky("pre-hook of the model", prepare=lambda m: m.register_forward_pre_hook(lambda m, a: exchange(m)))(plain)


def exchange(m: Any) -> None:
    m.emb = m.loud


@tricky("forward of the model replaced", prepare=lambda m: setattr(m, "forward", lambda x: m.core(m.emb(x) * 5)))
def replaced_root(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x))


class CallsLouder:
    def __call__(self, x: Tensor) -> Any:
        self.emb = self.loud
        return super().__call__(x)  # type: ignore[misc]


tricky("a `__call__` of its own", bases=(CallsLouder, Base))(plain)


class LoudEmbedding(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 5


class LoudDropout(nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 5


class LoudIdentity(nn.Identity):
    def forward(self, input: Tensor) -> Tensor:
        return input * 5


tricky("subclass of Embedding", prepare=lambda m: setattr(m, "emb", LoudEmbedding(VOCAB, N)))(plain)
tricky("subclass of Dropout", prepare=lambda m: setattr(m, "drop", LoudDropout(0.0)))(plain)
tricky("subclass of Identity", prepare=lambda m: setattr(m, "drop", LoudIdentity()))(plain)


# Python that looks at values ------------------------------------------------------------------------------------------
class Mode(enum.Enum):
    QUIET = 1
    LOUD = 2


FLAG = object()


@tricky("isinstance of a dict", lambda m: m({"x": X}))
def isinstance_dict(self: Any, x: Any) -> Any:
    if isinstance(x, dict):
        return self.core(self.emb(x["x"]) * 5)
    return self.core(self.emb(x))


@tricky("isinstance of a mapping", lambda m: m({"x": X}))
def isinstance_mapping(self: Any, x: Any) -> Any:
    return self.core(self.emb(x["x"]) * 5 if isinstance(x, Mapping) else self.emb(x))


@tricky("isinstance of a tensor")
def isinstance_tensor(self: Any, x: Any) -> Any:
    return self.core(self.emb(x) * 5 if isinstance(x, Tensor) else self.emb(x))


@tricky("isinstance of a union")
def isinstance_union(self: Any, x: Any) -> Any:
    return self.core(self.emb(x) * 5 if isinstance(x, Tensor | PackedSequence) else self.emb(x))


@tricky("isinstance of a parameter", lambda m: m(X, m.scale))
def isinstance_parameter(self: Any, x: Any, scale: Any) -> Any:
    return self.core(self.emb(x) * 5 if isinstance(scale, nn.Parameter) else self.emb(x))


@tricky("torch.is_tensor")
def is_tensor(self: Any, x: Any) -> Any:
    return self.core(self.emb(x) * 5 if torch.is_tensor(x) else self.emb(x))


@tricky("a nested value taken apart", lambda m: m({"x": X, "y": X}))
def leaves(self: Any, x: Any) -> Any:
    parts = tree_leaves(x)
    return self.core(self.emb(parts[0]) * 5 if len(parts) > 1 else self.emb(parts[0]))


@tricky("class attribute of a value")
def dunder_class(self: Any, x: Any) -> Any:
    return self.core(self.emb(x) * 5 if x.__class__ == Tensor else self.emb(x))


@tricky("type of a value")
def type_of(self: Any, x: Any) -> Any:
    return self.core(self.emb(x) * 5 if type(x) == Tensor else self.emb(x))  # noqa: E721


@tricky("type of a value by another name")
def type_by_map(self: Any, x: Any) -> Any:
    return self.core(self.emb(x) * 5 if next(map(type, [x])) == Tensor else self.emb(x))


@tricky("identity with a flag", lambda m: m(X, FLAG))
def identity(self: Any, x: Tensor, mode: Any = 0) -> Any:
    return self.core(self.emb(x) * 5 if mode is FLAG else self.emb(x))


@tricky("identity of an enum", lambda m: m(X, Mode.LOUD))
def identity_enum(self: Any, x: Tensor, mode: Mode = Mode.QUIET) -> Any:
    return self.core(self.emb(x) * 5 if mode is Mode.LOUD else self.emb(x))


@tricky("identity by a function", lambda m: m(X, FLAG))
def identity_function(self: Any, x: Tensor, mode: Any = 0) -> Any:
    return self.core(self.emb(x) * 5 if operator.is_(mode, FLAG) else self.emb(x))


@tricky("identity by id", lambda m: m(X, FLAG))
def identity_id(self: Any, x: Tensor, mode: Any = 0) -> Any:
    return self.core(self.emb(x) * 5 if id(mode) == id(FLAG) else self.emb(x))


@tricky("identity of two arguments", lambda m: m(X, X))
def identity_two(self: Any, x: Tensor, y: Tensor) -> Any:
    return self.core(self.emb(x) * 5 if x is y else self.emb(x))


@tricky("look-up in a dict", lambda m: m(X, "loud"))
def lookup(self: Any, x: Tensor, mode: str = "quiet") -> Any:
    factor = {"loud": 5}.get(mode)
    return self.core(self.emb(x) if factor is None else self.emb(x) * factor)


@tricky("member of a set", lambda m: m(X, "loud"))
def member(self: Any, x: Tensor, mode: str = "quiet") -> Any:
    return self.core(self.emb(x) * 5 if mode in {"loud"} else self.emb(x))


@tricky("member of a list", lambda m: m(X, "loud"))
def member_of_list(self: Any, x: Tensor, mode: str = "quiet") -> Any:
    return self.core(self.emb(x) * 5 if mode in ["loud"] else self.emb(x))


@tricky("something in a value", lambda m: m({"x": X, "loud": 1}))
def contains(self: Any, x: Any) -> Any:
    return self.core(self.emb(x["x"]) * 5 if "loud" in x else self.emb(x["x"]))


@tricky("hasattr", lambda m: m({"x": X}))
def has_attribute(self: Any, x: Any) -> Any:
    return self.core(self.emb(x) if hasattr(x, "shape") else self.emb(x["x"]) * 5)


@tricky("hasattr of what proxies have")
def has_keys(self: Any, x: Any) -> Any:
    return self.core(self.emb(x["x"]) if hasattr(x, "keys") else self.emb(x) * 5)


@tricky("getattr with a default")
def get_attribute(self: Any, x: Any) -> Any:
    factor = getattr(x, "factor", None)
    return self.core(self.emb(x) * 5 if factor is None else self.emb(x))


@tricky("callable")
def is_callable(self: Any, x: Any) -> Any:
    return self.core(self.emb(x) if callable(x) else self.emb(x) * 5)


@tricky("length")
def length(self: Any, x: Any) -> Any:
    return self.core(self.emb(x) * 5 if len(x) > 1 else self.emb(x))


@tricky("text")
def text(self: Any, x: Any) -> Any:
    return self.core(self.emb(x) * 5 if "cpu" in str(x.device) else self.emb(x))


@tricky("formatted text")
def formatted(self: Any, x: Any) -> Any:
    return self.core(self.emb(x) * 5 if f"{x.dtype}" == "torch.int64" else self.emb(x))


@tricky("a truth that is swallowed")
def swallowed(self: Any, x: Any) -> Any:
    try:
        loud = bool(x.sum() > 0)
    except Exception:
        loud = False
    return self.core(self.emb(x) * 5 if loud else self.emb(x))


@tricky("a bare handler")
def bare(self: Any, x: Any) -> Any:
    try:
        y = self.emb(x.float())
    except:  # noqa: E722
        y = self.emb(x) * 5
    return self.core(y)


@tricky("an error that a trace has not")
def handled(self: Any, x: Any) -> Any:
    try:
        y = self.emb(x.float())
    except RuntimeError:
        y = self.emb(x) * 5
    return self.core(y)


@tricky("suppressed errors")
def suppressed(self: Any, x: Any) -> Any:
    y = self.emb(x) * 5
    with contextlib.suppress(RuntimeError):
        y = self.emb(x.float())
    return self.core(y)


class Swallow:
    def __enter__(self) -> None: ...

    def __exit__(self, *args: object) -> bool:
        return True


@tricky("a context manager that swallows")
def swallowing(self: Any, x: Any) -> Any:
    y = self.emb(x) * 5
    with Swallow():
        y = self.emb(x.float())
    return self.core(y)


@tricky("a pattern", lambda m: m({"x": X}))
def pattern(self: Any, x: Any) -> Any:
    match x:
        case {"x": inner}:
            return self.core(self.emb(inner) * 5)
        case _:
            return self.core(self.emb(x))


@tricky("a sequence pattern", lambda m: m([X]))
def sequence_pattern(self: Any, x: Any) -> Any:
    match x:
        case [inner]:
            return self.core(self.emb(inner) * 5)
        case _:
            return self.core(self.emb(x))


@tricky("dimensions")
def dimensions(self: Any, x: Any) -> Any:
    return self.core(self.emb(x) * 5 if x.ndim == 2 else self.emb(x))


@tricky("an attribute of a value")
def tagged(self: Any, x: Any) -> Any:
    y = self.emb(x)
    y.data = y * 5
    return self.core(y)


# What may be None -----------------------------------------------------------------------------------------------------
@tricky("a required argument that is None", lambda m: m(X, None))
def required_none(self: Any, x: Tensor, mask: Any) -> Any:
    return self.core(self.emb(x) * 5 if mask is None else self.emb(x))


@tricky("None in a helper", lambda m: m(X, None))
def none_in_helper(self: Any, x: Tensor, mask: Any) -> Any:
    return self.core(masked(self.emb(x), mask))


def masked(y: Tensor, mask: Any) -> Tensor:
    return y if mask is not None else y * 5


@tricky("an optional argument that is given", lambda m: m(X, X))
def given(self: Any, x: Tensor, mask: Any = None) -> Any:
    return self.core(self.emb(x) if mask is None else self.emb(x) * 5)


@tricky("an argument with another default that is None", lambda m: m(X, None))
def default_none(self: Any, x: Tensor, factor: float | None = 1.0) -> Any:
    return self.core(self.emb(x) * 5 if factor is None else self.emb(x))


@tricky("a missing key", lambda m: m({"x": X}))
def missing_key(self: Any, batch: Any) -> Any:
    mask = batch.get("mask")
    return self.core(self.emb(batch["x"]) * 5 if mask is None else self.emb(batch["x"]))


@tricky("a missing key, assigned in the test", lambda m: m({"x": X}))
def missing_key_walrus(self: Any, batch: Any) -> Any:
    if (mask := batch.get("mask")) is not None:
        return self.core(self.emb(batch["x"])), mask
    return self.core(self.emb(batch["x"]) * 5)


@tricky("an item that is None", lambda m: m({"x": X, "mask": None}))
def none_item(self: Any, batch: Any) -> Any:
    return self.core(self.emb(batch["x"]) * 5 if batch["mask"] is None else self.emb(batch["x"]))


@tricky("a part that is None", lambda m: m((X, None)))
def none_part(self: Any, batch: Any) -> Any:
    x, mask = batch
    return self.core(self.emb(x) * 5 if mask is None else self.emb(x))


@tricky("an attribute that is None", lambda m: m(SimpleNamespace(x=X, mask=None)))
def none_attribute(self: Any, batch: Any) -> Any:
    return self.core(self.emb(batch.x) * 5 if batch.mask is None else self.emb(batch.x))


@tricky("an inner attribute that is None", lambda m: m(SimpleNamespace(x=X, inner=SimpleNamespace(mask=None))))
def none_inner_attribute(self: Any, batch: Any) -> Any:
    return self.core(self.emb(batch.x) * 5 if batch.inner.mask is None else self.emb(batch.x))


@tricky("two arguments that are None", lambda m: m(X, None, None))
def two_none(self: Any, x: Tensor, a: Any = None, b: Any = None) -> Any:
    if a is not None or b is not None:
        return self.core(self.emb(x))
    return self.core(self.emb(x) * 5)


@tricky("more arguments", lambda m: m(X, 5))
def variable(self: Any, x: Tensor, *rest: Any) -> Any:
    y = self.emb(x)
    for factor in rest:
        y = y * factor
    return self.core(y)


@tricky("more keywords", lambda m: m(X, factor=5))
def keywords(self: Any, x: Tensor, **rest: Any) -> Any:
    return self.core(self.emb(x) if rest.get("factor") is None else self.emb(x) * 5)


@tricky("a flag", lambda m: m(X, loud=True))
def flag(self: Any, x: Tensor, *, loud: bool = False) -> Any:
    return self.core(self.emb(x) * 5 if loud else self.emb(x))


# Chance and modes -----------------------------------------------------------------------------------------------------
def often(m: Any) -> None:
    for _ in range(40):
        m(X)


GENERATOR, TORCH_GENERATOR, NUMPY = random.Random(0), torch.Generator(), np.random.default_rng(0)


@tricky("chance of torch", often)
def chance(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x) * 5 if torch.rand(()) < 0.5 else self.emb(x))


@tricky("chance of torch as a number of layers", often)
def chance_of_shape(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x) * 5 if torch.randperm(2).tolist()[0] == 0 else self.emb(x))


@tricky("chance of Python", often)
def chance_of_python(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x) * 5 if random.random() < 0.5 else self.emb(x))


@tricky("chance of NumPy", often)
def chance_of_numpy(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x) * 5 if np.random.rand() < 0.5 else self.emb(x))  # noqa: NPY002


@tricky("chance of a generator", often)
def chance_of_generator(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x) * 5 if GENERATOR.random() < 0.5 else self.emb(x))


@tricky("chance of a generator of torch", often)
def chance_of_torch_generator(self: Any, x: Tensor) -> Any:
    loud = torch.rand((), generator=TORCH_GENERATOR) < 0.5
    return self.core(self.emb(x) * 5 if loud else self.emb(x))


@tricky("chance of a generator of NumPy", often)
def chance_of_numpy_generator(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x) * 5 if NUMPY.random() < 0.5 else self.emb(x))


@tricky("chance of a generator the model keeps", often, prepare=lambda m: setattr(m, "rng", np.random.default_rng(0)))
def chance_kept(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x) * 5 if self.rng.random() < 0.5 else self.emb(x))


@tricky("a choice", often)
def choice(self: Any, x: Tensor) -> Any:
    return self.core(random.choice([self.emb, self.loud])(x))


@tricky("chance of the system", often)
def chance_of_system(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x) * 5 if os.urandom(1)[0] < 128 else self.emb(x))


def without_grad(m: Any) -> None:
    with torch.no_grad():
        m(X)


@tricky("gradients off", without_grad)
def grad_mode(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x) if torch.is_grad_enabled() else self.emb(x) * 5)


@tricky("gradients on")
def grad_mode_on(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x) * 5 if torch.is_grad_enabled() else self.emb(x))


@tricky("a value that needs gradients", without_grad)
def needs_grad(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x) if self.emb(x).requires_grad else self.emb(x) * 5)


@tricky("a real tensor that needs gradients", without_grad)
def real_needs_grad(self: Any, x: Tensor) -> Any:
    loud = not next(p * 1 for p in self.parameters()).requires_grad
    return self.core(self.emb(x) * 5 if loud else self.emb(x))


@tricky("inference mode", lambda m: in_inference(m))
def inference(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x) * 5 if torch.is_inference_mode_enabled() else self.emb(x))


@torch.inference_mode()
def in_inference(m: Any) -> None:
    m(X)


@tricky("training", once)
def training(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x) * 5 if self.training else self.emb(x))


@tricky("evaluation", lambda m: m.eval()(X))
def evaluation(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x) if self.training else self.emb(x) * 5)


@tricky("evaluation of a layer", lambda m: m.drop.eval() and m(X), lambda m: m.train()(X))
def layer_mode(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x) if self.drop.training else self.emb(x) * 5)


@tricky("a call that ends training")
def ends_training(self: Any, x: Tensor) -> Any:
    y = self.emb(x) if self.training else self.emb(x) * 5
    self.train(False)
    return self.core(y)


# What calls leave behind ----------------------------------------------------------------------------------------------
@tricky("a counter")
def counter(self: Any, x: Tensor) -> Any:
    self.calls += 1
    return self.core(self.emb(x) * 5 if self.calls > 2 else self.emb(x))


@tricky("a counter far ahead", often)
def far_counter(self: Any, x: Tensor) -> Any:
    self.calls += 1
    return self.core(self.emb(x) * 5 if self.calls == 30 else self.emb(x))


@tricky("a counter in a list")
def list_counter(self: Any, x: Tensor) -> Any:
    self.history.append(1)
    return self.core(self.emb(x) * 5 if len(self.history) > 2 else self.emb(x))


@tricky("a counter in a dict")
def dict_counter(self: Any, x: Tensor) -> Any:
    self.table["calls"] += 1
    return self.core(self.emb(x) * 5 if self.table["calls"] > 2 else self.emb(x))


@tricky("a new key")
def new_key(self: Any, x: Tensor) -> Any:
    loud = "seen" in self.table
    self.table["seen"] = True
    return self.core(self.emb(x) * 5 if loud else self.emb(x))


@tricky("a counter in an object")
def object_counter(self: Any, x: Tensor) -> Any:
    self.settings.calls += 1
    return self.core(self.emb(x) * 5 if self.settings.calls > 2 else self.emb(x))


@tricky("a counter in an array")
def array_counter(self: Any, x: Tensor) -> Any:
    self.array[0] += 1
    return self.core(self.emb(x) * 5 if self.array[0] > 2 else self.emb(x))


@tricky("a counter in a tensor")
def tensor_counter(self: Any, x: Tensor) -> Any:
    self.plain += 1
    return self.core(self.emb(x) * 5 if self.plain[0] > 2 else self.emb(x))


@tricky("a counter in a buffer")
def buffer_counter(self: Any, x: Tensor) -> Any:
    self.steps += 1
    return self.core(self.emb(x) * 5 if self.steps > 2 else self.emb(x))


class Ring:
    def __init__(self) -> None:
        self.items: deque[int] = deque([0], maxlen=2)

    def push(self) -> int:
        self.items.append(self.items[-1] + 1)
        return self.items[-1]


@tricky("a counter in a ring", prepare=lambda m: setattr(m, "ring", Ring()))
def ring_counter(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x) * 5 if self.ring.push() > 2 else self.emb(x))


@dataclass(slots=True)
class Slotted:
    calls: int = 0


@tricky("a counter in slots", prepare=lambda m: setattr(m, "slotted", Slotted()))
def slots_counter(self: Any, x: Tensor) -> Any:
    self.slotted.calls += 1
    return self.core(self.emb(x) * 5 if self.slotted.calls > 2 else self.emb(x))


@tricky("a counter behind a weak reference", prepare=lambda m: setattr(m, "ring", weakref.ref(RING)))
def weak_counter(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x) * 5 if self.ring().push() > 2 else self.emb(x))


RING = Ring()


@tricky("a counter in a mapping of Python", prepare=lambda m: setattr(m, "user", UserDict(calls=0)))
def user_dict_counter(self: Any, x: Tensor) -> Any:
    self.user["calls"] += 1
    return self.core(self.emb(x) * 5 if self.user["calls"] > 2 else self.emb(x))


@tricky("a counter in a module", prepare=lambda m: setattr(SETTINGS, "calls", 0))
def module_counter(self: Any, x: Tensor) -> Any:
    SETTINGS.calls += 1
    return self.core(self.emb(x) * 5 if SETTINGS.calls > 2 else self.emb(x))


SETTINGS: Any = ModuleType("settings")


@tricky("a hook registered by a call")
def registers(self: Any, x: Tensor) -> Any:
    y = self.core(self.emb(x))
    self.emb.register_forward_hook(scaled_output)
    return y


@tricky("a forward replaced by a call")
def replaces(self: Any, x: Tensor) -> Any:
    y = self.core(self.emb(x))
    self.drop.forward = lambda y: y * 5
    return y, self.core.weight_hh_l0.sum()


CASES["a forward replaced by a call"].forward = lambda self, x: (
    self.core(self.drop(self.emb(x))),
    setattr(self.drop, "forward", lambda y: y * 5),
)

CALLS, SEEN = 0, {"calls": 0}


@tricky("a global counter")
def global_counter(self: Any, x: Tensor) -> Any:
    global CALLS
    CALLS += 1
    return self.core(self.emb(x) * 5 if CALLS > 2 else self.emb(x))


@tricky("a counter in a global dict")
def global_dict_counter(self: Any, x: Tensor) -> Any:
    SEEN["calls"] += 1
    return self.core(self.emb(x) * 5 if SEEN["calls"] > 2 else self.emb(x))


def counting_in_cell() -> Callable[..., Any]:
    calls = 0

    def forward(self: Any, x: Tensor) -> Any:
        nonlocal calls
        calls += 1
        return self.core(self.emb(x) * 5 if calls > 2 else self.emb(x))

    return forward


def counting_in_list() -> Callable[..., Any]:
    calls: list[int] = []

    def forward(self: Any, x: Tensor) -> Any:
        calls.append(1)
        return self.core(self.emb(x) * 5 if len(calls) > 2 else self.emb(x))

    return forward


tricky("a counter in a closure")(counting_in_cell())
tricky("a counter in a closure's list")(counting_in_list())


@tricky("a counter of the class", prepare=lambda m: setattr(type(m), "total", 0))
def class_counter(self: Any, x: Tensor) -> Any:
    type(self).total += 1
    return self.core(self.emb(x) * 5 if self.total > 2 else self.emb(x))


@tricky("a counter of a function")
def function_counter(self: Any, x: Tensor) -> Any:
    function_counter.calls = getattr(function_counter, "calls", 0) + 1  # type: ignore[attr-defined]
    return self.core(self.emb(x) * 5 if function_counter.calls > 2 else self.emb(x))  # type: ignore[attr-defined]


@tricky("an iterator", prepare=lambda m: setattr(m, "factors", itertools.cycle([1, 5])))
def iterator(self: Any, x: Tensor) -> Any:
    factor = next(self.factors)
    return self.core(self.emb(x) * factor if factor > 1 else self.emb(x))


@tricky("a first call")
def first_call(self: Any, x: Tensor) -> Any:
    first, self.first = getattr(self, "first", True), False
    return self.core(self.emb(x) if first else self.emb(x) * 5)


@tricky("a setting that calls go through")
def staged(self: Any, x: Tensor) -> Any:
    stage = getattr(self, "stage", "a")
    self.stage = {"a": "b", "b": "c", "c": "c"}[stage]
    return self.core(self.emb(x) * 5 if stage == "c" else self.emb(x))


@tricky("feedback", often)
def feedback(self: Any, x: Tensor) -> Any:
    y = self.emb(x) if self.kept is None else self.kept * 1.5
    self.kept = y.detach()
    return self.core(y)


@tricky("feedback in a list", often)
def list_feedback(self: Any, x: Tensor) -> Any:
    y = self.emb(x)
    for before in self.history:
        y = y + before
    self.history.append(y.detach())
    return self.core(y)


@tricky("feedback in a tuple", often)
def tuple_feedback(self: Any, x: Tensor) -> Any:
    y = self.emb(x) if self.kept is None else self.kept[0] * 1.5
    self.kept = (y.detach(), x)
    return self.core(y)


@tricky("feedback of an earlier flag", lambda m: m(X, True), once)
def flag_feedback(self: Any, x: Tensor, loud: bool = False) -> Any:
    y = self.emb(x) if self.kept is None else self.emb(x) * 5
    self.kept = 1 if loud else self.kept
    return self.core(y)


@tricky("an embedding that is exchanged")
def exchanged(self: Any, x: Tensor) -> Any:
    y = self.core(self.emb(x))
    self.emb = self.loud
    return y


@tricky("a dropout that grows", often)
def growing_dropout(self: Any, x: Tensor) -> Any:
    self.drop.p = min(0.9, self.drop.p + 0.1)
    return self.core(self.drop(self.emb(x)))


@tricky("a property that counts")
def counting_property(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x) * 5 if self.tick > 2 else self.emb(x))


class Ticking(Base):
    @property
    def tick(self) -> int:
        self.calls += 1
        return self.calls


CASES["a property that counts"].bases = (Ticking,)


@tricky("an optimizer's progress", prepare=lambda m: setattr(m, "trainer", SimpleNamespace(global_step=0)))
def progress(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x) * 5 if self.trainer.global_step > 2 else self.emb(x))


def advance(m: Any) -> None:
    m.trainer.global_step = 3
    m(X)


CASES["an optimizer's progress"].runs = (once, advance)


# Effects --------------------------------------------------------------------------------------------------------------
@tricky("data in place")
def data_in_place(self: Any, x: Tensor) -> Any:
    y = self.emb(x)
    y.data.mul_(5)
    return self.core(y)


@tricky("a detached value in place")
def detached_in_place(self: Any, x: Tensor) -> Any:
    y = self.emb(x)
    y.detach().mul_(5)
    return self.core(y)


@tricky("a view in place")
def view_in_place(self: Any, x: Tensor) -> Any:
    y = self.emb(x).detach()
    y.view(-1, N)[0].mul_(5)
    return self.core(y)


@tricky("a transpose in place")
def transpose_in_place(self: Any, x: Tensor) -> Any:
    y = self.emb(x).detach()
    y.mT.add_(5)
    return self.core(y)


@tricky("a part in place")
def part_in_place(self: Any, x: Tensor) -> Any:
    y = self.emb(x).detach()
    first, _ = y.unbind(0)
    first.fill_(5)
    return self.core(y)


@tricky("an item set")
def item_set(self: Any, x: Tensor) -> Any:
    y = self.emb(x).detach()
    y[:, 0] = 5.0
    return self.core(y)


@tricky("an alias kept before")
def alias_before(self: Any, x: Tensor) -> Any:
    y = self.emb(x).detach()
    aliases = [y.transpose(0, 1)]
    z = self.drop(y)
    aliases[0].mul_(5)
    return self.core(z)


@tricky("an output")
def output(self: Any, x: Tensor) -> Any:
    y = self.emb(x).detach()
    torch.mul(y, 5.0, out=y)
    return self.core(y)


@tricky("a tuple of outputs")
def outputs(self: Any, x: Tensor) -> Any:
    y = self.emb(x).detach()
    torch.max(y.expand(1, 2, 3, N) * 5, 0, out=(y, y.long()))
    return self.core(y)


@tricky("several at once")
def foreach(self: Any, x: Tensor) -> Any:
    y = self.emb(x).detach()
    torch._foreach_mul_([y], 5.0)
    return self.core(y)


@tricky("an initialization")
def initialized(self: Any, x: Tensor) -> Any:
    y = self.emb(x).detach()
    nn.init.constant_(y, 5.0)
    return self.core(y)


@tricky("an operator of aten")
def aten(self: Any, x: Tensor) -> Any:
    y = self.emb(x).detach()
    torch.ops.aten.mul_(y, 5.0)
    return self.core(y)


@tricky("memory of NumPy")
def numpy_memory(self: Any, x: Tensor) -> Any:
    y = self.emb(x).detach()
    array = y.numpy()
    array *= 5
    return self.core(y)


@tricky("a function in place by position")
def positional_in_place(self: Any, x: Tensor) -> Any:
    y = self.emb(x).detach()
    F.threshold(y, 10.0, 5.0, True)
    return self.core(y)


@tricky("a function in place by keyword")
def keyword_in_place(self: Any, x: Tensor) -> Any:
    y = self.emb(x).detach()
    F.leaky_relu(-y, 0.1)
    F.elu(y.neg_(), alpha=9.0, inplace=True)
    return self.core(y)


@tricky("a layer in place", prepare=lambda m: setattr(m, "relu", nn.Threshold(10.0, 5.0, inplace=True)))
def layer_in_place(self: Any, x: Tensor) -> Any:
    y = self.emb(x).detach()
    self.relu(y)
    return self.core(y)


@tricky("an assignment in place")
def assigned_in_place(self: Any, x: Tensor) -> Any:
    y = z = self.emb(x).detach()
    z *= 5
    return self.core(y)


@tricky("a bitwise operator in place")
def bitwise_in_place(self: Any, x: Tensor) -> Any:
    y = F.one_hot(x % N, N).float()
    z = y.view(torch.int32)
    z |= 0x40000000
    return self.core(y)


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        y.mul_(5)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0]


@tricky("a function of autograd")
def own_function(self: Any, x: Tensor) -> Any:
    y = self.emb(x).detach()
    Doubling.apply(y)
    return self.core(y)


@tricky("the table's data", often)
def table_data(self: Any, x: Tensor) -> Any:
    self.emb.weight.data.mul_(1.2)
    return self.core(self.emb(x))


@tricky("the table without gradients", often)
def table_in_place(self: Any, x: Tensor) -> Any:
    with torch.no_grad():
        self.emb.weight.mul_(1.2)
    return self.core(self.emb(x))


@tricky("the table among all parameters", often)
def all_parameters(self: Any, x: Tensor) -> Any:
    for parameter in self.parameters():
        parameter.data.mul_(1.2)
    return self.core(self.emb(x))


@tricky("the table by another name", often, prepare=lambda m: setattr(m, "tied", m.emb.weight))
def tied_table(self: Any, x: Tensor) -> Any:
    self.tied.data.mul_(1.2)
    return self.core(self.emb(x))


@tricky("a parameter's value", prepare=lambda m: None)
def parameter_value(self: Any, x: Tensor) -> Any:
    loud = dict(self.named_parameters())["scale"].item() > 0.5
    return self.core(self.emb(x) * 5 if loud else self.emb(x))


@tricky("a parameter's value later", lambda m: m.scale.data.fill_(-1.0) and m(X))
def later_value(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x) * 5 if self._parameters["scale"] < 0 else self.emb(x))


# Casts and hidden calls -----------------------------------------------------------------------------------------------
@tricky("a cast to the dtype of another")
def cast_like(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x).to(x).float())


@tricky("a cast to a traced dtype")
def cast_to_dtype(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x).to(x.dtype).float())


@tricky("a cast by keyword")
def cast_by_keyword(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x).to(dtype=torch.int32).float())


@tricky("a cast by `type`")
def cast_by_type(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x).type(torch.int32).float())


@tricky("a second call")
def second(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x)), self.core(self.emb(x) * 5)


@tricky("a second call in a checkpoint")
def checkpointed(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x)), checkpoint(self.core, self.emb(x) * 5, use_reentrant=False)


@tricky("a second call inside a layer of torch", prepare=lambda m: setattr(m, "wrapped", nn.DataParallel(m.core)))
def hidden_call(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x)), self.wrapped(self.emb(x) * 5)


@tricky("a functional call")
def functional(self: Any, x: Tensor) -> Any:
    weights = dict(self.core.named_parameters())
    return self.core(self.emb(x)), torch.func.functional_call(self.core, weights, (self.emb(x) * 5,))


# Documented limits ----------------------------------------------------------------------------------------------------
@tricky("one sequence transposed", lambda m: m(torch.arange(N)), limit="a single sequence, as long as it has features")
def transposed(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x).transpose(0, 1))


@tricky("a training step past forward", lambda m: m.training_step(X), limit="`forward` is gone past")
def past_forward(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x))


class Steps(Base):
    def training_step(self, x: Tensor) -> Any:
        return self.core(self.emb(x) * 5)


CASES["a training step past forward"].bases = (Steps,)


@tricky("an attribute set between calls", lambda m: setattr(m, "calls", 3) or m(X), limit="other code sets attributes")
def set_between(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x) * 5 if self.calls > 2 else self.emb(x))


@tricky("an environment variable", lambda m: in_environment(m), limit="ill will: reads the environment")
def environment(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x) * 5 if "LOUD" in os.environ else self.emb(x))


def in_environment(m: Any) -> None:
    os.environ["LOUD"] = "1"
    try:
        m(X)
    finally:
        del os.environ["LOUD"]


@tricky("the clock", lambda m: later(m), limit="ill will: reads the clock")
def clock(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x) * 5 if time.monotonic() > self.deadline else self.emb(x))


CASES["the clock"].prepare = lambda m: setattr(m, "deadline", time.monotonic() + 1000)


def later(m: Any) -> None:
    m.deadline -= 2000
    m(X)


@tricky("the internals of fx", limit="ill will: asks whether it is traced")
def internals(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x) if torch.fx._symbolic_trace.is_fx_symbolic_tracing() else self.emb(x) * 5)


@tricky("a flag that is no flag", lambda m: m(X, 2), limit="an argument with a boolean default is taken to be a flag")
def no_flag(self: Any, x: Tensor, loud: Any = False) -> Any:
    return self.core(self.emb(x) * 5 if loud == 2 else self.emb(x))


# The tests ------------------------------------------------------------------------------------------------------------
def seen_by_core(model: Any, case: Case) -> list[Any]:
    """What reaches the recurrence when the model runs."""
    seen: list[Any] = []
    own = nn.GRU.forward

    def recording(self: Any, input: Tensor, *args: Any) -> Any:
        seen.append(input.detach().clone() if isinstance(input, Tensor) else input)
        return own(self, input, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.GRU, "forward", recording)
        for run in case.runs:
            run(model)
    return seen


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_no_derived_set_is_left(case: Case) -> None:
    global CALLS
    CALLS, SEEN["calls"] = 0, 0
    model = case.build()
    table, attributes = model.emb.weight.detach().clone(), dict(vars(model))
    naive, derivation = FiniteSet(table), derive(model)
    if "core" in derivation.sets:
        assert derivation.sets["core"].guarantee == "derived"
        naive_or_derived: Any = derivation.sets["core"]
        if isinstance(naive_or_derived, FiniteSet):
            naive_or_derived = FiniteSet(naive_or_derived.points.detach().clone())
    else:
        naive_or_derived = naive
    # Deriving has left nothing behind.
    assert vars(model).keys() == attributes.keys()
    assert all(vars(model)[name] is value for name, value in attributes.items())
    left = max(naive_or_derived.excess(inputs).item() for inputs in seen_by_core(model, case))
    assert left > 1e-3, "the case is not tricky"
    assert ("core" in derivation.sets) == (case.limit is not None), derivation
    assert ("core" in derivation.reasons) == (case.limit is None)


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
    assert sum(case.limit is None for case in CASES.values()) >= 60


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


@benign("another sequence length")
def cut(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x[:, :2]))


@benign("a helper of the model")
def helped(self: Any, x: Tensor) -> Any:
    return self.core(embedded(self, x))


def embedded(model: Any, x: Tensor) -> Tensor:
    return model.drop(model.emb(x))


@pytest.mark.parametrize(("forward", "run"), BENIGN.values(), ids=BENIGN)
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
