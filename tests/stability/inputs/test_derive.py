from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lightning_stable import certify, project_
from lightning_stable.cells import UGRNN, IntersectionRNN
from lightning_stable.models import LanguageModel, SlotTagger
from lightning_stable.stability import FiniteSet
from lightning_stable.stability.inputs.derive import derive_input_sets
from tests.helpers import takes_stand_ins

Forward = Callable[..., Any]
VOCAB, N, UNITS = 7, 4, 5


class Parts(nn.Module):
    """Parts to build models from; ``forward`` is the function given."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.emb, self.other, self.drop = nn.Embedding(VOCAB, N), nn.Embedding(VOCAB, N), nn.Dropout(0.5)
        self.norm, self.act = nn.LayerNorm(N), nn.Tanh()
        self.linear, self.relu = nn.Linear(N, N), nn.ReLU(inplace=True)
        self.core, self.top = nn.GRU(N, UNITS, batch_first=True), nn.LSTM(UNITS, UNITS, batch_first=True)
        self.position = nn.Parameter(torch.randn(N))
        self.register_buffer("steps", torch.zeros(()))
        self.state: Any = None
        self.history: list[Any] = []
        self.caches: dict[str, Any] = {"last": None}
        self.kept = torch.ones(3)
        self._forward = forward

    def forward(self, x: Tensor) -> Any:
        return self._forward(self, x)


class LightningParts(Parts, L.LightningModule):
    pass


def derived(forward: Forward, kind: type[Parts] = Parts, **kwargs: Any) -> dict[str, str]:
    return {name: known.describe() for name, known in derive_input_sets(kind(forward), **kwargs).items()}


# What is derived ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [Parts, LightningParts])
@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda m, x: m.core(m.emb(x)), "embedding table of 7"),
        (lambda m, x: m.core(m.drop(m.emb(x))), "embedding table of 7, dropout 0.5"),
        (lambda m, x: m.core(m.drop(m.drop(m.emb(x)))), "embedding table of 7, dropout 0.75"),
        (lambda m, x: m.core(m.emb(x).transpose(0, 1)), "embedding table of 7"),
        (lambda m, x: m.core(torch.transpose(m.emb(x), 0, 1).contiguous().float()), "embedding table of 7"),
        (lambda m, x: m.core(m.emb(x).to(torch.float64)), "embedding table of 7"),
        (lambda m, x: m.core(m.norm(m.linear(x))), "LayerNorm output"),
        (lambda m, x: m.core(m.drop(m.norm(x))), "LayerNorm output, dropout 0.5"),
        (lambda m, x: m.core(x.clamp(-2, 3)), "clamp(-2, 3)"),
        (lambda m, x: m.core(torch.clip(x, min=0.0, max=1.5)), "clamp(0, 1.5)"),
        (lambda m, x: m.core(m.act(x)), "Tanh"),
        (lambda m, x: m.core(torch.tanh(m.linear(x))), "tanh"),
        (lambda m, x: m.core(m.linear(x).sigmoid()), "sigmoid"),
        (lambda m, x: m.core(x.softmax(-1)), "softmax"),
        (lambda m, x: m.core(F.relu6(x)), "relu6"),
        (lambda m, x: m.core(F.one_hot(x, N).float()), "at most 1 entries active in [0, 1]"),
        (lambda m, x: m.core(m.emb(x), None)[0].add_(1), "embedding table of 7"),
    ],
)
def test_known_ranges(kind: type[Parts], forward: Forward, expected: str) -> None:
    assert derived(forward, kind) == {"core": expected}


def test_recurrences_on_recurrences() -> None:
    stack = {"core": "embedding table of 7", "top": "outputs of GRU"}
    assert derived(lambda m, x: m.top(m.core(m.emb(x))[0])) == stack
    # A GRU passes on how large a state it was given.
    parts = Parts(lambda m, x: m.top(m.core(m.emb(x))[0]))
    assert derive_input_sets(parts, state_bound=3.0)["top"].high == 3.0


def test_the_state_bound_reaches_the_layer_above() -> None:
    model = Parts(lambda m, x: m.top(m.core(m.emb(x))[0]))
    rates = [
        certify(model, input_bound=None, state_bound=3.0, modules="top").rate,
        certify(model, input_bound={"top": 3.0}, state_bound=3.0, modules="top").rate,
    ]
    assert rates[0] == pytest.approx(rates[1])


def test_models_of_the_package_are_derived() -> None:
    model = LanguageModel(VOCAB, embedding_size=N, hidden_size=UNITS, dropout=0.5)
    assert derive_input_sets(model)["core"].describe() == "embedding table of 7, dropout 0.5"
    assert derive_input_sets(model.eval())["core"].describe() == "embedding table of 7"
    assert derive_input_sets(model.eval(), training=True)["core"].describe() == "embedding table of 7, dropout 0.5"


class Packing(nn.Module):
    """Packs sequences of different lengths inside, with the functions as imported names."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.core = nn.Embedding(VOCAB, N), nn.GRU(N, UNITS, batch_first=True)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.core(packed)[0], batch_first=True)[0]


def test_packed_inputs_are_derived() -> None:
    assert derive_input_sets(Packing())["core"].describe() == "embedding table of 7"
    tagger = SlotTagger(VOCAB, ["O", "B-x"], embedding_size=N, hidden_size=UNITS)
    assert derive_input_sets(tagger)["core"].describe() == "embedding table of 7"
    assert derive_input_sets(tagger)["core"].guarantee == "derived"


def test_a_sequential_model() -> None:
    model = nn.Sequential(nn.Embedding(VOCAB, N), nn.Dropout(0.0), nn.Identity(), nn.LSTM(N, UNITS))
    known = derive_input_sets(model)
    assert isinstance(known["3"], FiniteSet)
    assert known["3"].points is model[0].weight
    assert derive_input_sets(model[3]) == {}


# What must not be derived ---------------------------------------------------------------------------------------------
def overwrite(m: Parts, x: Tensor) -> Any:
    y = m.emb(x)
    y.mul_(5)
    return m.core(y)


def overwrite_a_view(m: Parts, x: Tensor) -> Any:
    y = m.emb(x)
    y.transpose(0, 1).add_(m.position)
    return m.core(y)


def overwrite_by_operator(m: Parts, x: Tensor) -> Any:
    y = z = m.emb(x)
    z += m.position
    return m.core(y)


def overwrite_as_output(m: Parts, x: Tensor) -> Any:
    y = m.emb(x)
    torch.add(x, 100.0, out=y)
    return m.core(y)


def overwrite_by_layer(m: Parts, x: Tensor) -> Any:
    y = m.emb(x)
    m.relu(y)
    return m.core(y)


def overwrite_by_function(m: Parts, x: Tensor) -> Any:
    y = m.emb(x)
    F.leaky_relu(y, -100.0, True)
    return m.core(y)


NOT_DERIVED: dict[str, Forward] = {
    "raw input": lambda m, x: m.core(x),
    "unbounded layer": lambda m, x: m.core(m.linear(m.emb(x))),
    "positions added": lambda m, x: m.core(m.emb(x) + m.position),
    "two embeddings added": lambda m, x: m.core(m.emb(x) + m.other(x)),
    "scaled": lambda m, x: m.core(m.emb(x) * 2),
    "features transposed": lambda m, x: m.core(m.emb(x).transpose(1, 2)),
    "last dimensions transposed": lambda m, x: m.core(m.emb(x).transpose(-1, -2)),
    "permuted": lambda m, x: m.core(m.emb(x).permute(0, 2, 1)),
    "reshaped": lambda m, x: m.core(m.emb(x).view(1, -1, N)),
    "concatenated": lambda m, x: m.core(torch.cat([m.emb(x), m.other(x)], -1)),
    "clamped below": lambda m, x: m.core(x.clamp(min=-1)),
    "clamped above": lambda m, x: m.core(torch.clamp(x, max=1)),
    "clamped at infinity": lambda m, x: m.core(x.clamp(-float("inf"), 1.0)),
    "clamped at tensors": lambda m, x: m.core(x.clamp(m.position, m.position)),
    "clamped the wrong way": lambda m, x: m.core(x.clamp(1, -1)),
    "rounded to half": lambda m, x: m.core(m.emb(x).half()),
    "rounded to integers": lambda m, x: m.core(m.emb(x).to(torch.int8).float()),
    "called twice": lambda m, x: (m.core(m.emb(x)), m.core(m.other(x))),
    "called twice alike": lambda m, x: (m.core(m.emb(x)), m.core(m.emb(x))),
    "by keyword": lambda m, x: m.core(input=m.emb(x)),
    "states of a recurrence": lambda m, x: m.core(m.core(m.emb(x))[1]),
    "overwritten": overwrite,
    "overwritten through a view": overwrite_a_view,
    "overwritten by an operator": overwrite_by_operator,
    "overwritten as an output": overwrite_as_output,
    "overwritten by a layer": overwrite_by_layer,
    "overwritten by a function": overwrite_by_function,
    "control flow on data": lambda m, x: m.core(m.emb(x)) if x.sum() > 0 else m.core(x),
    "control flow on the mode": lambda m, x: m.core(m.emb(x) if m.training else m.linear(x)),
    "control flow on a buffer": lambda m, x: m.core(m.emb(x) if m.steps > 0 else m.linear(x)),
    "an error": lambda m, x: m.core(m.missing(x)),
}


@pytest.mark.parametrize("kind", [Parts, LightningParts])
@pytest.mark.parametrize("forward", NOT_DERIVED.values(), ids=NOT_DERIVED)
def test_nothing_uncertain_is_derived(kind: type[Parts], forward: Forward) -> None:
    assert "core" not in derived(forward, kind)


def test_the_mode_only_matters_where_it_can_be_entered() -> None:
    noisy = Parts(lambda m, x: m.core(m.emb(x) + 1 if m.training else m.emb(x)))
    assert derive_input_sets(noisy) == {}
    assert "core" in derive_input_sets(noisy.eval())
    assert derive_input_sets(noisy.eval(), training=True) == {}


class Optional(Parts):
    def __init__(self) -> None:
        super().__init__(lambda m, x: None)

    def forward(self, x: Tensor, mask: Tensor | None = None, scaled: bool = False, power: float = 1.0) -> Any:
        y = self.emb(x)
        if mask is not None:
            y = y * mask
        z = self.other(x)
        if scaled:
            z = z * 2
        w = self.norm(x) ** power
        return self.core(y), self.top(z), w


class Carried(Parts):
    def __init__(self) -> None:
        super().__init__(lambda m, x: None)

    def forward(self, x: Tensor, state: Tensor | None = None, last: bool = False) -> Any:
        if state is not None:
            state = state.detach()
        out, state = self.core(self.emb(x), state)
        return (out[:, -1] if last else out), state


def test_optional_arguments_may_change_the_inputs() -> None:
    assert derive_input_sets(Optional()) == {}
    assert set(derive_input_sets(Carried())) == {"core"}


def test_a_layer_with_hooks_may_give_anything() -> None:
    model = Parts(lambda m, x: m.top(m.core(m.emb(x))[0]))
    assert set(derive_input_sets(model)) == {"core", "top"}
    for module, left in ((model.top, {"core"}), (model.core, set())):
        module.register_forward_hook(lambda module, args, output: None)
        assert set(derive_input_sets(model)) == left


def test_a_table_that_is_renormed_or_computed() -> None:
    for change in (
        lambda m: setattr(m.emb, "max_norm", 1.0),
        lambda m: parametrizations.weight_norm(m.emb),
        lambda m: torch.nn.utils.spectral_norm(m.emb),
    ):
        model = Parts(lambda m, x: m.core(m.emb(x)))
        change(model)
        assert derive_input_sets(model) == {}


def test_own_recurrent_layers_may_give_anything() -> None:
    class Louder(nn.GRU):
        def forward(self, *args: Any) -> Any:
            out, state = super().forward(*args)
            return 10 * out, state

    model = Parts(lambda m, x: m.top(m.core(m.emb(x))[0]))
    model.core = Louder(N, UNITS)
    assert derive_input_sets(model) == {}


def test_outputs_of_a_ugrnn_are_its_states() -> None:
    model = Parts(lambda m, x: m.top(m.core(m.emb(x))[0]))
    model.core = UGRNN(N, UNITS)
    for state_bound in (1.0, 3.0):
        assert derive_input_sets(model, state_bound=state_bound)["top"].high == state_bound  # type: ignore[attr-defined]


def test_outputs_that_are_no_states_are_unbounded() -> None:
    linear = nn.LSTM(N, UNITS + 1, proj_size=UNITS)
    for core in (linear, nn.RNN(N, UNITS, nonlinearity="relu"), IntersectionRNN(N, UNITS)):
        model = Parts(lambda m, x: m.top(m.core(m.emb(x))[0]))
        model.core = core
        assert set(derive_input_sets(model)) == {"core"}


def test_a_transposed_single_sequence_has_other_features() -> None:
    model = Parts(lambda m, x: m.core(m.emb(x).transpose(0, 1)))
    model.core = nn.GRU(N + 1, UNITS)
    assert derive_input_sets(model) == {}


def test_dropout_of_everything() -> None:
    model = Parts(lambda m, x: m.core(m.drop(m.emb(x))))
    model.drop.p = 1.0
    assert derive_input_sets(model) == {}
    assert "core" in derive_input_sets(model.eval())


# The model is left as it was ------------------------------------------------------------------------------------------
def carry(m: Parts, x: Tensor) -> Any:
    out, m.state = m.core(m.emb(x), m.state)
    m.history.append(m.state)
    m.caches["last"] = out
    m.steps += 1
    m.kept.mul_(2)
    torch.rand(3)
    return out


@takes_stand_ins
@pytest.mark.parametrize("kind", [Parts, LightningParts])
@pytest.mark.parametrize("mode", [True, False])
def test_tracing_changes_nothing(kind: type[Parts], mode: bool) -> None:
    model = kind(carry).train(mode)
    model.drop.eval()
    history, caches, kept, steps = model.history, model.caches, model.kept, model.steps
    attributes, seed = set(vars(model)), torch.get_rng_state()
    certify(model, input_bound={"core": 1.0})
    project_(model, 0.9, input_bound={"top": 1.0})
    assert model.state is None
    assert model.history is history == []
    assert model.caches is caches == {"last": None}
    assert model.kept is kept
    assert model.kept.tolist() == [1.0, 1.0, 1.0]
    assert model.steps is steps
    assert model.steps == 0
    assert model.training is mode
    assert not model.drop.training
    assert set(vars(model)) == attributes
    assert torch.equal(torch.get_rng_state(), seed)


@takes_stand_ins
def test_a_model_that_carries_its_state_is_derived() -> None:
    assert derived(carry) == {"core": "embedding table of 7"}


@pytest.mark.parametrize(
    "model", [nn.ModuleList([nn.GRU(2, 2)]), nn.ModuleDict({"a": nn.GRU(2, 2)}), torch.compile(nn.GRU(2, 2))]
)
def test_models_without_a_graph(model: nn.Module) -> None:
    assert derive_input_sets(model) == {}
    assert certify(model, input_bound=1.0).rate < float("inf")
    assert certify(model).layers[0].guarantee == "none"


# What torch.compile wraps ---------------------------------------------------------------------------------------------
class Compiled(nn.Module):
    """A clamp before a recurrence, either of which is compiled."""

    def __init__(self, core: nn.Module, wrap: Callable[[Any], Any]) -> None:
        super().__init__()
        self.core = wrap(core)

    def forward(self, x: Tensor) -> Any:
        return self.core(x.clamp(-2, 2))


@pytest.mark.parametrize("kind", [nn.GRU, UGRNN])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda core: Compiled(core, torch.compile), "core._orig_mod"),
        (lambda core: torch.compile(Compiled(core, lambda part: part)), "_orig_mod.core"),
        (lambda core: torch.compile(Compiled(core, torch.compile)), "_orig_mod.core._orig_mod"),
        (lambda core: nn.Sequential(nn.Tanh(), torch.compile(core)), "1._orig_mod"),
        (lambda core: nn.Sequential(torch.compile(Compiled(core, torch.compile))), "0._orig_mod.core._orig_mod"),
    ],
)
def test_a_compiled_part_is_what_it_wraps(make: Any, name: str, kind: Any) -> None:
    model = make(kind(N, UNITS))
    before = {part: vars(part).get("forward") for part in model.modules()}
    assert list(derive_input_sets(model)) == [name]
    (layer,) = certify(model).layers
    assert (layer.name, layer.guarantee) == (f"{name}.l0", "derived")
    assert all(vars(part).get("forward") is forward for part, forward in before.items())


def test_a_compiled_part_that_does_something_else() -> None:
    replaced = Compiled(nn.GRU(N, UNITS), torch.compile)
    replaced.core.forward = lambda x: replaced.core._orig_mod(100 * x)
    hooked = Compiled(nn.GRU(N, UNITS), torch.compile)
    hooked.core.register_forward_pre_hook(lambda module, args: (100 * args[0],))
    inside = Compiled(nn.GRU(N, UNITS), torch.compile)
    inside.core._orig_mod.register_forward_pre_hook(lambda module, args: (100 * args[0],))
    for model in (replaced, hooked, inside):
        assert derive_input_sets(model) == {}
