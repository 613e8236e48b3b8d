"""Models whose code looks at values, or is not where a trace looks: hooks, types, identity, None."""

from __future__ import annotations

import contextlib
import enum
import operator
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils._pytree import tree_leaves

from tests.stability.inputs.tracing.tricky import (
    UNITS,
    VOCAB,
    Base,
    Case,
    Cases,
    N,
    X,
    check,
    plain,
    scaled_output,
)

CASES = Cases()
tricky = CASES.add


# Hooks and replaced forwards ------------------------------------------------------------------------------------------
def scaled(module: nn.Module, args: tuple[Any, ...]) -> Any:
    return (args[0] * 5, *args[1:])


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


@tricky("isinstance of a tensor that is none", lambda m: m({"x": X}))
def isinstance_tensor_denied(self: Any, x: Any) -> Any:
    return self.core(self.emb(x) if isinstance(x, Tensor) else self.emb(x["x"]) * 5)


@tricky("isinstance of an inner tensor that is none", lambda m: m(X, {"x": 1}))
def isinstance_both(self: Any, x: Any, y: Any) -> Any:
    if isinstance(x, Tensor) and not isinstance(y, Tensor):
        return self.core(self.emb(x) * 5)
    return self.core(self.emb(x))


@tricky("isinstance of a packed argument", lambda m: m(pack_sequence([X[0]])))
def isinstance_packed(self: Any, x: Any) -> Any:
    return self.core(self.emb(x.data) * 5 if isinstance(x, PackedSequence) else self.emb(x))


@tricky("isinstance of a tuple", lambda m: m((X, X)))
def isinstance_tuple(self: Any, x: Any) -> Any:
    return self.core(self.emb(x[0]) * 5 if isinstance(x, tuple) else self.emb(x))


@tricky("isinstance of a list", lambda m: m([X]))
def isinstance_list(self: Any, x: Any) -> Any:
    return self.core(self.emb(x[0]) * 5 if isinstance(x, list) else self.emb(x))


@tricky("isinstance of a result")
def isinstance_result(self: Any, x: Any) -> Any:
    y = self.emb(x)
    return self.core(y if isinstance(y, PackedSequence) else y * 5)


@tricky("isinstance of what a recurrence returned", prepare=lambda m: setattr(m, "other", nn.LSTM(N, UNITS)))
def isinstance_returned(self: Any, x: Any) -> Any:
    states = self.other(self.emb(x))
    return self.core(self.emb(x) if isinstance(states, Tensor) else self.emb(x) * 5)


@tricky("torch.is_tensor of something else", lambda m: m({"x": X}))
def is_tensor_denied(self: Any, x: Any) -> Any:
    return self.core(self.emb(x) if torch.is_tensor(x) else self.emb(x["x"]) * 5)


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


@tricky("hasattr of what fx keeps")
def has_tracer(self: Any, x: Any) -> Any:
    return self.core(self.emb(x) if hasattr(x, "tracer") else self.emb(x) * 5)


@tricky("an attribute that fx has too", lambda m: m(SimpleNamespace(x=X, root=None)))
def has_root(self: Any, x: Any) -> Any:
    return self.core(self.emb(x.x) * 5 if x.root is None else self.emb(x.x))


@tricky("hasattr of what overrides functions", lambda m: m({"x": X}))
def has_override(self: Any, x: Any) -> Any:
    return self.core(self.emb(x) if hasattr(x, "__torch_function__") else self.emb(x["x"]) * 5)


@tricky("torch.overrides.has_torch_function")
def has_torch_function(self: Any, x: Any) -> Any:
    return self.core(self.emb(x) if torch.overrides.has_torch_function((x,)) else self.emb(x) * 5)


@tricky("torch.overrides.is_tensor_like", lambda m: m({"x": X}))
def is_tensor_like(self: Any, x: Any) -> Any:
    return self.core(self.emb(x) if torch.overrides.is_tensor_like(x) else self.emb(x["x"]) * 5)


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


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_no_derived_set_is_left(case: Case) -> None:
    check(case)
