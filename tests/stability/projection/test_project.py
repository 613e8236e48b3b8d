import itertools
import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_stable import certify, project_
from lightning_stable.recurrence import find_recurrences
from lightning_stable.stability import ActiveEntries, Constraint
from tests.nets import CELLS, LAYERS, NORMS, net, pairwise, set_

B = 2.0
RATES = [0.5, 0.9, 0.99, 0.999]
SCALES = [1.0, 4.0, 100.0]


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def moved(module: nn.Module, before: dict[str, Tensor]) -> list[str]:
    return [name for name, parameter in module.named_parameters() if not torch.equal(parameter, before[name])]


def projects(module: nn.Module, rate: float, **kwargs: Any) -> None:
    """The promise: certified, in place, and done once and for all."""
    storage = [parameter.data_ptr() for parameter in module.parameters()]
    arguments = {name: value for name, value in kwargs.items() if name in ("input_bound", "norm", "state_bound")}
    assert project_(module, rate, **kwargs).rate <= rate
    assert certify(module, **arguments).rate <= rate
    assert [parameter.data_ptr() for parameter in module.parameters()] == storage
    before = snapshot(module)
    project_(module, rate, **kwargs)
    assert moved(module, before) == []
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "layers", "bidirectional", "rate", "scale"), pairwise(list(LAYERS), [1, 2], [False, True], RATES, SCALES)
)
def test_layers(name: str, layers: int, bidirectional: bool, rate: float, scale: float) -> None:
    module = net(name, scale=scale, num_layers=layers, bidirectional=bidirectional, dtype=torch.float32)
    projects(module, rate, input_bound=B)


@pytest.mark.parametrize(("name", "rate", "scale"), pairwise(list(CELLS), RATES, SCALES))
def test_cells(name: str, rate: float, scale: float) -> None:
    projects(net(name, scale=scale, dtype=torch.float32), rate, input_bound=B)


@pytest.mark.parametrize(
    ("name", "dtype", "rate", "scale"),
    pairwise(list(LAYERS), [torch.float64, torch.bfloat16, torch.float16], [0.5, 0.99, 0.999], SCALES),
)
def test_dtypes(name: str, dtype: torch.dtype, rate: float, scale: float) -> None:
    projects(net(name, units=8, scale=scale, dtype=dtype), rate, input_bound=B)


def methods(name: str, norm: str) -> tuple[str, ...]:
    if name in ("rnn", "relu", "leaky"):
        return ("euclidean", "rescale")
    if name in ("mingru", "minlstm"):
        return ("euclidean",)
    if norm in ("l2", "miller-hardt"):
        return {"l2": ("shares", "rescale"), "miller-hardt": ("miller-hardt",)}[norm]
    return ("shares", "euclidean", "rescale", *(("miller-hardt",) if name in ("lstm", "proj") else ()))


COMBINATIONS = [(name, norm, m) for name, norms in NORMS.items() for norm in norms for m in methods(name, norm)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("name", "norm", "method"), COMBINATIONS)
def test_norms_and_methods(name: str, norm: str, method: str, bias: bool) -> None:
    low = 0.97 if "miller-hardt" in (norm, method) else 0.6
    for rate, scale in ((low, 10.0), (0.97, 1.0)):
        module = net(name, units=6, scale=scale, bias=bias, dtype=torch.float32)
        projects(module, rate, input_bound=B, norm=norm, method=method)


@pytest.mark.parametrize("rate", [0.5001, 0.501, 0.6, 0.9])
@pytest.mark.parametrize("name", ["lstm", "proj", "gru", "ugrnn"])
def test_without_biases_a_leak_gate_is_at_least_one_half(name: str, rate: float) -> None:
    module = net(name, bias=False, scale=4, dtype=torch.float32)
    projects(module, rate, input_bound=B)
    before = snapshot(module)
    for unreachable in ({"rate": 0.5}, {"rate": 0.3}, {"rate": 0.9, "gate_bound": 0.5}):
        with pytest.raises(ValueError, match=r"no bias, so its largest value is at least 1/2: `rate` and `gate_bound`"):
            project_(module, input_bound=B, **unreachable)
    assert moved(module, before) == []


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(list(LAYERS)),
    st.floats(0.3, 0.9999),
    st.floats(-2, 2).map(lambda x: 10**x),
    st.floats(0, 30),
    st.integers(1, 9),
    st.integers(0, 10**6),
    st.sampled_from([1.0, 5.0]),
)
def test_any_net(name: str, rate: float, scale: float, bound: float, units: int, seed: int, state_bound: float) -> None:
    units = max(units, 4) if name == "proj" else units
    module = net(name, units=units, scale=scale, seed=seed, dtype=torch.float32)
    projects(module, rate, input_bound=bound, state_bound=state_bound)


@pytest.mark.parametrize(("name", "norm", "method"), COMBINATIONS)
def test_the_fast_form_ends_inside_too(name: str, norm: str, method: str) -> None:
    for rate, scale in zip((0.97, 0.99, 0.97), SCALES, strict=True):
        module = net(name, units=16, scale=scale, dtype=torch.float32)
        arguments = {"input_bound": B, "norm": norm}
        assert project_(module, rate, method=method, strict=False, **arguments).rate <= rate
        before = snapshot(module)
        project_(module, rate, method=method, strict=False, **arguments)
        for parameter, old in zip(module.parameters(), before.values(), strict=True):
            assert (parameter - old).norm() <= 1e-6 * max(1.0, float(old.norm()))


# What moves, and how far ----------------------------------------------------------------------------------------------
def test_nets_inside_are_untouched() -> None:
    for name in LAYERS:
        module = net(name, scale=0.1, num_layers=2)
        before = snapshot(module)
        project_(module, 0.99, input_bound=B)
        assert moved(module, before) == []


@pytest.mark.parametrize("name", LAYERS)
def test_only_what_a_projection_may_change_moves(name: str) -> None:
    module = net(name, scale=4, num_layers=2)
    before = snapshot(module)
    project_(module, 0.9, input_bound=B)
    changed = moved(module, before)
    allowed = {"rnn": {"weight_hh"}, "relu": {"weight_hh"}, "leaky": {"weight_hh", "leak"}}.get(
        name, {"weight_ih", "weight_hh", "bias_ih", "bias_hh"}
    )
    assert changed
    assert {name.rsplit("_l", 1)[0] for name in changed} <= allowed
    if name not in ("rnn", "relu", "leaky"):
        leak = {"gru": ((1,), 3), "ugrnn": ((0,), 2), "intersection": ((0,), 2), "mingru": ((0,), 2)}
        own, gates = (leak | {"minlstm": ((0, 1), 3)}).get(name, ((1,), 4))
        for k in range(gates):
            if k not in own:  # inputs and biases of the leak gate only
                for role in before.keys() & {"weight_ih_l0", "bias_ih_l0", "bias_hh_l0"}:
                    assert torch.equal(module.get_parameter(role).chunk(gates)[k], before[role].chunk(gates)[k])


@pytest.mark.parametrize("rate", [0.5, 0.95])
def test_the_spectral_projection_is_the_nearest_point(rate: float) -> None:
    module = net("rnn", units=8, scale=4)
    u, s, v = torch.linalg.svd(module.weight_hh_l0.detach())
    project_(module, rate)
    torch.testing.assert_close(module.weight_hh_l0.detach(), (u * s.clamp(max=rate)) @ v, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["shares", "euclidean", "rescale"])
@pytest.mark.parametrize("name", ["lstm", "proj", "gru"])
def test_projections_end_near_the_boundary(name: str, method: str) -> None:
    # A projection that emptied the net would be certified, too.
    module = net(name, units=8, scale=2)
    report = project_(module, 0.95, input_bound=1.0, method=method)
    assert report.rate > 0.8
    kept = sum(norm**2 for norm in report.layers[0].recurrent_norm.values()) ** 0.5
    assert kept > 0.005 * module.weight_ih_l0.norm()


def test_shares_keep_every_gate_alive() -> None:
    module = net("lstm", units=32, scale=2)
    norms = project_(module, 0.95, input_bound=1.0, method="shares").layers[0].recurrent_norm
    assert min(norms.values()) > 1e-4


@pytest.mark.parametrize("scale", [0.1, 4.0])
@pytest.mark.parametrize("gate_bound", [0.3, 0.7, 0.98])
@pytest.mark.parametrize("name", ["lstm", "proj", "gru", "ugrnn", "intersection"])
def test_the_gate_bound_is_kept(name: str, gate_bound: float, scale: float) -> None:
    # Small nets have the rate already, and still must lower the gate.
    module = set_(net(name, scale=scale), bias_ih=2.0)
    project_(module, 0.99, input_bound=B, gate_bound=gate_bound)
    (recurrence,) = find_recurrences(module)
    weights, leak = recurrence.weights(), recurrence.gates.index(recurrence.leak)
    rows = slice(leak * 5, leak * 5 + 5)
    x = B * (2 * torch.rand(500, 3, dtype=torch.float64) - 1).sign()
    reach = recurrence.recurrent_matrix(weights)[rows].abs().sum(1)
    gate = torch.sigmoid(x @ weights["weight_ih"][rows].mT + reach + recurrence.bias(weights)[rows])
    assert gate.max() <= gate_bound


def test_a_sharper_input_set_keeps_more() -> None:
    kept = []
    for bound in (1.0, ActiveEntries(3), ActiveEntries(1)):
        module = net("lstm", inputs=40, units=8, scale=2)
        report = project_(module, 0.95, input_bound=bound)
        kept.append(sum(norm**2 for norm in report.layers[0].recurrent_norm.values()))
    assert kept == sorted(kept)


def test_weights_shared_by_recurrences() -> None:
    for seed in range(20):
        module = net("lstm", inputs=4, units=4, num_layers=2, seed=seed)
        module.weight_hh_l1 = module.weight_hh_l0
        with torch.no_grad():
            module.weight_hh_l0.mul_(4)
            module.weight_ih_l0.mul_(0.2)
        projects(module, 0.9, input_bound=B)


def test_the_model_still_trains() -> None:
    module = net("lstm", num_layers=2, dtype=torch.float32)
    optimizer = torch.optim.SGD(module.parameters(), lr=10.0)
    for _ in range(3):
        optimizer.zero_grad()
        module(torch.randn(5, 2, 3))[0].square().sum().backward()
        optimizer.step()
        assert project_(module, 0.9, input_bound=B).rate <= 0.9
    assert all(p.grad is not None and p.is_leaf and p.requires_grad for p in module.parameters())


def test_several_modules_and_patterns() -> None:
    model = nn.ModuleDict({"a": net("lstm", scale=4), "b": net("rnn", scale=4), "c": net("gru", scale=4)})
    before = snapshot(model)
    report = project_(model, 0.9, input_bound=B, modules=["a", "c"])
    assert [c.name for c in report.layers] == ["a.l0", "c.l0"]
    assert not any(name.startswith("b.") for name in moved(model, before))
    assert project_(model, 0.9, input_bound={"a": B, "c": B}).rate <= 0.9


# Frozen weights -------------------------------------------------------------------------------------------------------
def test_frozen_unstable_weights_are_named_and_kept() -> None:
    model = nn.ModuleDict({"frozen": net("rnn", scale=10).requires_grad_(False), "free": net("rnn", scale=10)})
    before = snapshot(model)
    with pytest.warns(
        UserWarning, match=r"The frozen recurrence 'frozen.l0' has the certified rate .* above the target"
    ):
        report = project_(model, 0.9)
    assert moved(model, before) == ["free.weight_hh_l0"]
    assert [c.is_stable for c in report.layers] == [False, True]


def test_frozen_stable_weights_need_no_warning() -> None:
    model = net("rnn", scale=0.1).requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        project_(model, 0.9)


def test_frozen_weights_need_no_input_bound() -> None:
    model = nn.ModuleDict({"frozen": net("lstm"), "free": net("rnn", scale=4)})
    model["frozen"].bias_hh_l0.requires_grad_(False)
    with pytest.warns(UserWarning, match=r"'frozen.l0' has the certified rate inf"):
        report = project_(model, 0.9)
    assert report.layers[1].is_stable


# Errors leave everything as it was ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("rate", "error"), [(1.0, ValueError), (math.nan, ValueError), ("0.9", TypeError), (torch.tensor(0.9), TypeError)]
)
def test_the_rate_is_a_number_between_0_and_1(rate: Any, error: type[Exception]) -> None:
    module = net("rnn", scale=4)
    before = snapshot(module)
    with pytest.raises(error, match=r"`rate` must be a number in \(0, 1\). Got"):
        project_(module, rate)
    assert moved(module, before) == []


@pytest.mark.parametrize(("gate_bound", "error"), [(0.0, ValueError), (0.9, ValueError), (True, TypeError)])
def test_the_gate_bound_lies_below_the_rate(gate_bound: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"`gate_bound` must be a number in \(0, 0.9\). Got"):
        project_(net("gru"), 0.9, input_bound=B, gate_bound=gate_bound)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("gru", {"method": "nearest"}, r"`method` must be one of \('shares', 'euclidean', 'rescale'\) for the gru"),
        ("rnn", {"method": "shares"}, r"`method` must be one of \('euclidean', 'rescale'\) for the rnn recurrence"),
        ("gru", {"method": "miller-hardt"}, r"`method` must be one of .* for the gru"),
        (
            "rnn",
            {"norm": "row"},
            r"`norm` must be one of \('l2', 'linf', 'l1', 'perron', 'diagonal', 'full'\) for the rnn",
        ),
        ("gru", {"norm": "miller-hardt"}, r"`norm` must be one of \('row', 'tight', 'l2'\) for the gru"),
        ("lstm", {"norm": "miller-hardt", "method": "shares"}, r"must be 'miller-hardt' with norm='miller-hardt'"),
        ("lstm", {"norm": "l2", "method": "euclidean"}, r"must be 'shares' or 'rescale' with norm='l2'"),
        (
            "lstm",
            {"norm": "miller-hardt", "rate": 0.9},
            r"cannot reach the rate. Got rate=0.9 with norm='miller-hardt'",
        ),
        (
            "lstm",
            {"norm": "miller-hardt", "state_bound": 3.0},
            r"`state_bound` must be at most 1 / \(1 - gate_bound\) = 2.77778 .*Got state_bound=3.0 .* for 'core.l0'",
        ),
        ("lstm", {"input_bound": None}, r"'core.l0' has no known input set.*pass `input_bound`.*Got input_bound=None"),
    ],
)
def test_arguments_that_do_not_fit(name: str, kwargs: dict[str, Any], message: str) -> None:
    model = nn.ModuleDict({"core": net(name, scale=4)})
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        project_(model, **{"rate": 0.99, "input_bound": B, **kwargs})
    assert moved(model, before) == []


def test_an_error_in_the_second_recurrence_leaves_the_first() -> None:
    model = nn.ModuleDict({"a": net("rnn", scale=4), "b": net("lstm", scale=4)})
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"'b.l0' has no known input set"):
        project_(model, 0.9)
    assert moved(model, before) == []


def test_a_constraint_is_checked_when_it_is_made() -> None:
    with pytest.raises(ValueError, match="`rate`"):
        Constraint(rate=2.0)
    with pytest.raises(ValueError, match="`state_bound`"):
        Constraint(state_bound=-0.5)
    assert Constraint(0.9) == Constraint(0.9, None, None, None, 1.0)


def test_huge_weights_and_biases_in_half_precision() -> None:
    for name, dtype in itertools.product(["lstm", "gru", "proj"], [torch.bfloat16, torch.float16]):
        module = set_(net(name, units=8, scale=20, dtype=dtype), bias_ih=40.0)
        assert project_(module, 0.9, input_bound=B).rate <= 0.9


def test_weights_that_cannot_be_written_leave_all_as_they_are() -> None:
    first, second = nn.RNN(3, 4), nn.RNN(4, 4)
    with torch.no_grad():
        first.weight_hh_l0.mul_(9)
    second.weight_hh_l0 = nn.Parameter(torch.ones(1, 1).expand(4, 4))
    before = snapshot(first)
    with pytest.raises(ValueError, match=r"can be written to. Got an expanded tensor in '1.weight_hh_l0'"):
        project_(nn.Sequential(first, second))
    assert moved(first, before) == []
    second.requires_grad_(False)  # what is not projected may be what it likes
    with pytest.warns(UserWarning, match="frozen"):
        project_(nn.Sequential(first, second))
