"""Twins of whole models."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lightning_stable
from lightning_stable import certify, project_
from lightning_stable.truncation import Windowed, truncate, truncate_at_least, window_
from tests.helpers import takes_stand_ins
from tests.nets import net
from tests.truncation.brute import each, flat, gradients, restarted, same

T, BATCH, WINDOW = 7, 2, 3


def sequence() -> Tensor:
    return torch.randn(T, BATCH, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Model(nn.Module):
    """Two recurrent layers, one of which is used twice, weights that are tied, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({"first": nn.Sequential(net("gru", 3, 3), Second()), "last": net("lstm", 3, 3)})
        self.again = self.blocks["first"][0]
        self.head = nn.Linear(3, 3).double()
        self.tail = nn.Linear(3, 3).double()
        self.tail.weight = self.head.weight
        self.register_buffer("scale", torch.tensor(2.0, dtype=torch.float64))
        self.norm = nn.BatchNorm1d(3).double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks["first"][1](self.again(x)[0])
        x = self.again(x * self.scale)[0]
        x = self.norm(self.blocks["last"](x)[0].transpose(1, 2)).transpose(1, 2)
        return self.tail(self.head(x).tanh())


class Second(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


class ByHand(nn.Module):
    """A recurrent layer evaluated by brute force."""

    def __init__(self, module: nn.Module, window: int) -> None:
        super().__init__()
        self.module, self.window = module, window

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        return restarted(self.module, x, self.window)


def by_hand(model: Model, window: int) -> Model:
    """The model with brute force for its layers; the original is used, not copied."""
    hand = copy.copy(model)
    hand._modules = dict(model._modules)
    gru = ByHand(model.again, window)
    hand.again = gru
    hand.blocks = nn.ModuleDict({"first": nn.Sequential(gru, Second()), "last": ByHand(model.blocks["last"], window)})
    return hand


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], value) for name, value in before.items())


# Models ---------------------------------------------------------------------------------------------------------------
def test_every_layer_of_a_model_is_windowed() -> None:
    model = Model().eval()
    twin, x = truncate(model, WINDOW), sequence().requires_grad_()
    assert type(twin) is Model
    assert [name for name, module in twin.named_modules() if isinstance(module, Windowed)] == [
        "blocks.first.0",
        "blocks.last",
    ]
    assert twin.again is twin.blocks["first"][0]
    found, expected = twin(x), by_hand(model, WINDOW)(x)
    same([found], [expected])
    same(gradients([found], [x, *twin.parameters()]), gradients([expected], [x, *model.parameters()]))
    assert not torch.allclose(found, model(x))


def test_the_original_is_untouched() -> None:
    model = Model()
    classes, before = [type(module) for module in model.modules()], snapshot(model)
    expected = model.eval()(sequence())
    twin = truncate(model, WINDOW)
    with torch.no_grad():
        for value in twin.parameters():
            value.add_(1)
    twin.train()(sequence())
    assert [type(module) for module in model.modules()] == classes
    assert unchanged(model, before)
    assert not model.training
    assert torch.equal(model(sequence()), expected)
    assert all(value.grad is None for value in model.parameters())


def test_parameters_are_copies() -> None:
    model = Model()
    twin = truncate(model, WINDOW)
    memory = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    assert not memory & {tensor.data_ptr() for tensor in (*twin.parameters(), *twin.buffers())}
    assert twin.head.weight is twin.tail.weight  # what was tied stays tied
    assert [name for name, _ in twin.named_parameters()] == [name for name, _ in model.named_parameters()]


def test_parameters_are_shared_on_request() -> None:
    model = Model()
    model.blocks["last"].weight_hh_l0.requires_grad_(False)
    twin = truncate(model, WINDOW, share=True)
    for mine, theirs in ((twin.parameters(), model.parameters()), (twin.buffers(), model.buffers())):
        assert [id(tensor) for tensor in mine] == [id(tensor) for tensor in theirs]
    assert twin is not model
    assert not any(isinstance(module, Windowed) for module in model.modules())
    torch.optim.SGD(model.parameters(), lr=1.0)
    twin.eval()(sequence()).sum().backward()
    assert model.again.weight_ih_l0.grad is not None
    assert model.head.weight.grad is twin.tail.weight.grad
    with torch.no_grad():
        model.again.weight_hh_l0.zero_()
    same([twin(sequence())], [by_hand(model.eval(), WINDOW)(sequence())])


def test_shared_layers_use_what_is_shared() -> None:
    """torch's layers keep a list of their weights of their own."""
    model = net("lstm")
    twin = truncate(model, 100, share=True)
    assert all(mine is theirs for mine, theirs in zip(twin._flat_weights, model._flat_weights, strict=True))
    with torch.no_grad():
        model.weight_ih_l0.mul_(2)
    same(flat(twin(sequence())), flat(model(sequence())))


@pytest.mark.parametrize("share", [False, True])
def test_state_dicts_fit_both_ways(share: bool) -> None:
    model = Model()
    twin = truncate(model, WINDOW, share=share)
    mine, theirs = twin.state_dict(), model.state_dict()
    assert list(mine) == list(theirs)
    assert all(mine[name].shape == theirs[name].shape for name in mine)
    other = {name: torch.full_like(value, 0.1) for name, value in theirs.items()}
    twin.load_state_dict(other, strict=True)
    assert unchanged(twin, other)
    fresh = Model()
    fresh.load_state_dict(twin.state_dict(), strict=True)
    assert unchanged(fresh, other)
    same([twin.eval()(sequence())], [by_hand(fresh.eval(), WINDOW)(sequence())])
    file = io.BytesIO()
    torch.save(twin.state_dict(), file)
    file.seek(0)
    Model().load_state_dict(torch.load(file, weights_only=True), strict=True)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda twin: pickle.loads(pickle.dumps(twin))])
def test_twins_are_copied_and_pickled(duplicate: Callable[[Model], Model]) -> None:
    twin = truncate(Model().eval(), WINDOW)
    twin(sequence())
    other = duplicate(twin)
    assert torch.equal(other(sequence()), twin(sequence()))
    assert other.again is other.blocks["first"][0]
    with torch.no_grad():
        for value in other.parameters():
            value.zero_()
    assert not torch.equal(other(sequence()), twin(sequence()))


def test_a_saved_twin_is_loaded() -> None:
    twin, file = truncate(Model().eval(), WINDOW), io.BytesIO()
    torch.save(twin, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(sequence()), twin(sequence()))


def test_twins_move_and_change_their_mode() -> None:
    twin = truncate(Model(), WINDOW)
    assert {value.dtype for value in twin.float().parameters()} == {torch.float32}
    assert twin.eval()(sequence().float()).dtype == torch.float32
    assert not any(module.training for module in twin.modules())
    twin.to("meta")


def test_a_twin_learns_like_any_module() -> None:
    twin = truncate(Model(), WINDOW)
    before = snapshot(twin)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        loss = (twin(sequence()) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert not any(torch.equal(value, before[name]) for name, value in twin.named_parameters())


@pytest.mark.parametrize("model", [net("lstm", num_layers=2), net("gru_cell"), nn.Sequential(net("rnn"))])
def test_twins_have_the_certificate_of_the_model(model: nn.Module) -> None:
    model = copy.deepcopy(model)
    twin = truncate(model, WINDOW)
    assert certify(twin, input_bound=1.0).to_dict() == certify(model, input_bound=1.0).to_dict()
    first, second = (project_(module, 0.8, input_bound=1.0) for module in (twin, model))
    assert first.to_dict() == second.to_dict()
    assert first.rate <= 0.8
    assert all(map(torch.equal, twin.parameters(), model.parameters()))


def test_a_certificate_follows_the_dataflow_of_the_twin() -> None:
    model = nn.Sequential(nn.Embedding(7, 3), nn.LSTM(3, 4))
    assert certify(truncate(model, 2)).to_dict() == certify(model).to_dict()
    assert certify(truncate(model, 2)).layers[0].guarantee == "derived"


@pytest.mark.parametrize("name", ["lstm", "lstm_cell"])
def test_a_recurrent_module_is_its_own_twin(name: str) -> None:
    module = net(name)
    twin = truncate(module, WINDOW)
    assert isinstance(twin, type(module))
    assert isinstance(twin, Windowed)
    assert twin.window == WINDOW


# In place -------------------------------------------------------------------------------------------------------------
def test_windows_in_place() -> None:
    model = Model().eval()
    expected = by_hand(copy.deepcopy(model), WINDOW)(sequence())
    parameters = list(model.parameters())
    assert window_(model, WINDOW, recompute=True) is model
    assert all(mine is theirs for mine, theirs in zip(model.parameters(), parameters, strict=True))
    assert model.again.recompute is True
    same([model(sequence())], [expected])


def test_a_window_is_set_anew() -> None:
    model = nn.ModuleList([net("gru"), truncate_at_least(net("lstm"), 4)])
    whole = nn.ModuleList([net("gru"), net("lstm")])
    window_(model[0], 2)
    twin = truncate(model, 5)
    assert [layer.window for layer in twin] == [5, 5]
    for layer, other in zip(twin, whole, strict=True):
        same(flat(layer(sequence())), flat(truncate(other, 5)(sequence())))
    assert type(twin[0]) is type(model[0])
    assert model[0].window == 2


def test_twins_of_modules_compiled_in_place() -> None:
    """Torch's copy of such a module goes on calling the layers of the original."""
    model = nn.Sequential(net("gru"))
    model.compile(backend="eager")
    model[0].compile(backend="eager")
    expected = flat(truncate(net("gru"), 2)(sequence()))
    same(flat(truncate(model, 2)(sequence())), expected)
    same(flat(truncate_at_least(model, 20)(sequence())), flat(net("gru")(sequence())))


def test_a_compiled_model_carries_its_windows() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.core, self.head = net("lstm"), nn.Linear(5, 2).double()

        def forward(self, x: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
            output, state = self.core(x + 1, hx)
            return self.head(output), state

    twin, x = truncate(Model(), 3), sequence()
    compiled, state, outputs = torch.compile(twin, backend="eager"), None, []
    for values in x.split([2, 4, 1]):
        output, state = compiled(values, each(state, Tensor.detach))
        outputs.append(output)
    same([torch.cat(outputs)], [twin(x)[0]])


@takes_stand_ins  # older exports put stand-ins in the place of parameters
def test_a_batch_of_any_size_is_exported() -> None:
    twin, x = truncate(net("lstm", num_layers=2), 3), sequence()
    program = torch.export.export(
        twin, (x,), dynamic_shapes={"input": {1: torch.export.Dim("batch", min=1, max=64)}}, strict=False
    )
    for batch in (1, 3, 17):
        other = torch.randn(T, batch, 3, dtype=torch.float64)
        same(flat(program.module()(other)), flat(twin(other)))


def test_twins_of_a_twin_are_apart() -> None:
    first = truncate(net("gru"), 2)
    second = truncate(first, 5)
    second.window = 4
    assert first.window == 2


def test_the_window_is_an_attribute() -> None:
    module = net("gru")
    twin = truncate(module, 2)
    for window in (1, 4, T):
        twin.window = window
        same(flat(twin(sequence())), flat(restarted(module, sequence(), window)))


# What is no model, and what is no window ------------------------------------------------------------------------------
@pytest.mark.parametrize("function", [truncate, window_])
@pytest.mark.parametrize(
    ("window", "error"),
    [(0, ValueError), (-1, ValueError), *((w, TypeError) for w in (2.0, True, "3", torch.tensor(2)))],
)
def test_windows_are_positive_integers(window: Any, error: type[Exception], function: Callable[..., Any]) -> None:
    module = net("gru")
    with pytest.raises(error, match=r"`window` must be a positive integer\. Got "):
        function(module, window)
    assert type(module) is nn.GRU


def test_an_integer_of_numpy_is_a_window() -> None:
    for twin in (truncate(net("gru"), np.int64(2)), truncate_at_least(net("gru"), np.int64(2))):
        assert type(twin.window) is int


@pytest.mark.parametrize("function", [truncate, window_])
def test_a_model_without_recurrence_is_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"[Nn]o.*recurren"):
        function(nn.Linear(3, 3), 3)


def test_windows_may_be_enormous() -> None:
    module = net("lstm", num_layers=2)
    assert all(map(torch.equal, flat(truncate(module, 10**18)(sequence())), flat(module(sequence()))))


class Stubborn(nn.GRU):
    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        raise TypeError("has a lock")


def test_modules_that_cannot_be_copied_say_so() -> None:
    with pytest.raises(TypeError, match="has a lock"):
        truncate(Stubborn(3, 4), 2)
    module = window_(Stubborn(3, 4).double(), 2)
    assert module(sequence())[0].shape == (T, BATCH, 4)


def test_subclasses_keep_what_they_are() -> None:
    class Named(nn.GRU):
        def own(self) -> str:
            return "own"

    twin = truncate(Named(3, 4), 100)
    assert isinstance(twin, Named)
    assert twin.own() == "own"


def test_a_forward_of_its_own_is_refused() -> None:
    class Scaled(nn.GRU):
        def forward(self, input: Tensor, hx: Any = None) -> Any:
            return super().forward(2 * input, hx)

    with pytest.raises(ValueError, match=r"Got '0', a Scaled: it changes the inputs"):
        truncate(nn.Sequential(Scaled(3, 4)), 2)


def test_public_names() -> None:
    assert lightning_stable.truncate is truncate
