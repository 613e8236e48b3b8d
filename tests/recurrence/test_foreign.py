"""Subclasses are certified as their base only where their ``forward`` wraps it."""

import copy
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_stable import certify, project_, register_recurrence, truncate
from lightning_stable.recurrence import find_recurrences, foreign, recurrences_of, registry
from tests.recurrence import wrappers
from tests.recurrence.wrappers import GRUWithLengths, LSTMWithLengths, NeedsLengths, NormedLSTM, NormedOutputs


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Declare wrappers for one test."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.setattr(registry, "_LIKE", dict(registry._LIKE))
    return register_recurrence


def test_a_norm_in_the_gates_is_another_map() -> None:
    """What was certified for an LSTM was not true for it: shown by one step of the two from nearby states."""
    torch.manual_seed(0)
    plain = nn.LSTM(3, 8).double()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.mul_(0.01)
    assert certify(plain, input_bound=1.0).rate < 0.75
    normed = NormedLSTM(3, 8).double()
    normed.load_state_dict(plain.state_dict())

    def expansion(layer: nn.LSTM) -> float:
        start, moved = torch.zeros(2, 1, 500, 8).double(), torch.zeros(2, 1, 500, 8).double()
        moved[0] = 1e-6 * torch.randn(1, 500, 8, generator=torch.Generator().manual_seed(0)).sign()
        x = torch.zeros(1, 500, 3).double()
        with torch.no_grad():
            (h, c), (h_, c_) = layer(x, tuple(start))[1], layer(x, tuple(moved))[1]
        return (torch.maximum((h - h_).abs(), (c - c_).abs()).max() / 1e-6).item()

    assert expansion(plain) < 0.75
    assert expansion(normed) > 1.5
    for verb in (certify, project_):
        with pytest.raises(ValueError, match=r"Got 'core', a NormedLSTM: it does not call `super\(\).forward`\. If"):
            verb(nn.ModuleDict({"core": normed}), input_bound=1.0)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ResidualCell", "it does not return what `super().forward` returns"),
        ("SleepingResidualCell", "it does not return what"),
        ("Initialized", "it does not return what"),
        ("OutputOnly", "it does not return what"),
        ("NormedOutputs", "it does not return what"),
        ("Doubled", "it changes the inputs"),
        ("Clipped", "it changes the inputs, in training"),  # where the large ones are
        ("DroppedInputs", "it changes the inputs, in training"),
        ("Halved", "it changes the state it is given"),
        ("LearnedStart", "it starts from a state of its own"),
        ("Stateful", "it starts from a state of its own"),
        ("Twice", "it calls `super().forward` 2 times"),
        ("Reweighted", "it changes the weights"),
        ("NeedsLengths", "it could not be called as `forward` of GRU is (TypeError: NeedsLengths.forward() missing"),
        ("Rewired", "it overrides `_outputs`"),
        ("Called", "it overrides `__call__`"),
    ],
)
def test_what_is_no_wrapper_is_refused(name: str, reason: str) -> None:
    module = getattr(wrappers, name)(3, 4)
    with pytest.raises(ValueError, match="must compute what its adapter for") as error:
        find_recurrences(nn.ModuleDict({"core": module}))
    assert f"Got 'core', a {name}: {reason}" in str(error.value)
    assert f"lightning_stable.register_recurrence({name}, like=" in str(error.value)
    assert find_recurrences(nn.ModuleDict({"core": module, "other": nn.GRU(3, 4)}), "other")[0].name == "other.l0"


WRAPPERS = [LSTMWithLengths, GRUWithLengths, wrappers.UGRNNWithLengths, wrappers.FromZeros, wrappers.CountedCell]


@pytest.mark.parametrize("kind", WRAPPERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_wrappers_are_certified_as_what_they_wrap(kind: type[nn.Module], dtype: torch.dtype) -> None:
    module = kind(3, 4).to(dtype)
    (base,) = (k for k in kind.__mro__ if k in registry._REGISTRY)
    plain = base(3, 4).to(dtype)
    plain.load_state_dict(module.state_dict())
    mine, theirs = (certify(m, input_bound=1.0).to_dict() for m in (module, plain))
    assert mine == theirs
    project_(module, 0.8, input_bound=1.0)
    assert certify(module, input_bound=1.0).rate <= 0.8


@pytest.mark.parametrize(
    "options", [{"num_layers": 2, "bidirectional": True, "dropout": 0.5}, {"proj_size": 2, "batch_first": True}]
)
def test_wrappers_of_many_layers(options: dict[str, int]) -> None:
    module = LSTMWithLengths(3, 4, **options)
    assert len(recurrences_of(module)) == (4 if "bidirectional" in options else 1)


def test_a_setting_is_a_case_of_its_own() -> None:
    cell = wrappers.SwitchedCell(3, 4)
    assert recurrences_of(cell)
    cell.residual = True
    with pytest.raises(ValueError, match="it does not return what"):
        recurrences_of(cell)
    with pytest.raises(ValueError, match="it does not return what"):
        recurrences_of(wrappers.SwitchedCell(3, 4, residual=True))


def test_settings_are_found_in_what_a_module_holds() -> None:
    class Config:
        scale = 1.0

    class Configured(nn.GRU):
        def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
            return super().forward(input * self.config.scale if self.drop.p == 0 else 2 * input, hx)

    layer = Configured(3, 4)
    layer.config, layer.drop = Config(), nn.Dropout(0.0)
    layer.config.scale = 1.0
    assert recurrences_of(layer)
    for owner, name in ((layer.config, "scale"), (layer.drop, "p")):
        before = getattr(owner, name)
        setattr(owner, name, 0.5)
        with pytest.raises(ValueError, match="it changes the inputs"):
            recurrences_of(layer)
        setattr(owner, name, before)
    assert recurrences_of(layer)


def test_a_class_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr(foreign, "_verdicts", {})
    probe = foreign._probe
    monkeypatch.setattr(foreign, "_probe", lambda *args: tried.append(args) or probe(*args))
    for _ in range(2):
        find_recurrences(nn.ModuleList([LSTMWithLengths(3, 4), LSTMWithLengths(3, 4), nn.LSTM(3, 4)]))
    assert len(tried) == 1
    recurrences_of(LSTMWithLengths(3, 4, num_layers=2))
    assert len(tried) == 2


def test_trying_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    class Drawing(nn.GRU):
        def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
            self.drawn = torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
            self.count += 1
            return super().forward(input, hx)

    monkeypatch.setattr(foreign, "_verdicts", {})
    module, calls = Drawing(3, 4).eval(), []
    module.register_buffer("count", torch.zeros(()))
    module.register_forward_hook(lambda *args: calls.append(args))
    before = copy.deepcopy(module.state_dict())
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    keys = set(vars(module))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert recurrences_of(module)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])  # noqa: NPY002
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert not calls
    assert set(vars(module)) == keys
    assert type(module) is Drawing
    assert not module.training
    assert all(value.grad is None for value in module.parameters())


def test_a_class_that_cannot_be_copied_says_so() -> None:
    class Locked(LSTMWithLengths):
        def __deepcopy__(self, memo: object) -> nn.Module:
            raise TypeError("has a lock")

    with pytest.raises(ValueError, match=r"a Locked: it could not be called .*\(TypeError: has a lock\)"):
        recurrences_of(Locked(3, 4))


# What the user vouches for --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [NeedsLengths, NormedOutputs])
def test_a_declared_wrapper(kind: type[nn.GRU], declared: Callable[..., None]) -> None:
    module = kind(3, 4)
    assert declared(kind, like=nn.GRU) is None
    plain = nn.GRU(3, 4)
    plain.load_state_dict({name: value for name, value in module.state_dict().items() if "norm" not in name})
    assert certify(module, input_bound=1.0).to_dict() == certify(plain, input_bound=1.0).to_dict()


def test_subclasses_of_a_declared_wrapper_are_tried(declared: Callable[..., None]) -> None:
    declared(NormedOutputs, like=nn.GRU)

    class Same(NormedOutputs):
        def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
            return super().forward(input, hx)

    class Other(NormedOutputs):
        def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
            return super().forward(input + 1, hx)

    assert recurrences_of(Same(3, 4))
    with pytest.raises(ValueError, match="a Other: it changes the inputs"):
        recurrences_of(Other(3, 4))


def test_what_is_declared_must_be_a_subclass(declared: Callable[..., None]) -> None:
    with pytest.raises(TypeError, match=r"`module_type` must be a subclass of `like`, .*LSTM.*Got .*NormedOutputs"):
        declared(NormedOutputs, like=nn.LSTM)
    with pytest.raises(ValueError, match=r"`like` must be a base of LSTM that is registered\. Got .*RNNBase"):
        declared(nn.LSTM, like=nn.RNNBase)
    with pytest.raises(ValueError, match=r"`like` must be a base of GRU that is registered\. Got .*GRU"):
        declared(nn.GRU, like=nn.GRU)


# The instance ---------------------------------------------------------------------------------------------------------
def test_a_forward_that_was_replaced_is_refused() -> None:
    layer = nn.GRU(3, 4)
    own = layer.forward
    layer.forward = lambda input, hx=None: own(2 * input, hx)
    with pytest.raises(ValueError, match=r"a GRU: `forward` was replaced on the instance"):
        find_recurrences(nn.Sequential(layer))
    layer.forward = torch.compile(lambda input, hx=None: own(2 * input, hx), backend="eager")
    with pytest.raises(ValueError, match=r"a GRU: `forward` was replaced on the instance"):
        find_recurrences(nn.Sequential(layer))


def test_a_compiled_forward_is_the_same() -> None:
    layer = nn.GRU(3, 4).double()
    layer.forward = torch.compile(layer.forward, backend="eager")
    assert recurrences_of(layer)
    twin, x = truncate(layer, 2), torch.randn(5, 1, 3).double()
    assert "forward" not in vars(twin)
    plain = nn.GRU(3, 4).double()
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(twin(x)[0], truncate(plain, 2)(x)[0])
