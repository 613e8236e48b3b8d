"""Certificates against an adversary, through torch's own layers."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_stable import certify, project_
from lightning_stable.recurrence import recurrences_of
from lightning_stable.stability import (
    ActiveEntries,
    Box,
    FiniteSet,
    InputSet,
    L2Ball,
    LayerCertificate,
    LayerNormOutput,
    Recorded,
    SupNorm,
)
from tests.nets import CELLS, LAYERS, NORMS, net, pairwise, set_
from tests.stability.adversary import TOLERANCE, member, worst_ratio

B = SupNorm(2.0)
TINY = 1e-11  # what rounding leaves of the difference of two states that have become one


def attack(module: nn.Module, inputs: InputSet | None, norm: str, **kwargs: Any) -> tuple[float, float]:
    """What the adversary finds, and what is certified."""
    state_bound = kwargs.get("state_bound", 1.0)
    (certificate,) = certify(module, input_bound=inputs, norm=norm, state_bound=state_bound).layers
    return worst_ratio(module, certificate, inputs, **kwargs), certificate.rate


def holds(module: nn.Module, inputs: InputSet | None, norm: str, **kwargs: Any) -> None:
    measured, rate = attack(module, inputs, norm, **kwargs)
    assert measured <= rate * (1 + TOLERANCE), f"{measured / rate - 1:.2g} above the certified {rate:.6g} ({norm})"


def cases() -> list[tuple[str, str]]:
    return [(name, norm) for name, norms in NORMS.items() for norm in norms]


# Default norms --------------------------------------------------------------------------------------------------------
def test_without_a_norm_nothing_is_called_unstable_before_the_sharpest_was_tried() -> None:
    torch.manual_seed(0)
    rnn = nn.RNN(8, 64)
    (certificate,) = certify(rnn).layers
    assert certificate.norm == "full"
    assert certificate.rate <= 0.85 < 1 < certify(rnn, norm="l2").rate
    torch.manual_seed(0)
    lstm = nn.LSTM(3, 5)
    with torch.no_grad():
        blocks = lstm.weight_hh_l0.view(4, 5, 5)
        blocks[:, 0] *= 5  # one unit hears much, and is heard little
        blocks[:, :, 0] /= 5
        lstm.weight_hh_l0.mul_(0.9 / float(certify(lstm, input_bound=0.1, norm="tight").rate))
    tight, row = (certify(lstm, input_bound=0.1, norm=norm).rate for norm in ("tight", "row"))
    assert tight < 1 < row
    assert certify(lstm, input_bound=0.1).layers[0].norm == "tight"


def test_without_a_norm_the_first_is_kept_where_it_suffices_or_nothing_does() -> None:
    torch.manual_seed(0)
    small, large = nn.RNN(3, 5), nn.LSTM(3, 5)
    with torch.no_grad():
        small.weight_hh_l0.mul_(0.1)
        large.weight_hh_l0.mul_(100)
    assert certify(small).layers[0].norm == "l2"
    assert certify(large, input_bound=1.0).layers[0].norm == "row"
    assert certify(nn.LSTM(3, 5)).layers[0].norm == "row"  # nothing is known about its inputs


# One step -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scale", [0.5, 2.0])
@pytest.mark.parametrize(("name", "norm"), cases())
def test_no_pair_of_states_contracts_less_than_certified(name: str, norm: str, scale: float) -> None:
    module = net(name, scale=scale)
    if norm == "miller-hardt":
        project_(module, 0.99, input_bound=B, norm=norm)
    holds(module, B, norm)


@pytest.mark.parametrize(("case", "rate"), pairwise(cases(), [0.5, 0.99]))
def test_no_pair_of_states_contracts_less_after_projection(case: tuple[str, str], rate: float) -> None:
    name, norm = case
    rate = 0.99 if norm == "miller-hardt" else rate
    module = net(name, scale=4.0)
    assert project_(module, rate, input_bound=B, norm=norm).rate <= rate
    holds(module, B, norm)


@pytest.mark.parametrize("name", ["rnn", "relu"])
@pytest.mark.parametrize("rate", [0.5, 0.9, 0.99])
def test_spectral_certificates_are_tight(name: str, rate: float) -> None:
    module = set_(net(name, scale=4), bias_ih=1.0 if name == "relu" else 0.0, bias_hh=0.0)
    project_(module, rate)
    measured, certified = attack(module, None, "l2", steps=100)
    assert 0.99 * certified <= measured <= certified * (1 + TOLERANCE)
    assert certified == pytest.approx(rate, rel=1e-6)


@pytest.mark.parametrize("name", CELLS)
def test_cells(name: str) -> None:
    module = net(name, scale=2)
    project_(module, 0.9, input_bound=B)
    holds(module, B, "l2" if "rnn" in name or "relu" in name else "row")


# Where a bound could fail ---------------------------------------------------------------------------------------------
def gate_biases(*values: float) -> Tensor:
    return torch.tensor(values).repeat_interleave(5)


def corner_cases() -> dict[str, tuple[nn.Module, InputSet, float]]:
    eye = torch.eye(5)
    one = {"inputs": 1, "units": 1}
    return {
        "huge weights": (net("lstm", scale=20), B, 1.0),
        "huge weights, GRU": (net("gru", scale=100), B, 1.0),
        "huge weights, proj_size": (net("proj", scale=10), B, 1.0),
        "hidden size 1": (net("lstm", scale=3, **one), B, 1.0),
        "hidden size 1, GRU": (net("gru", scale=3, **one), B, 1.0),
        "no recurrence": (set_(net("lstm"), weight_hh=0), B, 1.0),
        "no recurrence, GRU": (set_(net("gru"), weight_hh=0), B, 1.0),
        "no weights at all": (net("lstm", scale=0), B, 1.0),
        "no weights at all, GRU": (net("gru", scale=0), B, 1.0),
        "no biases": (net("lstm", scale=2, bias=False), B, 1.0),
        "large biases": (set_(net("lstm", scale=2), bias_ih=gate_biases(3, 2, -4, 5)), B, 1.0),
        "large biases, GRU": (set_(net("gru", scale=2), bias_ih=gate_biases(2, -3, 3)), B, 1.0),
        "closed output gate": (set_(net("lstm"), bias_hh=gate_biases(0, 0, 0, -30)), B, 1.0),
        "closed output gate, no recurrence": (
            set_(net("lstm"), weight_hh=0, bias_hh=gate_biases(0, 0, 0, -28)),
            B,
            1.0,
        ),
        "open forget gate": (set_(net("lstm"), bias_hh=gate_biases(0, 30, 0, 0)), B, 1.0),
        "open update gate": (set_(net("gru"), bias_hh=gate_biases(0, 30, 0)), B, 1.0),
        "closed update gate, strong coupling": (set_(net("gru", scale=4), bias_hh=gate_biases(0, -6, 0)), B, 1.0),
        "reset after b_hn": (set_(net("gru", scale=2), bias_hh=gate_biases(0, -4, 9), bias_ih=0), B, 1.0),
        "narrow intervals far from zero": (
            set_(net("lstm", scale=0.3), bias_hh=gate_biases(-3, 1, 2.5, 2)),
            Box(1.9, 2.0),
            1.0,
        ),
        # Steep and large at once: tanh far from zero while the gate in front of it moves.
        "candidate far from zero": (
            set_(
                net("lstm", **one), weight_ih=0, weight_hh=[[1.2], [0], [1], [0]], bias_ih=[1.2, -9, 2.47, 9], bias_hh=0
            ),
            B,
            1.0,
        ),
        "candidate far from zero, GRU": (
            set_(net("gru", **one), weight_ih=0, weight_hh=[[0], [-0.6], [1]], bias_ih=[9, -0.6, 2.47], bias_hh=0),
            B,
            1.0,
        ),
        # Value and slope of a gate at one point: where the largest gate is the worst, and where it is not.
        "forget gate worst at its end": (
            set_(net("lstm", **one), weight_ih=0, weight_hh=[[0], [0.01], [0], [0]], bias_ih=[9, 3.8, 9, 9], bias_hh=0),
            B,
            1.0,
        ),
        "forget gate worst inside, rate above 1": (
            set_(net("lstm", **one), weight_ih=0, weight_hh=[[0], [4], [0], [0]], bias_ih=[9, 0, 9, 9], bias_hh=0),
            B,
            1.0,
        ),
        "output gate worst inside": (
            set_(net("lstm", **one), weight_ih=0, weight_hh=[[0], [0], [0.1], [3.5]], bias_ih=[9, -9, 0, 0], bias_hh=0),
            B,
            3.0,
        ),
        "output gate against its tanh": (
            set_(
                net("lstm", **one), weight_ih=0, weight_hh=[[0], [0], [0.7], [2]], bias_ih=[9, -2, 0.9, 0.5], bias_hh=0
            ),
            B,
            1.0,
        ),
        "input gate against the candidate": (
            set_(net("lstm", **one), weight_ih=0, weight_hh=[[4], [0], [1], [0]], bias_ih=[0, -9, 0.3, 9], bias_hh=0),
            B,
            1.0,
        ),
        "update gate against the candidate": (
            set_(net("gru", **one), weight_ih=0, weight_hh=[[0], [2], [0.9]], bias_ih=[9, 0, 0], bias_hh=0),
            B,
            1.0,
        ),
        "reset gate worst inside": (
            set_(net("gru", **one), weight_ih=0, weight_hh=[[4], [0], [0.1]], bias_ih=[0, -3, -1], bias_hh=[0, 0, 2]),
            B,
            1.0,
        ),
        "a user's state": (net("lstm", scale=1.5), B, 3.0),
        "a user's state, GRU": (net("gru", scale=1.5), B, 3.0),
        "a user's state, proj_size": (net("proj", scale=1.5), B, 3.0),
        "a user's cell beyond its box": (set_(net("lstm"), bias_hh=gate_biases(-4, 0, 0, 0)), B, 5.0),
        "one-hot inputs": (net("lstm", scale=3), ActiveEntries(1), 1.0),
        "inputs in a ball": (net("gru", scale=3), L2Ball(1.0), 1.0),
        "finite inputs": (net("lstm", scale=3), FiniteSet(2 * torch.eye(3).double() - 1), 1.0),
        "finite inputs with dropout": (net("gru", scale=3), FiniteSet(1 + torch.eye(3).double(), 0.5), 1.0),
        "normalised inputs": (net("lstm", scale=2), LayerNormOutput(torch.tensor([1.0, 2.0, 0.5]), None, 3), 1.0),
        "only the update gate": (set_(net("gru"), weight_hh=torch.cat([0 * eye, 3 * eye, 0 * eye])), B, 1.0),
        "only the forget gate": (set_(net("lstm"), weight_hh=torch.cat([0 * eye, 3 * eye, 0 * eye, 0 * eye])), B, 1.0),
        "only the output gate": (set_(net("lstm"), weight_hh=torch.cat([0 * eye] * 3 + [3 * eye])), B, 1.0),
    }


@pytest.mark.parametrize("norm", ["row", "tight", "l2"])
@pytest.mark.parametrize("case", corner_cases())
def test_corner_cases(case: str, norm: str) -> None:
    module, inputs, state_bound = corner_cases()[case]
    measured, rate = attack(module, inputs, norm, state_bound=state_bound)
    if rate < 1e12:  # with a saturated forget gate c itself has no digits left
        assert measured <= rate * (1 + 1e-8) + TINY


@pytest.mark.parametrize(
    ("case", "least"),
    [
        ("forget gate worst at its end", 0.99),
        ("forget gate worst inside, rate above 1", 0.99),
        ("output gate worst inside", 0.999),
        ("output gate against its tanh", 0.999),
        ("input gate against the candidate", 0.94),
        ("update gate against the candidate", 0.55),
        ("reset gate worst inside", 0.95),
    ],
)
def test_gates_at_one_point_are_nearly_met(case: str, least: float) -> None:
    """Of one unit the adversary finds states near the worst gates, so a bound below the truth would be seen."""
    module, inputs, state_bound = corner_cases()[case]
    measured, rate = attack(module, inputs, "row", state_bound=state_bound, steps=200)
    assert least * rate <= measured <= rate * (1 + TOLERANCE), measured / rate


@pytest.mark.parametrize("name", ["lstm", "proj", "gru", "ugrnn"])
def test_emptied_gates(name: str) -> None:
    # The exact projection sends whole gates to zero.
    module = net(name, units=8, scale=4)
    project_(module, 0.9, input_bound=B, method="euclidean")
    for norm in ("row", "tight", "l2"):
        holds(module, B, norm)


def random_case(seed: int) -> tuple[nn.Module, InputSet, float]:
    generator = torch.Generator().manual_seed(seed)

    def pick(*values: Any) -> Any:
        return values[int(torch.randint(len(values), (1,), generator=generator))]

    small = pick(1, 2, 5)
    name, units = pick(("lstm", small), ("proj", pick(4, 6)), ("gru", small), ("ugrnn", small), ("intersection", small))
    module = net(name, units=units, seed=seed)
    gates = len(module.weight_hh_l0) // units
    hidden, inputs, bias = pick(0.1, 1.0, 3.0, 10.0), pick(0.01, 0.1, 1.0, 10.0), pick(0.0, 1.0, 3.0, 8.0)
    alive = torch.tensor([pick(1.0, 1.0, 1.0, 0.01, 0.0) for _ in range(gates)]).repeat_interleave(units)[:, None]
    with torch.no_grad():
        module.weight_hh_l0.mul_(hidden * alive)
        module.weight_ih_l0.mul_(inputs)
        module.bias_ih_l0.copy_(bias * torch.randn(gates * units, generator=generator))
    known = pick(B, SupNorm(0.1), Box(1.5, 2.0), L2Ball(1.0), ActiveEntries(1), FiniteSet(torch.randn(4, 3).double()))
    state_bound = pick(1.0, 1.0, 3.0)
    rate = pick(None, None, 0.5, 0.9, 0.99)
    if rate is not None:
        method = pick("shares", "euclidean", "rescale")
        project_(module, rate, input_bound=known, method=method, state_bound=state_bound)
    return module, known, state_bound


@pytest.mark.parametrize("seed", [*range(24), *(pytest.param(s, marks=pytest.mark.slow) for s in range(24, 400))])
def test_random_nets(seed: int) -> None:
    module, inputs, state_bound = random_case(seed)
    for norm in ("row", "tight", "l2"):
        measured, rate = attack(module, inputs, norm, state_bound=state_bound, pairs=64, steps=40, seed=seed)
        if rate < 1e9:
            assert measured <= rate * (1 + 1e-8) + TINY, norm


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["row", "tight"])
@pytest.mark.parametrize("name", ["lstm", "gru", "ugrnn"])
def test_gates_at_one_point_against_a_long_search(name: str, norm: str) -> None:
    """120,000 pairs of states and inputs each, at rates around 1, where both ends of a gate matter."""
    tightest = 0.0
    for seed, scale in enumerate((0.5, 1.0, 2.0, 4.0)):
        module = net(name, units=2, scale=scale, seed=seed)
        if seed % 2:
            project_(module, 0.99, input_bound=B)
        measured, rate = attack(module, B, norm, pairs=400, steps=75, seed=seed)
        assert measured <= rate * (1 + TOLERANCE)
        tightest = max(tightest, measured / rate)
    print(f"{name} {norm}: {4 * 400 * 75:,} evaluations, tightest ratio {tightest:.6f}")
    assert tightest > 0.7


# Many steps -----------------------------------------------------------------------------------------------------------
def distances(certificates: list[LayerCertificate], module: nn.Module, inputs: Tensor, states: Tensor) -> Tensor:
    """Distance of two runs of a stack from different states, ``(time, layers)``, by torch's layer step by step."""
    runs = [states, -states]
    runs = [(s, 2 * s) if isinstance(module, nn.LSTM) else s for s in runs]
    found = []
    for x in inputs:
        runs = [module(x[None], run)[1] for run in runs]
        parts = [run if isinstance(run, tuple) else (run,) for run in runs]
        found.append(
            torch.stack(
                [
                    c.distance(tuple(p[c.layer] for p in parts[0]), tuple(p[c.layer] for p in parts[1])).amax()
                    for c in certificates
                ]
            )
        )
    return torch.stack(found)


@pytest.mark.parametrize("rate", [0.5, 0.9])
@pytest.mark.parametrize("name", ["rnn", "relu", "lstm", "gru", "ugrnn", "intersection"])
def test_stacks_contract_at_the_certified_rate(name: str, rate: float) -> None:
    module = net(name, scale=3, num_layers=2)
    report = project_(module, rate, input_bound=B)
    steps = 12 if rate == 0.5 else 80
    inputs = member(B, torch.randn(2 * steps, 16, 3, dtype=torch.float64).flatten(0, 1)).view(2 * steps, 16, 3)
    states = torch.rand(2, 16, 5, dtype=torch.float64).sign() * torch.rand(2, 16, 5, dtype=torch.float64)
    found = distances(list(report.layers), module, inputs, states).detach()
    first, second = found.unbind(1)
    # The first layer contracts at every step, the second like t rate^t: both layers at every rate above.
    noise = 1e-12
    assert (first[1:] <= report.layers[0].rate * first[:-1] + noise).all()
    assert first[-1] <= report.rate**steps * first[steps - 1] + noise
    assert second[-1] <= 2.1 * report.rate**steps * second[: steps + 1].amax() + noise


@pytest.mark.parametrize("name", ["rnn", "lstm", "proj", "gru"])
def test_both_directions_of_a_stack_forget_their_ends(name: str) -> None:
    rate, steps = 0.8, 60
    module = net(name, scale=3, num_layers=2, bidirectional=True)
    report = project_(module, rate, input_bound=B)
    assert [c.direction for c in report.layers] == ["forward", "backward"] * 2
    middle = 2 * torch.rand(steps, 8, 3, dtype=torch.float64) - 1
    ends = [2 * (2 * torch.rand(10, 8, 3, dtype=torch.float64) - 1) for _ in range(4)]
    one, other = (module(torch.cat([a, middle, b]))[0].detach() for a, b in (ends[:2], ends[2:]))
    difference = (one - other).abs().amax((1, 2))
    # Half way both ends are steps / 2 away; two layers lose a factor linear in time.
    assert difference[10 + steps // 2] <= 2 * steps * rate ** (steps / 2) * difference.amax()
    assert difference.amax() > 1e-3


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_float32_runs_contract_down_to_their_rounding(name: str) -> None:
    rate = 0.9
    module = net(name, units=32, scale=4, dtype=torch.float32)
    report = project_(module, rate, input_bound=B)
    inputs = 2 * torch.rand(100, 8, 3) - 1
    states = 2 * torch.rand(1, 8, 32) - 1
    found = distances(list(report.layers), module, inputs, states).detach()[:, 0].double()
    # One float32 step is wrong by some 1e-6, which the steps after it contract too.
    assert (found[1:] <= rate * found[:-1] + 1e-5).all()
    assert found[-1] <= rate**99 * found[0] + 1e-5 / (1 - rate)


# What layers read -----------------------------------------------------------------------------------------------------
def test_layers_read_the_box_of_the_layer_below() -> None:
    stack = net("gru", num_layers=2, bidirectional=True)
    words = [c.input_bound for c in certify(stack, input_bound=B).layers]
    assert words == ["|x| <= 2", "|x| <= 2", "the layer below", "the layer below"]
    lone = net("gru", inputs=10)
    with torch.no_grad():
        for name, parameter in lone.named_parameters():
            parameter.copy_(getattr(stack, name.replace("l0", "l1")))
    assert certify(stack, input_bound=B).layers[2].rate == pytest.approx(certify(lone, input_bound=1.0).rate)


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_dropout_between_layers_counts_in_training(name: str) -> None:
    dropout = 0.75
    module = net(name, num_layers=3, dropout=dropout, scale=2)
    training, evaluation = (certify(module.train(mode), input_bound=B).layers for mode in (True, False))
    scaled = {f"l{k}": 1 / (1 - dropout) for k in (1, 2)}
    expected = certify(module.eval(), input_bound={"l0": B, **scaled}).layers
    if name == "rnn":
        assert training == evaluation
        return
    # A GRU's or LSTM's outputs are bounded by 1, times 1 / (1 - p) in training.
    for layer in (1, 2):
        assert training[layer].rate == pytest.approx(expected[layer].rate)
        assert training[layer].rate > evaluation[layer].rate
    assert training[0].rate == evaluation[0].rate


def test_dropout_scaling_is_attained_by_torchs_layer() -> None:
    module = net("lstm", num_layers=2, dropout=0.75, scale=30).train()
    seen: list[Tensor] = []
    # The second layer's pre-activations show what it read: h / (1 - p) beyond 1, never beyond 4.
    module.weight_hh_l1.data.zero_()
    module.bias_ih_l1.data.zero_()
    module.bias_hh_l1.data.zero_()
    module.weight_ih_l1.data.zero_()
    module.weight_ih_l1.data[15:] = torch.eye(5)  # output gate
    module.bias_ih_l1.data[:5] = module.bias_ih_l1.data[10:15] = 50.0  # i = g = 1
    for _ in range(20):
        _, (h, c) = module(2 * torch.randn(5, 16, 3, dtype=torch.float64))
        seen.append(torch.logit(h[1] / c[1].tanh()))
    largest = torch.stack(seen).abs().max().item()
    assert 3.5 < largest <= 4 * (1 + 1e-9)


def test_outputs_of_a_tanh_network_bound_the_gated_layer_above() -> None:
    model = nn.Sequential(nn.Tanh(), net("lstm"))
    assert certify(model).rate == pytest.approx(certify(model[1], input_bound=1.0).rate)


class Tagger(nn.Module):
    def __init__(self, name: str, dropout: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.dropout = nn.Embedding(6, 3).double(), nn.Dropout(dropout)
        self.core = net(name, scale=3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.core(self.dropout(self.embedding(tokens)))[0]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("rate", [None, 0.9])
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_embedding_tables_through_the_real_layers(name: str, rate: float | None, dropout: float) -> None:
    model = Tagger(name, dropout)
    if rate is not None:
        assert project_(model, rate).rate <= rate
    (certificate,) = certify(model).layers
    assert certificate.guarantee == "derived"
    # All tokens under all dropout masks, as the model itself makes them.
    tokens = torch.arange(6).repeat(200)[:, None]
    points = model.dropout(model.embedding(tokens))[:, 0].detach()
    measured = worst_ratio(model.core, certificate, FiniteSet(points), pairs=len(points), steps=20)
    assert measured <= certificate.rate * (1 + TOLERANCE)
    # Sharper than the box around the table.
    box = model.embedding.weight.abs().amax(0).detach() / (1 - dropout)
    assert certificate.rate < certify(model, input_bound=box).rate


@pytest.mark.parametrize("name", ["lstm", "gru", "proj", "ugrnn", "intersection"])
def test_states_given_by_a_user(name: str) -> None:
    module = net(name, scale=1.5)
    report = certify(module, input_bound=B, state_bound=4.0)
    assert report.rate > certify(module, input_bound=B).rate
    assert project_(module, 0.95, input_bound=B, state_bound=4.0).rate <= 0.95
    holds(module, B, "row", state_bound=4.0)


# The report's promises ------------------------------------------------------------------------------------------------
def test_unknown_inputs_have_no_certificate() -> None:
    report = certify(nn.ModuleDict({"a": net("lstm"), "b": net("rnn")}))
    unknown, plain = report.layers
    assert (unknown.rate, unknown.guarantee) == (math.inf, "none")
    assert plain.guarantee == "guaranteed"
    assert report.rate == math.inf
    assert not report.is_stable


def test_seen_inputs_promise_nothing_for_others() -> None:
    seen = Recorded(-torch.ones(3), torch.ones(3))
    model = nn.ModuleDict({"core": net("gru", num_layers=2), "plain": net("rnn")})
    assert [c.guarantee for c in certify(model, input_bound=seen).layers] == ["data", "guaranteed", "guaranteed"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("norm", ["row", "tight", "l2"])
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_a_broken_embedding_is_never_stable(name: str, norm: str, value: float) -> None:
    model = Tagger(name, 0.0)
    with torch.no_grad():
        model.embedding.weight[2, 1] = value
    assert not certify(model, norm=norm).is_stable
    before = model.core.weight_hh_l0.clone()
    if math.isnan(value):
        with pytest.raises(ValueError, match=r"input set of the recurrence .* must be finite"):
            project_(model, 0.9, norm=norm)
        assert torch.equal(model.core.weight_hh_l0, before)


def test_certificates_ignore_autocast_and_the_default_dtype() -> None:
    module = net("lstm")
    rate = certify(module, input_bound=0.7).rate
    with torch.autocast("cpu", torch.bfloat16):
        assert certify(module, input_bound=0.7).rate == rate
    torch.set_default_dtype(torch.float64)
    try:
        assert certify(module, input_bound=0.7).rate == rate
    finally:
        torch.set_default_dtype(torch.float32)


def test_weights_are_read_as_they_are_stored() -> None:
    module = net("lstm", dtype=torch.float32)
    rates = {dtype: certify(module.to(dtype), input_bound=B).rate for dtype in (torch.float32, torch.bfloat16)}
    assert rates[torch.float32] != rates[torch.bfloat16]
    assert certify(module.double(), input_bound=B).rate == rates[torch.bfloat16]


def test_a_mapping_names_modules_or_layers() -> None:
    model = nn.ModuleDict({"core": net("gru", num_layers=2)})
    by_module = certify(model, input_bound={"core": 2.0}).layers
    by_layer = certify(model, input_bound={"core.l0": 2.0, "core.l1": Box(0.0, 0.5, label="gated")}).layers
    assert by_layer[0] == by_module[0]
    assert by_layer[1].input_bound == "gated"
    assert by_layer[1].rate < by_module[1].rate


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"input_bound": {"kore": 1.0}}, r"`input_bound` names no recurrence. Got key 'kore'; there are \['core', 'c"),
        ({"input_bound": -1.0}, "`input_bound` must be finite and nonnegative. Got -1.0"),
        ({"input_bound": torch.ones(4)}, r"`input_bound` of 'core' must be for 3 features. Got one for 4: |x| <= 1"),
        ({"input_bound": {"core.l0": FiniteSet(torch.eye(2))}}, r"of 'core.l0' must be for 3 features. Got one for 2"),
        ({"norm": "frobenius"}, r"`norm` must be one of \('row', 'tight', 'l2'\) for the gru recurrence 'core.l0'"),
        ({"state_bound": -0.5}, r"`state_bound` must be a number in \[0, inf\). Got -0.5"),
        ({"state_bound": math.inf}, r"`state_bound` must be a number in \[0, inf\). Got inf"),
        ({"modules": "encoder"}, "`modules` pattern matches no recurrent module. Got 'encoder'"),
    ],
)
@pytest.mark.parametrize("verb", [certify, project_])
def test_arguments_that_are_not_understood(verb: Any, kwargs: dict[str, Any], message: str) -> None:
    model = nn.ModuleDict({"core": net("gru")})
    before = model["core"].weight_hh_l0.clone()
    with pytest.raises(ValueError, match=message):
        verb(model, **{"input_bound": 1.0, **kwargs})
    assert torch.equal(model["core"].weight_hh_l0, before)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"input_bound": {"core": "2"}}, "`input_bound` must be a number, an input set"),
        ({"input_bound": "2"}, "`input_bound` must be a number, an input set"),
        ({"norm": 2}, "`norm` must be a string. Got 2"),
        ({"state_bound": "1"}, r"`state_bound` must be a number in \[0, inf\). Got '1'"),
        ({"modules": 1}, "`modules` must be a name pattern, several of them, or None. Got 1"),
    ],
)
@pytest.mark.parametrize("verb", [certify, project_])
def test_arguments_of_a_wrong_type(verb: Any, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        verb(nn.ModuleDict({"core": net("gru")}), **{"input_bound": 1.0, **kwargs})


@pytest.mark.parametrize("verb", [certify, project_])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named_and_kept(verb: Any, value: float) -> None:
    model = nn.ModuleDict({"first": net("rnn", scale=4), "core": net("lstm", num_layers=2, scale=4)})
    with torch.no_grad():
        model["core"].bias_hh_l1[3] = value
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with pytest.raises(ValueError, match=r"Got NaN or Inf in 'core.bias_hh_l1'; all weights were left as they are"):
        verb(model, input_bound=1.0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("verb", [certify, project_])
def test_no_recurrence(verb: Any) -> None:
    with pytest.raises(ValueError, match="No recurrence found in Linear"):
        verb(nn.Linear(2, 2))


@pytest.mark.parametrize("name", LAYERS)
def test_recurrent_norms_show_emptied_gates(name: str) -> None:
    module = net(name)
    (certificate,) = certify(module, input_bound=B).layers
    gates = {"rnn": "h", "relu": "h", "leaky": "h", "gru": "rzn", "ugrnn": "gc", "intersection": "gh"}.get(name, "ifgo")
    # Nothing of a cell is recurrent whose gates read the input alone.
    stored = getattr(module, "weight_hh_l0", None)
    blocks = {} if stored is None else dict(zip(gates, stored.chunk(len(gates)), strict=True))
    assert certificate.recurrent_norm == pytest.approx({gate: block.norm().item() for gate, block in blocks.items()})
    assert recurrences_of(module)[0].projected_roles


def with_dtype(name: str, dtype: torch.dtype) -> nn.Module:
    module = net(name)
    for key, parameter in list(module.named_parameters()):
        setattr(module, key, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))
    return nn.ModuleDict({"core": module})


@pytest.mark.parametrize("verb", [certify, project_])
@pytest.mark.parametrize("name", ["rnn", "lstm"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.int32, torch.bool, torch.float8_e5m2])
def test_weights_that_are_no_real_numbers_are_named(verb: Any, name: str, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=rf"must be float16, .* numbers. Got {dtype} in 'core.weight_ih_l0'"):
        verb(with_dtype(name, dtype), input_bound=1.0)


def test_quantized_and_meta_weights_are_named() -> None:
    module = nn.ModuleDict({"core": net("gru")})
    weight = module["core"].weight_hh_l0.detach().float()
    quantized = torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)
    module["core"].weight_hh_l0 = nn.Parameter(quantized, requires_grad=False)
    with pytest.raises(ValueError, match=r"Got torch.qint8 in 'core.weight_hh_l0'"):
        certify(module, input_bound=1.0)
    with pytest.raises(ValueError, match=r"Got a meta tensor in 'core.weight_ih_l0'"):
        certify(nn.ModuleDict({"core": nn.GRU(3, 4, device="meta")}), input_bound=1.0)


def test_weights_whose_sum_overflows_are_not_called_nan() -> None:
    module = nn.ModuleDict({"core": set_(net("rnn"), weight_hh=1e308)})
    with pytest.raises(ValueError, match=r"Got entries whose sum overflows in 'core.weight_hh_l0'"):
        certify(module)


CASES = [(name, norm) for name, norms in NORMS.items() for norm in norms]


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(CASES),
    st.sampled_from([SupNorm(2.0), L2Ball(2.0), ActiveEntries(2)]),
    st.floats(-322, 307),
    st.floats(-322, 307),
)
def test_no_scale_of_the_weights_gives_a_false_rate(
    case: tuple[str, str], inputs: InputSet, hidden: float, driven: float
) -> None:
    name, norm = case
    module = net(name)
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            exponents = {"weight_hh": hidden, "weight_hr": hidden, "weight_ih": driven}
            parameter.mul_(10.0 ** exponents.get(key[:9], 0.0))
    report = certify(module, input_bound=inputs, norm=norm)
    (certificate,) = report.layers
    assert not math.isnan(certificate.rate)
    if not certificate.is_stable:
        assert report.required_window(1e-3) is None
        return
    errors = report.bounds[0].errors(3)
    assert not errors.isnan().any()
    if name in ("rnn", "relu"):
        assert certificate.rate >= torch.linalg.eigvals(module.weight_hh_l0).abs().max() * (1 - 1e-9)
        assert name == "relu" or errors[0] > 0  # later products may underflow
    elif certificate.rate > 0:
        assert worst_ratio(module, certificate, inputs, pairs=16, steps=3) <= certificate.rate * (1 + TOLERANCE)
