import math
import warnings
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_stable import certify, project_
from lightning_stable.precision import full_precision
from lightning_stable.stability import ActiveEntries, Box, Constraint, FiniteSet, L2Ball, LayerNormOutput
from lightning_stable.stability.projection import projector as projector_module
from lightning_stable.stability.projection.projector import Projector
from tests.helpers import CELLS, FEATURES, UNITS, equal, on_gpu, weights
from tests.nets import pairwise

RATE = 0.9
CONSTRAINT = Constraint(RATE)


class Model(nn.Module):
    """Two layers, both ways, of a cell; inputs as they come, or clamped."""

    def __init__(self, cell: str, *, bounded: bool = True, scale: float = 5.0, **kwargs: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bounded = bounded
        self.core = CELLS[cell](
            FEATURES, UNITS, **{"num_layers": 2, "bidirectional": True, "dropout": 0.3, "batch_first": True, **kwargs}
        )
        with torch.no_grad():
            for value in self.parameters():
                value.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.core(x.clamp(-1.0, 1.0) if self.bounded else x)[0]


def distance(old: dict[str, Tensor], new: dict[str, Tensor]) -> float:
    return math.sqrt(sum((new[name].double() - old[name].double()).square().sum().item() for name in old))


# Projection -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_projects_and_measures(cell: str, strict: bool, training: bool) -> None:
    """Dropout counts or does not, whatever mode the model is in: during a validation it is not in training."""
    model = Model(cell).train(not training)
    projector = Projector(model, CONSTRAINT, training=training)
    before = weights(model)
    moved = projector.project(strict=strict, measure=True)
    assert moved.item() == pytest.approx(distance(before, weights(model)), rel=1e-4)
    assert moved > 1
    report = projector.certify()
    assert report == certify(model.train(training))
    assert (0.99 if cell == "rnn" else 0.9) * RATE < report.rate <= RATE
    if cell == "rnn" or not strict:  # a strict projection uses what inputs do to the other gates
        assert projector.certify(leading_only=True).rate <= RATE
    after = weights(model)
    projector.project(strict=True)
    assert equal(after, weights(model))
    if cell == "rnn" or not strict:
        assert projector.project(strict=False, measure=True) < 1e-4 * moved  # rounding, and the wider margin


@pytest.mark.parametrize("cell", CELLS)
def test_strict_is_the_projection_of_the_function(cell: str) -> None:
    model, other = Model(cell), Model(cell)
    Projector(model, CONSTRAINT).project(strict=True)
    project_(other, RATE)
    assert equal(weights(model), weights(other))


@pytest.mark.parametrize("cell", CELLS)
def test_writes_into_the_storage_it_found(cell: str) -> None:
    model = Model(cell)
    pointers = [value.data_ptr() for value in model.parameters()]
    Projector(model, CONSTRAINT).project(strict=False)
    assert [value.data_ptr() for value in model.parameters()] == pointers
    assert all(value.grad_fn is None for value in model.parameters())


@pytest.mark.parametrize("inference", [True, False])
def test_in_inference_mode(inference: bool) -> None:
    """As in a validation: what is learned there can be used in training afterwards."""
    model = Model("lstm", bounded=False)
    projector = Projector(model, CONSTRAINT)
    projector.attach()
    with torch.inference_mode(inference):
        model(torch.ones(1, 2, FEATURES))
        projector.project(strict=True)
    model(torch.full((1, 2, FEATURES), 2.0)).sum().backward()
    projector.project(strict=False)
    assert projector.certify().rate <= RATE


def test_random_numbers_are_left_alone() -> None:
    """Deriving the input sets runs the model's own forward."""

    class Noisy(Model):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.randn(FEATURES))

    model = Noisy("lstm")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    projector = Projector(model, CONSTRAINT)
    assert projector.input_sets()["core"].describe() == "clamp(-1, 1)"  # it did run
    assert torch.equal(state, torch.get_rng_state())


# Precision ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
def test_full_precision(setting: str, device: str) -> None:
    before = torch.get_float32_matmul_precision()
    backend = torch.backends.cuda.matmul if device == "cuda" else getattr(torch.backends.mkldnn, "matmul", None)
    torch.set_float32_matmul_precision(setting)
    saved = getattr(backend, "fp32_precision", None)
    one, kind = torch.ones(1, 1), torch.device(device)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            with full_precision(kind):
                assert (one @ one).dtype == (torch.float32 if kind.type == "cpu" else torch.bfloat16)
                assert getattr(backend, "fp32_precision", "ieee") == "ieee"
                assert saved is not None or torch.get_float32_matmul_precision() == "highest"
            assert (one @ one).dtype == torch.bfloat16
            with pytest.raises(ValueError, match="as planned"), full_precision(kind):
                raise ValueError("as planned")
        assert getattr(backend, "fp32_precision", None) == saved
        assert torch.get_float32_matmul_precision() == setting
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("strict", [True, False])
def test_projection_under_autocast_is_the_same(cell: str, strict: bool) -> None:
    """Steps of manual optimization are made there."""
    model, other = Model(cell), Model(cell)
    Projector(model, CONSTRAINT).project(strict=strict)
    with torch.autocast("cpu", torch.bfloat16):
        Projector(other, CONSTRAINT).project(strict=strict)
    assert equal(weights(model), weights(other))


@on_gpu
@pytest.mark.parametrize("cell", CELLS)
def test_tf32_does_not_reach_the_projection(cell: str) -> None:
    model = Model(cell, bidirectional=False, num_layers=1).cuda()
    torch.set_float32_matmul_precision("high")
    try:
        projector = Projector(model, CONSTRAINT)
        projector.project(strict=False)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert projector.certify().rate <= RATE


@pytest.mark.parametrize("margin", [0.0, 2.0**-8])
@pytest.mark.parametrize("cell", CELLS)
def test_margin_of_the_fast_form(cell: str, margin: float) -> None:
    model = Model(cell)
    projector = Projector(model, CONSTRAINT, margin=margin)
    projector.project(strict=False)
    assert projector.certify().rate <= RATE * (1 - margin) * (1 + 1e-6)  # of which rounding to float32 takes a little
    assert projector.certify().rate <= RATE


# No waiting for the device --------------------------------------------------------------------------------------------

READS = {"_local_scalar_dense", "is_nonzero", "equal", "allclose", "nonzero", "masked_select"}


class Operations(TorchDispatchMode):
    """Names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.fetched = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        result = func(*args, **(kwargs or {}))
        if args and isinstance(args[0], Tensor) and isinstance(result, Tensor):
            self.fetched += args[0].device != result.device
        return result


FAST = [
    *(
        ("rnn", {"norm": norm, "method": m})
        for norm in ("l2", "linf", "l1", "perron")
        for m in ("euclidean", "rescale")
    ),
    *((cell, {"method": method}) for cell in ("lstm", "gru") for method in ("shares", "euclidean", "rescale")),
    *((cell, {"norm": "l2"}) for cell in ("lstm", "gru")),
    ("lstm", {"method": "miller-hardt"}),
]


@pytest.mark.parametrize(("cell", "arguments"), FAST, ids=str)
@pytest.mark.parametrize("bounded", [True, False])
def test_nothing_is_read_on_the_host(cell: str, arguments: dict[str, Any], bounded: bool) -> None:
    """A whole step: forward with recording and checking, projection, and its distance."""
    model = Model(cell, bounded=bounded)
    projector = Projector(model, Constraint(RATE, **arguments))
    projector.attach()
    inputs = torch.randn(2, 4, FEATURES)
    model(inputs)  # the first inputs of all may be waited for
    projector._on_cpu = projector._after_steps.reading = False
    with Operations() as operations:
        model(inputs)
        projector.project(strict=False, measure=True)
    assert len(operations.names) > 10
    assert not operations.names & READS
    with Operations() as operations:
        projector.certify()
    assert operations.names & READS  # would have been noticed
    assert projector.certify().rate <= RATE


@pytest.mark.parametrize(("cell", "arguments"), FAST, ids=str)
def test_without_any_values(cell: str, arguments: dict[str, Any]) -> None:
    """Tensors on the meta device have none to read."""
    projector = Projector(Model(cell).to("meta"), Constraint(RATE, **arguments))
    with Operations() as operations:
        moved = projector.project(strict=False, measure=True)
    assert moved.is_meta
    assert not operations.fetched  # a copy from the host would be waited for as well
    with pytest.raises(ValueError, match="Got a meta tensor"):
        projector.project(strict=True)


@pytest.mark.parametrize(
    "given",
    [2.0, torch.ones(FEATURES), Box(-1.0, 2.0), FiniteSet(torch.randn(5, FEATURES)), L2Ball(2.0)],
    ids=lambda given: type(given).__name__,
)
def test_given_sets_are_fetched_once(given: Any) -> None:
    projector = Projector(Model("gru").to("meta"), CONSTRAINT, input_bound=given)
    with Operations() as operations:
        projector.project(strict=False)
    assert not operations.fetched


@on_gpu
@pytest.mark.parametrize("cell", CELLS)
def test_on_a_gpu(cell: str) -> None:
    model, other = Model(cell).cuda(), Model(cell)
    pointers = [value.data_ptr() for value in model.parameters()]
    projector = Projector(model, CONSTRAINT)
    torch.cuda.set_sync_debug_mode("error" if cell != "rnn" else "default")  # eigh waits
    try:
        projector.project(strict=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert projector.certify().rate <= RATE
    assert [value.data_ptr() for value in model.parameters()] == pointers
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*contiguous.*")
        model(torch.zeros(1, 2, FEATURES, device="cuda"))
    Projector(other, CONSTRAINT).project(strict=False)
    assert all(
        torch.allclose(a.cpu(), b, atol=1e-4) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )


# Weights that are not finite ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "name", "value", "on_cpu"),
    pairwise(
        list(CELLS),
        ["weight_hh_l1_reverse", "weight_ih_l0", "bias_hh_l1"],
        [math.nan, math.inf, -math.inf],
        [True, False],
    ),
)
def test_weights_that_are_not_finite(cell: str, name: str, value: float, on_cpu: bool) -> None:
    """No weight is changed; where the fast form does not ask, the certificate does."""
    model = Model(cell)
    projector = Projector(model, CONSTRAINT)
    projector._on_cpu = on_cpu
    name = name.replace("hh", "ih") if cell in ("mingru", "minlstm") else name
    with torch.no_grad():
        getattr(model.core, name).view(-1)[1] = value
    before = {n: v.nan_to_num() for n, v in weights(model).items()}
    named = pytest.raises(ValueError, match=rf"must be finite\. Got NaN or Inf in 'core\.{name}'.*clip gradients")
    if on_cpu:
        with named:
            projector.project(strict=False)
    elif cell != "rnn":  # which tells by a decomposition that fails, or needs no input weights
        projector.project(strict=False)
        assert equal(before, {n: v.nan_to_num() for n, v in weights(model).items()})
    with named:
        projector.project(strict=True)
    with named:
        projector.certify()
    assert not on_cpu or equal(before, {n: v.nan_to_num() for n, v in weights(model).items()})


@pytest.mark.parametrize("on_cpu", [True, False])
def test_a_matrix_that_is_not_finite_is_named(on_cpu: bool) -> None:
    """By the decomposition that fails; where there is none, by the next certificate."""
    model = Model("rnn")
    projector = Projector(model, CONSTRAINT)
    projector._on_cpu = projector._after_steps.reading = on_cpu
    before = weights(model)
    with torch.no_grad():
        model.core.weight_hh_l1[0, 0] = math.nan
    if not on_cpu:
        projector.project(strict=False)
    with pytest.raises(ValueError, match=r"'core\.weight_hh_l1'"):
        projector.project(strict=not on_cpu)
    assert torch.equal(before["core.weight_hh_l0"], model.core.weight_hh_l0)


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_input_set_that_is_not_finite(cell: str, on_cpu: bool) -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, FEATURES)
            self.core = Model(cell).core

        def forward(self, x: Tensor) -> Tensor:
            return self.core(self.table(x))[0]

    model = Words()
    projector = Projector(model, CONSTRAINT)
    projector._on_cpu = on_cpu
    with torch.no_grad():
        model.table.weight[3, 1] = math.nan
    before = weights(model.core)
    named = pytest.raises(ValueError, match=r"input set of the recurrence 'core\.l0.*' must be finite.*an embedding")
    if on_cpu:
        with named:
            projector.project(strict=False)
    else:
        projector.project(strict=False)
    assert equal(before, weights(model.core))
    with named:
        projector.certify()


# Input sets -----------------------------------------------------------------------------------------------------------


def test_recorded_range_is_that_of_all_inputs() -> None:
    model = nn.ModuleDict({"one": nn.LSTM(FEATURES, UNITS), "two": nn.GRUCell(FEATURES, UNITS)})
    projector = Projector(model, CONSTRAINT)
    assert projector.unseen_inputs() == ["one.l0", "two"]
    assert projector.project(strict=False) is None
    projector.attach()
    shift = 9 * torch.eye(FEATURES)  # every way of calling shows in a feature of its own
    first, second = torch.randn(4, 2, FEATURES), torch.randn(3, FEATURES)
    model["one"](first + shift[0])
    assert projector.unseen_inputs() == ["two"]
    model["one"](input=first + shift[1])
    model["one"](pack_padded_sequence(first + shift[2], torch.tensor([4, 2]), enforce_sorted=False))
    model["two"](second)
    seen = torch.cat(
        [(first + offset).flatten(0, 1) for offset in shift[:2]] + [first[:, 0] + shift[2], first[:2, 1] + shift[2]]
    )
    for name, inputs in (("one", seen), ("two", second)):
        box = projector.input_sets()[name]
        assert box.guarantee == "data"
        assert torch.equal(box.low, inputs.amin(0))
        assert torch.equal(box.high, inputs.amax(0))
    projector.detach()
    model["two"](100 * second)
    assert torch.equal(projector.input_sets()["two"].high, second.amax(0))


def test_first_inputs_are_projected_for() -> None:
    """Before they are used, and for their own module alone."""
    model = nn.ModuleDict({"one": Model("lstm").core, "two": Model("gru").core})
    projector = Projector(model, CONSTRAINT)
    projector.attach()
    inputs, before = torch.randn(2, 4, FEATURES), weights(model)
    model["one"](inputs)
    assert equal(weights(model["two"]), {name[4:]: value for name, value in before.items() if name[:3] == "two"})
    box = Box(inputs.amin((0, 1)), inputs.amax((0, 1)))
    assert certify(model["one"], input_bound=box).rate <= RATE
    version = model["one"].weight_hh_l0._version
    model["one"](9 * inputs)  # wider, but these weights may be in use already
    model["two"](inputs)
    assert model["one"].weight_hh_l0._version == version
    assert certify(model["two"], input_bound=box).rate <= RATE
    projector.project(strict=False)
    assert certify(model["one"], input_bound=Box(9 * box.low, 9 * box.high)).rate <= RATE


def test_nothing_is_projected_for_first_inputs_without_training() -> None:
    model = Model("lstm", bounded=False).eval()
    projector, before = Projector(model, CONSTRAINT, training=False), weights(model)
    projector.attach()
    model(torch.randn(2, 4, FEATURES))
    assert equal(before, weights(model))
    assert projector.certify().layers[0].guarantee == "data"


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_inputs_that_are_not_finite_are_no_range(broken: float) -> None:
    model = Model("lstm", bounded=False)
    projector = Projector(model, CONSTRAINT)
    projector.attach()
    for value in (broken, 1.0, broken):
        inputs = torch.ones(1, 2, FEATURES)
        inputs[0, 1] = value
        model(inputs)
    box = projector.input_sets()["core"]
    assert torch.equal(box.low, torch.zeros(FEATURES))
    assert torch.equal(box.high, torch.ones(FEATURES))


def test_recurrences_that_rest_on_no_inputs_are_not_watched() -> None:
    model = Model("rnn", bounded=False)
    projector = Projector(model, CONSTRAINT)
    projector.attach()
    model(torch.ones(1, 2, FEATURES))
    assert not projector.monitor.ranges
    assert not projector.monitor.excess
    bounded = Projector(model, CONSTRAINT, input_bound=0.5)
    bounded.attach()
    model(torch.ones(1, 2, FEATURES))
    report = bounded.certify()
    assert (report.guarantee, report.input_excess) == (
        "guaranteed",
        pytest.approx(0.5, abs=1e-5),
    )  # the rate rests on no inputs
    assert report.required_window(1e-2) is None  # the windows do


def left(projector: Projector) -> dict[str, str | None]:
    """Layers whose inputs were seen outside their set, with the reason why there is no certificate."""
    return {layer.name: layer.reason for layer in projector.certify().layers if layer.input_excess > 0}


@pytest.mark.parametrize(
    ("bound", "recorded"),
    [
        ({"core.l0": 1.0}, True),
        ({"core.l0": 1.0, "core.l0_reverse": 2.0}, False),
        ({"core.l1": 1.0}, True),
        ({"core": 1.0, "core.l1": 0.5}, False),
        (3.0, False),
    ],
    ids=str,
)
def test_bounds_of_single_layers(bound: Any, recorded: bool) -> None:
    """What is missing is recorded, and all layers are projected in the end."""
    model = Model("lstm", bounded=False)
    projector = Projector(model, CONSTRAINT, input_bound=bound)
    projector.attach()
    model(torch.full((1, 2, FEATURES), 0.9))
    assert bool(projector.monitor.ranges) == recorded
    projector.project(strict=False)
    assert projector.unseen_inputs() == []
    report = projector.certify()
    assert report.rate <= RATE
    assert report.layers[0].guarantee == ("data" if recorded and "core.l0" not in bound else "guaranteed")
    assert not left(projector)
    if not recorded or "core.l0" in bound:
        model(torch.full((1, 2, FEATURES), 5.0))
        reasons = left(projector)
        assert all("lie outside its input set" in (reason or "") for reason in reasons.values())
        assert reasons.keys() == ({"core.l0"} if recorded else {"core.l0", "core.l0_reverse"})
        assert projector.certify().guarantee == "none"


@pytest.mark.parametrize(
    ("input_set", "inside", "outside", "by"),
    [
        (Box(-1.0, 2.0), [-1.0, 2.0, 0.0], [-1.5, 2.25, 0.0], 0.5),
        (L2Ball(5.0), [3.0, 4.0, 0.0], [6.0, 0.0, 8.0], 5.0),
        (ActiveEntries(2), [1.0, 0.0, 1.0], [1.0, 1.0, 1.0], 1.0),
        (Box(-1e6, 1e6), [1e6 * (1 + 1e-7), 0.0, 0.0], [1.5e6, 0.0, 0.0], 5e5),
    ],
    ids=lambda value: value.describe() if hasattr(value, "describe") else None,
)
def test_inputs_outside_their_set(input_set: Any, inside: list[float], outside: list[float], by: float) -> None:
    model = Model("gru", bounded=False)
    projector = Projector(model, CONSTRAINT, input_bound=input_set)
    projector.attach()
    model(torch.tensor([[inside]]))
    assert not left(projector)
    model(torch.tensor([[outside]]))
    reason = next(iter(left(projector).values()))
    assert reason is not None
    assert reason.startswith(f"Inputs of 'core' lie outside its input set ({input_set.describe()}) by {by:.4g}. ")
    model(torch.tensor([[inside, [math.nan] * FEATURES]]))
    assert projector.certify().input_excess == math.inf


def test_inputs_are_compared_in_full_precision() -> None:
    """Forwards run under autocast, where the product that gives the set would be rounded to three digits."""
    beta = torch.randn(FEATURES)
    model = Model("gru", bounded=False)
    projector = Projector(model, CONSTRAINT, input_bound=LayerNormOutput(torch.zeros(FEATURES), beta, FEATURES))
    projector.attach()
    with torch.autocast("cpu", torch.bfloat16):
        model(beta.expand(1, 2, -1))
    assert not left(projector)


def test_switched_off() -> None:
    model = Model("gru", bounded=False)
    known, unknown = Projector(model, CONSTRAINT, input_bound=0.5), Projector(model, CONSTRAINT)
    for projector in (known, unknown):
        projector.attach()
    known.monitor.checking = unknown.monitor.recording = False
    model(torch.ones(1, 2, FEATURES))
    assert not left(known)
    assert unknown.unseen_inputs()


# Several processes ----------------------------------------------------------------------------------------------------


def test_all_processes_get_the_same_ranges() -> None:
    """Also of a module that only another process has used so far; one collective, of one shape."""
    modules = {"one": nn.LSTM(FEATURES, UNITS), "two": nn.GRU(2, UNITS), "three": nn.GRU(4, UNITS)}
    model = nn.ModuleDict(modules)
    elsewhere = torch.cat((torch.ones(2, FEATURES), torch.full((2, 4), -math.inf), torch.full((2, 2), 3.0)), dim=1)
    shapes = []

    def reduce_max(tensor: Tensor) -> Tensor:
        shapes.append(tensor.shape)
        return torch.maximum(tensor, elsewhere)  # one, three, two: in the order of the names

    projector = Projector(model, CONSTRAINT, reduce_max=reduce_max)
    projector.attach()
    model["one"](torch.full((1, FEATURES), 7.0))
    assert projector.unseen_inputs() == ["three.l0"]
    sets = projector.input_sets()
    assert sets.keys() == {"one", "two"}
    assert (sets["one"].low.min(), sets["one"].high.max()) == (-1.0, 7.0)
    assert (sets["two"].low.min(), sets["two"].high.max()) == (-3.0, 3.0)
    assert set(shapes) == {(2, 9)}
    before = len(shapes)
    projector.project(strict=False)
    assert len(shapes) == before + 1


def test_an_input_outside_its_set_in_another_process() -> None:
    reduce_max = mock.Mock(side_effect=lambda largest: largest + 2.5)
    projector = Projector(Model("gru"), CONSTRAINT, input_bound=1.0, reduce_max=reduce_max)
    projector.project(strict=False)
    reduce_max.assert_not_called()  # nothing is recorded, so nothing need be told
    assert "by 2.5." in str(left(projector)["core.l0"])


def test_ranges_of_an_earlier_run() -> None:
    """Taken over where nothing better is known by now."""
    ranges = {"core": torch.full((2, FEATURES), 3.0), "gone": torch.ones(2, 1)}
    projector = Projector(Model("gru", bounded=False), CONSTRAINT, ranges=ranges)
    assert projector.input_sets().keys() == {"core"}
    assert projector.input_sets()["core"].low.max() == -3.0
    assert not Projector(Model("gru"), CONSTRAINT, ranges=ranges).monitor.ranges


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value"), [("norm", "l7"), ("method", "magic")])
def test_norm_or_method_that_does_not_fit(name: str, value: str) -> None:
    """Known at once, even where inputs are not; a certificate alone needs no method."""
    with pytest.raises(ValueError, match=rf"`{name}` must be one of .* Got '{value}'"):
        Projector(Model("lstm", bounded=False), Constraint(RATE, **{name: value}))
    Projector(Model("lstm", bounded=False), Constraint(RATE, method="magic"), training=False)


def test_other_errors_of_a_decomposition_come_through() -> None:
    projector = Projector(Model("rnn"), CONSTRAINT)
    error = mock.Mock(side_effect=RuntimeError("out of memory"))
    with mock.patch.object(projector_module, "propose_updates", error), pytest.raises(RuntimeError, match="of memory"):
        projector.project(strict=True)


def test_recurrent_norms() -> None:
    model = Model("lstm")
    norms = Projector(model, CONSTRAINT).recurrent_norms()
    assert norms == {
        f"core.{suffix}": pytest.approx(getattr(model.core, f"weight_hh_{suffix}").norm().item())
        for suffix in ("l0", "l0_reverse", "l1", "l1_reverse")
    }
