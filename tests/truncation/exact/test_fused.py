"""The fused function and the simple form are the same function, and its derivative is one."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_stable.truncation import truncate
from lightning_stable.truncation.exact import evaluate, fused
from lightning_stable.truncation.exact.fused import fused_kernels, fused_window_rows
from lightning_stable.truncation.exact.rows import advance_rows, window_rows
from lightning_stable.truncation.exact.stack import Stack, States, stacks_of
from tests.nets import net
from tests.truncation.brute import gradients, same

FUSED = ("rnn", "relu", "lstm", "gru")
TIME, BATCH, UNITS = 6, 2, 3


@pytest.fixture(params=[1, 2, 100])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a block: one, a few, all."""
    monkeypatch.setattr(fused, "_CPU_BLOCK", request.param * BATCH)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Call:
    """Arguments of one evaluation."""

    def __init__(
        self, name: str, layers: int, *, window: int = 3, first: int = 0, masked: bool = False, bias: bool = True
    ) -> None:
        self.module = net(name, inputs=2, units=UNITS, num_layers=layers, bias=bias, scale=1.5)
        (self.stack,) = stacks_of(self.module)
        self.window, self.first = window, first
        self.inputs = random(TIME, BATCH, 2).requires_grad_()
        count = max(0, min(window, TIME) - first)
        self.starts = [
            random(count, BATCH, UNITS, seed=index).mul_(0.5).requires_grad_()
            for index in range(layers * (2 if name == "lstm" else 1) if count else 0)
        ]
        self.masks = [(random(TIME, BATCH, UNITS, seed=9 + i) > 0) * 2.0 for i in range(layers - 1)] if masked else []

    @property
    def sources(self) -> list[Tensor]:
        return [self.inputs, *self.starts, *self.module.parameters()]

    def states(self, starts: list[Tensor]) -> States | None:
        if not starts:
            return None
        size = len(starts) // len(self.stack.layers)
        return tuple(tuple(starts[low : low + size]) for low in range(0, len(starts), size))

    def run(self, function: Any, **kwargs: Any) -> list[Tensor]:
        kernels = fused_kernels(self.stack)
        between = (kernels,) if function is fused_window_rows else ()
        found = function(
            self.stack,
            *between,
            self.inputs,
            self.window,
            first=self.first,
            starts=self.states(self.starts),
            masks=self.masks,
            **kwargs,
        )
        return [part for state in found for part in state]


@pytest.mark.parametrize(
    ("layers", "first", "masked", "recompute"),
    [(1, 0, False, True), (1, 3, False, False), (2, 3, False, True), (2, 0, True, True), (2, 0, True, False)],
)
@pytest.mark.parametrize("name", FUSED)
@pytest.mark.usefixtures("block")
def test_derivatives(name: str, layers: int, first: int, masked: bool, recompute: bool) -> None:
    call = Call(name, layers, first=first, masked=masked)
    if name == "relu":  # away from the kink
        call.module.bias_ih_l0.data.add_(0.3)
    assert torch.autograd.gradcheck(
        lambda *_: tuple(call.run(fused_window_rows, recompute=recompute)), call.sources, fast_mode=True
    )


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize(
    ("window", "first", "layers"),
    [(1, 0, 3), (1, 1, 1), (3, 0, 1), (3, 2, 3), (3, 3, 3), (5, 5, 1), (6, 0, 3), (8, 0, 1), (50, 2, 3)],
)
@pytest.mark.parametrize("name", FUSED)
def test_both_forms_are_the_same(name: str, layers: int, window: int, first: int) -> None:
    call = Call(name, layers, window=window, first=first, masked=True, bias=layers > 1)
    expected = call.run(window_rows)
    wanted = gradients(expected, call.sources)
    for recompute in (True, False, None):
        found = call.run(fused_window_rows, recompute=recompute)
        same(found, expected)
        same(gradients(found, call.sources), wanted)


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.usefixtures("block")
def test_every_part_of_the_state_has_a_derivative(name: str) -> None:
    """Gradients of one part alone: the others are None in the backward pass."""
    call = Call(name, 2)
    expected, found = call.run(window_rows), call.run(fused_window_rows, recompute=False)
    for mine, theirs in zip(found, expected, strict=True):
        same(gradients([mine], call.sources), gradients([theirs], call.sources))
        # Some of the rows only.
        same(gradients([mine[:1]], call.sources), gradients([theirs[:1]], call.sources))


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("name", FUSED)
@pytest.mark.usefixtures("block")
def test_a_second_backward_pass(name: str, recompute: bool) -> None:
    call = Call(name, 2, masked=True)
    found = call.run(fused_window_rows, recompute=recompute)
    before = [value.clone() for value in found]
    first = gradients(found, call.sources)  # retains the graph
    for _ in range(2):
        assert all(map(torch.equal, gradients(found, call.sources), first))
    assert all(map(torch.equal, found, before))


def test_a_graph_is_freed() -> None:
    call = Call("lstm", 1)
    found = call.run(fused_window_rows, recompute=False)
    loss = sum(value.sum() for value in found)
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_changed_weights_are_noticed() -> None:
    call = Call("rnn", 1)
    found = call.run(fused_window_rows, recompute=True)
    with torch.no_grad():
        call.module.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found[0].sum().backward()


def test_second_derivatives_are_refused() -> None:
    call = Call("gru", 1)
    (found,) = call.run(fused_window_rows)
    # Also of a loss whose own second derivative is zero.
    for loss in (found.sum(), found.square().sum()):
        with pytest.raises(RuntimeError, match="no gradients of gradients of windowed layers"):
            torch.autograd.grad(loss, call.inputs, create_graph=True)


# Which one is taken ---------------------------------------------------------------------------------------------------
@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Which form is evaluated: ``recompute`` of the plan of the fused function, ``block`` of the simple form."""
    plans: list[Any] = []
    plan, rows = fused._Plan, evaluate.window_rows

    def planned(*args: Any, **kwargs: Any) -> Any:
        made = plan(*args, **kwargs)
        if not made.together:  # the unfinished windows, for a next chunk
            plans.append(("fused", made.recompute))
        return made

    def simple(*args: Any, **kwargs: Any) -> Any:
        plans.append(("rows", kwargs["block"] is not None))
        return rows(*args, **kwargs)

    monkeypatch.setattr(fused, "_Plan", planned)
    monkeypatch.setattr(evaluate, "window_rows", simple)
    return plans


@pytest.mark.parametrize(("name", "form"), [*((name, "fused") for name in FUSED), ("proj", "rows")])
def test_torchs_cells_are_fused_and_what_is_large_is_computed_again(
    name: str, form: str, taken: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x = net(name, units=4), random(TIME, BATCH, 3)
    for option, expected in ((None, False), (True, True), (False, False)):
        truncate(module, 2, recompute=option)(x)
        assert taken.pop() == (form, expected)
    for owner in (fused, evaluate):
        monkeypatch.setattr(owner, "KEEP_BYTES", 100)
    truncate(module, 2)(x)
    assert taken.pop() == (form, True)
    truncate(module, 2, recompute=False)(x)
    assert taken.pop() == (form, False)
    assert taken == []


def test_autocast_leaves_the_products_to_autograd(taken: list[Any]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        truncate(net("gru", dtype=torch.float32), 2)(random(TIME, BATCH, 3).float())
    assert taken == [("rows", False)]


def test_without_gradients_nothing_is_kept(taken: list[Any]) -> None:
    with torch.no_grad():
        truncate(net("gru"), 2, recompute=False)(random(TIME, BATCH, 3))
    assert taken == [("fused", True)]


@pytest.mark.parametrize("recompute", [True, False])
def test_what_is_computed_again_is_not_saved(recompute: bool) -> None:
    """Memory: with ``recompute`` the graph holds the inputs and the results, whatever the window."""
    module = net("lstm", units=4)
    x = random(40, BATCH, 3)
    twin = truncate(module, 20, recompute=recompute)
    output, _ = twin(x)

    def held() -> int:
        nodes, count = {output.grad_fn}, 0
        while nodes:
            node = nodes.pop()
            nodes |= {child for child, _ in node.next_functions if child is not None}
            for tape in getattr(node, "tapes", ()):
                count += sum(value.numel() for step in tape for entry in step for value in (*entry.saved, *entry.after))
        return count

    assert (held() == 0) if recompute else (held() >= 20 * 20 * BATCH * 4 * 4)
    output.sum().backward(retain_graph=True)
    assert held() == 0


def test_other_stacks_have_no_kernels() -> None:
    (lstm,) = stacks_of(net("lstm", num_layers=2))
    assert fused_kernels(lstm) is not None
    (proj,) = stacks_of(net("proj"))
    assert fused_kernels(proj) is None
    assert fused_kernels(Stack((lstm.layers[0], proj.layers[0]))) is None
    assert isinstance(lstm.layers[0].module, nn.LSTM)


# Other uses of the kernels --------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("block")
@pytest.mark.parametrize(("layers", "rows", "masked"), [(1, 0, False), (1, 3, False), (3, 2, False), (3, 2, True)])
@pytest.mark.parametrize("name", FUSED)
def test_unfinished_windows_go_on(name: str, layers: int, rows: int, masked: bool) -> None:
    call = Call(name, layers, masked=masked)
    parts = 2 if name == "lstm" else 1
    flat = [random(rows, BATCH, UNITS, seed=index).mul_(0.5).requires_grad_() for index in range(layers * parts)]
    before = tuple(tuple(flat[low : low + parts]) for low in range(0, len(flat), parts))
    kernels = fused_kernels(call.stack)
    assert kernels is not None
    found, expected = (
        [part for state in states for part in state]
        for states in (
            fused.fused_advance_rows(call.stack, kernels, call.inputs, before, call.masks),
            advance_rows(call.stack, call.inputs, before, call.masks),
        )
    )
    assert len(found[0]) == rows + TIME
    same(found, expected)
    sources = [call.inputs, *(flat if rows else ()), *call.module.parameters()]
    same(gradients(found, sources), gradients(expected, sources))


@pytest.mark.parametrize("name", [*FUSED, "proj"])
def test_a_step_of_all_rows(name: str) -> None:
    (stack,) = stacks_of(net(name, inputs=2, units=UNITS + 1, num_layers=2))
    inputs = random(TIME, BATCH, 2)
    states = stack.step(inputs, stack.zeros(inputs))
    step = evaluate.step_of(stack, inputs)
    for first in (0, 2):
        before = tuple(tuple(part[first:] for part in state) for state in states)
        found, expected = step(first, before), stack.step(inputs[first:], before)
        same([p for s in found for p in s], [p for s in expected for p in s])
