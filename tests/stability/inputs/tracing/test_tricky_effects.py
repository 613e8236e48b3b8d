"""Models that change values in place, or call their recurrence where no trace looks."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.stability.inputs.tracing.tricky import (
    Base,
    Case,
    Cases,
    N,
    X,
    check,
    often,
)

CASES = Cases()
tricky = CASES.add


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
    return self.core(self.emb(x) if torch.fx._symbolic_trace.is_fx_tracing() else self.emb(x) * 5)


@tricky("a flag that is no flag", lambda m: m(X, 2), limit="an argument with a boolean default is taken to be a flag")
def no_flag(self: Any, x: Tensor, loud: Any = False) -> Any:
    return self.core(self.emb(x) * 5 if loud == 2 else self.emb(x))


@tricky("the data of a parameter, at traced places")
def data_at_places(self: Any, x: Tensor) -> Any:
    next(self.emb.parameters()).data.index_fill_(0, x[0], 5.0)
    return self.core(self.emb(x))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_no_derived_set_is_left(case: Case) -> None:
    check(case)
