"""Models whose calls depend on chance, on modes, or on the calls before."""

from __future__ import annotations

import itertools
import os
import random
import weakref
from collections import UserDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.stability.inputs.tracing.tricky import (
    Base,
    Case,
    Cases,
    X,
    check,
    often,
    once,
    scaled_output,
)

CASES = Cases()
tricky = CASES.add


# Chance and modes -----------------------------------------------------------------------------------------------------
GENERATOR, TORCH_GENERATOR, NUMPY = random.Random(0), torch.Generator(), np.random.default_rng(0)


@tricky("chance of torch", often)
def chance(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x) * 5 if torch.rand(()) < 0.5 else self.emb(x))


@tricky("a random seed", often)
def seeded(self: Any, x: Tensor) -> Any:
    return self.core(self.emb(x) * 5 if torch.seed() % 2 else self.emb(x))


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


def counting_helper(y: Tensor, calls: list[int] = []) -> Tensor:  # noqa: B006
    calls.append(1)
    return y * 5 if len(calls) > 2 else y


@tricky("a counter in a default argument")
def default_counter(self: Any, x: Tensor) -> Any:
    return self.core(counting_helper(self.emb(x)))


@tricky("a gradient", lambda m: (m(X)[0].sum().backward(), m(X)))
def gradient(self: Any, x: Tensor) -> Any:
    fresh = next(self.core.parameters()).grad is None
    return self.core(self.emb(x) if fresh else self.emb(x) * 5)


@tricky("a parameter that is frozen by a call")
def freezing(self: Any, x: Tensor) -> Any:
    loud = not self._parameters["scale"].requires_grad
    self._parameters["scale"].requires_grad_(False)
    return self.core(self.emb(x) * 5 if loud else self.emb(x))


@tricky("an attribute of a parameter")
def attribute_of_parameter(self: Any, x: Tensor) -> Any:
    scale = self._parameters["scale"]
    loud, scale.seen = getattr(scale, "seen", False), True
    return self.core(self.emb(x) * 5 if loud else self.emb(x))


@tricky("a buffer that is None at first", prepare=lambda m: m.register_buffer("mem", None))
def buffer_at_first(self: Any, x: Tensor) -> Any:
    y = self.emb(x) if self.mem is None else self.emb(x) * 5
    self.mem = y.detach()
    return self.core(y)


@tricky("an attribute that is deleted", prepare=lambda m: setattr(m, "quiet", True))
def deleted(self: Any, x: Tensor) -> Any:
    y = self.emb(x) if hasattr(self, "quiet") else self.emb(x) * 5
    self.__dict__.pop("quiet", None)
    return self.core(y)


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


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_no_derived_set_is_left(case: Case) -> None:
    global CALLS
    CALLS, SEEN["calls"] = 0, 0
    check(case)
