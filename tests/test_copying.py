from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_stable.cells import UGRNN
from lightning_stable.copying import compiled_original, copied, evaluating, parts_of
from tests.helpers import equal, weights


class Carrying(nn.Module):
    """Keeps what it has put out, with its history, as a carried state does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.kept: dict[str, list[Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.kept["outputs"] = [self.layer(x)]
        return self.kept["outputs"][0]


def test_a_tensor_with_a_history_is_copied_without_it() -> None:
    module = nn.Sequential(Carrying())
    module(torch.ones(1, 2))
    twin = copied(module)
    (mine,), (theirs,) = module[0].kept["outputs"], twin[0].kept["outputs"]
    assert torch.equal(mine, theirs)
    assert mine.data_ptr() != theirs.data_ptr()
    assert not theirs.requires_grad
    assert mine.grad_fn is not None


def test_a_copy_has_its_own_weights() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    twin = copied(module)
    assert equal(weights(module), weights(twin))
    with torch.no_grad():
        twin[0].weight.add_(1)
    assert not torch.equal(module[0].weight, twin[0].weight)
    assert twin[0].weight.requires_grad


def test_what_is_shared_is_not_copied() -> None:
    module, table = nn.Sequential(nn.Linear(2, 2)), torch.zeros(2)
    module.table, module.other = table, torch.zeros(2)
    twin = copied(module, {id(table): table})
    assert twin.table is table
    assert twin.other is not module.other


def test_a_copy_of_a_compiled_module_runs_its_own_layers() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module.compile(backend="eager")
    module[0].compile(backend="eager")
    x = torch.ones(1, 2)
    expected = module(x)
    twin = copied(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert torch.equal(twin(x), expected)
    assert module._compiled_call_impl is not None


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ArithmeticError


@settings(deadline=None, max_examples=20)
@given(modes=st.lists(st.booleans(), min_size=4, max_size=4), fails=st.booleans())
def test_every_part_gets_its_own_mode_back(modes: list[bool], fails: bool) -> None:
    module = nn.Sequential(nn.Sequential(nn.Dropout(), Failing()))
    parts = list(module.modules())
    for part, mode in zip(parts, modes, strict=True):
        part.training = mode

    def run() -> None:
        with evaluating(module):
            assert not any(part.training for part in parts)
            if fails:
                module(torch.ones(1))

    if fails:
        with pytest.raises(ArithmeticError):
            run()
    else:
        run()
    assert [part.training for part in parts] == modes


def itself(structure: list[Any]) -> list[Any]:
    structure.append(structure)
    return structure


@pytest.mark.parametrize("wrap", [list, tuple, itself, lambda parts: {"a": {"b": parts}}])
def test_parts_are_found_in_every_structure(wrap: Callable[[list[Any]], Any]) -> None:
    one, two = torch.zeros(1), torch.ones(1)
    found = list(parts_of(Tensor, wrap([one, "text", (two, 3)])))
    assert {id(part) for part in found} == {id(one), id(two)}
    assert list(parts_of(Tensor, one)) == [one]


class Anything:
    """Holds what it is given."""

    def __init__(self, **held: Any) -> None:
        vars(self).update(held)


@pytest.mark.parametrize(
    "hold",
    [
        lambda value: Anything(value=value),
        lambda value: {value},
        lambda value: torch.distributions.Normal(value, 1.0),
        lambda value: [{"a": (Anything(value=value),)}],
    ],
)
def test_activations_are_copied_wherever_they_are_kept(hold: Callable[[Tensor], Any]) -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    kept = module(torch.ones(1, 2))
    module.kept = hold(kept)
    module.again = kept
    twin = copied(module)
    assert torch.equal(twin.again, kept)
    assert twin.again is not kept
    assert twin.again.grad_fn is None
    assert kept.grad_fn is not None
    if isinstance(module.kept, set):
        assert twin.kept == {twin.again}


def test_what_torch_compile_wraps() -> None:
    layers = [nn.GRU(2, 3), nn.Linear(2, 2), UGRNN(2, 3)]
    for layer in layers:
        compiled = torch.compile(layer)
        assert compiled_original(compiled) is layer
        compiled.forward = layer.forward
        assert compiled_original(compiled) is None
    assert compiled_original(layers[0]) is None
