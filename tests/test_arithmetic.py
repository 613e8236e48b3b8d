"""Fast products and tanh are as exact as torch's own, and only taken where they are there."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_stable import arithmetic, truncate
from lightning_stable.arithmetic import product, tanh
from lightning_stable.truncation.exact.fused import fused_kernels, fused_window_rows
from lightning_stable.truncation.exact.rows import window_rows
from lightning_stable.truncation.exact.stack import stacks_of
from tests.nets import net

LARGE, SMALL = (130, 64, 256), (13, 6, 25)
FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda values: values,
    "transposed": lambda values: values.t().contiguous().t(),
    "strided": lambda values: torch.cat((values, values), 1)[:, : values.shape[1]],
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def operands(sizes: tuple[int, int, int], first: str = "plain", second: str = "plain") -> list[Tensor]:
    rows, inner, columns = sizes
    return [
        FORMS[first](random(rows, inner)),
        FORMS[second](random(inner, columns, seed=1)),
        random(rows, columns, seed=2),
    ]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    if arithmetic._linear is None:
        pytest.skip("this build of torch has no oneDNN")
    made: list[Any] = []
    linear = arithmetic._linear

    class Spy:
        def __call__(self, *args: Any) -> Any:
            made.append("plain")
            return linear(*args)

        def binary(self, *args: Any) -> Any:
            made.append("added")
            return linear.binary(*args)

    monkeypatch.setattr(arithmetic, "_linear", Spy())
    return made


def test_stacks_are_multiplied_one_by_one(calls: list[Any]) -> None:
    first, second = (torch.stack([one, one + 1]) for one in operands(LARGE)[:2])
    torch.testing.assert_close(product(first, second), first @ second, rtol=1e-5, atol=1e-4)
    assert len(calls) == 2
    torch.testing.assert_close(product(first.double(), second.double()), first.double() @ second.double())


@pytest.mark.parametrize("second", FORMS)
@pytest.mark.parametrize("first", FORMS)
@pytest.mark.parametrize("sizes", [LARGE, SMALL])
def test_products(sizes: tuple[int, int, int], first: str, second: str) -> None:
    a, b, c = operands(sizes, first, second)
    before = c.clone()
    for found, expected in ((product(a, b), a.double() @ b.double()), (product(a, b, c), c + a.double() @ b.double())):
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)
    assert torch.equal(c, before)


def test_large_products_take_the_fast_way(calls: list[Any]) -> None:
    a, b, c = operands(LARGE)
    product(a, b)
    product(a, b, c)
    assert calls == ["plain", "added"]


def test_others_go_torchs_way(calls: list[Any]) -> None:
    for values in (operands(SMALL), [value.double() for value in operands(LARGE)]):
        a, b, c = values
        assert torch.equal(product(a, b), a @ b)
        assert torch.equal(product(a, b, c), torch.addmm(c, a, b))
    a, b, _ = operands(LARGE)
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(product(a, b), a @ b)
        assert torch.equal(tanh(a), a.tanh())
    assert product(a.to("meta"), b.to("meta")).shape == (130, 256)
    assert calls == []


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "_linear", None)
    a, b, c = operands(LARGE)
    assert torch.equal(product(a, b, c), torch.addmm(c, a, b))


@pytest.mark.parametrize("form", FORMS)
def test_tanh_is_exact_where_it_is_small(form: str) -> None:
    values = FORMS[form](random(130, 256) * torch.logspace(-9, 1.3, 256))
    before = values.clone()
    exact = values.double().tanh()
    assert ((tanh(values) - exact) / exact).abs().max() < 5e-7
    assert torch.equal(values, before)
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0]).repeat(5000)
    torch.testing.assert_close(tanh(special), special.tanh(), equal_nan=True)


# In the windows ---------------------------------------------------------------------------------------------------
def run(name: str, function: Any, **kwargs: Any) -> tuple[list[Tensor], list[Tensor]]:
    """States and gradients of rows that are large enough for the fast ways."""
    module = net(name, inputs=60, units=80, num_layers=2, dtype=torch.float32)
    (stack,) = stacks_of(module)
    inputs = random(14, 60, 60).requires_grad_()
    between = (fused_kernels(stack),) if function is fused_window_rows else ()
    found = function(stack, *between, inputs, 4, first=4, **kwargs)
    states = [part for state in found for part in state]
    loss = sum((part * random(*part.shape, seed=5)).sum() for part in states)
    return states, list(torch.autograd.grad(loss, [inputs, *module.parameters()]))  # type: ignore[arg-type]


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("name", ["rnn", "relu", "lstm", "gru"])
def test_both_forms_agree_in_single_precision(name: str, recompute: bool, calls: list[Any]) -> None:
    states, gradients = run(name, fused_window_rows, recompute=recompute)
    assert len(calls) > 10
    expected_states, expected_gradients = run(name, window_rows)
    for found, expected in zip([*states, *gradients], [*expected_states, *expected_gradients], strict=True):
        assert (found - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_inputs_before_the_window_change_no_bit(name: str, calls: list[Any]) -> None:
    twin = truncate(net(name, inputs=60, units=80, num_layers=2, dtype=torch.float32), 4)
    inputs = random(14, 60, 60)
    changed = inputs.clone()
    changed[:8] += 1
    assert torch.equal(twin(inputs)[0][11:], twin(changed)[0][11:])
    assert not torch.equal(twin(inputs)[0][10], twin(changed)[0][10])
    assert calls
