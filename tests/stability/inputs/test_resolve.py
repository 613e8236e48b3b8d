from dataclasses import replace
from typing import Any

import pytest
import torch

from lightning_stable.recurrence import find_recurrences
from lightning_stable.stability import Box, FiniteSet, InputBound, L2Ball, Recorded, SupNorm
from lightning_stable.stability.inputs.resolve import resolve_sources, walk_layers
from lightning_stable.stability.inputs.sets import weakest_guarantee
from tests.nets import net


def walk(module: torch.nn.Module, bound: InputBound, training: bool | None = None) -> list[str | None]:
    """The words for the input set of each recurrence."""
    recurrences = find_recurrences(module)
    layers = walk_layers(recurrences, resolve_sources(module, recurrences, bound), 1.0, training)
    return [None if layer.inputs is None else layer.inputs.describe() for layer in layers]


def test_a_number_is_for_the_first_layers() -> None:
    model = torch.nn.ModuleDict({"a": net("gru", num_layers=2), "b": net("lstm")})
    assert walk(model, 2) == ["|x| <= 2", "the layer below", "|x| <= 2"]
    assert walk(model, {"a": L2Ball(1.0)}) == ["||x||_2 <= 1", "the layer below", None]
    assert walk(model, {"a.l1": 0.5}) == [None, "|x| <= 0.5", None]


def test_bounded_layers_bound_the_next_even_if_nothing_is_known_below() -> None:
    for name in ("rnn", "lstm", "gru", "proj"):
        assert walk(net(name, num_layers=3), None) == [None, "the layer below", "the layer below"]
    assert walk(net("relu", num_layers=2), None) == [None, None]
    assert walk(net("relu", num_layers=2, scale=0.3), 1.0) == ["|x| <= 1", "the layer below"]


def test_what_rests_on_data_says_so_through_the_layers() -> None:
    seen = Recorded(-torch.ones(3), torch.ones(3))
    derived = SupNorm(1.0)
    derived.guarantee = "derived"
    for known in (seen, derived):
        module = net("relu", num_layers=2, scale=0.3)
        first, second = walk_layers(find_recurrences(module), {"": known})
        assert (first.guarantee, second.guarantee) == (known.guarantee, known.guarantee)
    # Outputs of a GRU are bounded whatever comes in.
    _, second = walk_layers(find_recurrences(net("gru", num_layers=2)), {"": seen})
    assert second.guarantee == "guaranteed"


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_layer_reads_all_directions_of_the_layer_below(bidirectional: bool) -> None:
    module = net("proj", num_layers=2, bidirectional=bidirectional)
    *_, last = walk_layers(find_recurrences(module), {"": SupNorm(1.0)})
    suffixes = ("", "_reverse")[: 1 + bidirectional]
    bounds = torch.cat([module.get_parameter(f"weight_hr_l0{s}").detach().abs().sum(1) for s in suffixes])
    inputs = last.inputs
    assert isinstance(inputs, Box)
    torch.testing.assert_close(inputs.high, bounds)
    torch.testing.assert_close(inputs.low, -bounds)


@pytest.mark.parametrize(
    ("mode", "training", "active"), [(True, None, True), (False, None, False), (False, True, True)]
)
def test_dropout_between_layers(mode: bool, training: bool | None, active: bool) -> None:
    module = net("gru", num_layers=2, dropout=0.5).train(mode)
    words = walk(module, 1.0, training=training)[1]
    assert words == ("the layer below with dropout" if active else "the layer below")


def test_leading_rows_know_their_inputs_and_the_others_nothing() -> None:
    for name, leak in (("lstm", slice(5, 10)), ("gru", slice(5, 10)), ("rnn", slice(0, 5))):
        recurrences, sources = find_recurrences(net(name)), {"": FiniteSet(torch.eye(3).double())}
        exact, leading = (next(walk_layers(recurrences, sources, leading_only=only)).drive for only in (False, True))
        assert exact is not None
        assert leading is not None
        assert torch.equal(leading.high[leak], exact.high.expand(3, -1).amax(0)[leak])
        assert torch.equal(leading.low[leak], exact.low.expand(3, -1).amin(0)[leak])
        assert (leading.low <= exact.low).all()
        assert (leading.high >= exact.high).all()
        assert next(walk_layers(recurrences, {}, leading_only=True)).drive is None


def test_a_layer_reads_what_a_projection_puts_below_it() -> None:
    first, second = walk_layers(find_recurrences(net("proj", num_layers=2)), {"": SupNorm(1.0)}, projected=True)
    first.replace_weights({"weight_hr": torch.full((3, 5), 0.1)})
    assert isinstance(second.inputs, Box)
    torch.testing.assert_close(second.inputs.high, torch.full((3,), 0.5, dtype=torch.float32).double())


def test_replaced_weights_have_their_own_drive_and_output() -> None:
    layer, _ = walk_layers(find_recurrences(net("relu", num_layers=2, scale=0.3)), {"": SupNorm(99.0)}, projected=True)
    before = layer.output[0]
    layer.replace_weights({"weight_ih": 3 * layer.weights["weight_ih"]})
    assert before is not None
    assert layer.output[0] is not None
    assert (layer.output[0] > before).all()


def test_a_later_walk_knows_what_an_earlier_one_found_about_the_same_values() -> None:
    recurrences, sources = find_recurrences(net("lstm", num_layers=2)), {"": SupNorm(1.0)}
    known: dict[str, dict[str, Any]] = {}
    found = [layer.contraction("row") for layer in walk_layers(recurrences, sources, known=known)]
    again = [layer.contraction("row") for layer in walk_layers(recurrences, sources, known=known)]
    assert again[0] is found[0]
    assert again[1] is not found[1]  # what lies below may be bounded otherwise in another walk
    leading = next(walk_layers(recurrences, sources, leading_only=True, known=known))
    assert leading.contraction("row") is not found[0]


def test_nothing_is_kept_of_replaced_weights() -> None:
    recurrences, sources = find_recurrences(net("lstm")), {"": SupNorm(1.0)}
    known: dict[str, dict[str, Any]] = {}
    plain = next(walk_layers(recurrences, sources)).contraction("row").rate
    for _ in range(2):
        for layer in walk_layers(recurrences, sources, known=known):
            assert torch.equal(layer.contraction("row").rate, plain)
            layer.replace_weights({"weight_hh": layer.weights["weight_hh"] / 2})
            assert layer.contraction("row").rate < plain
    layers = list(walk_layers(recurrences, sources, known=known))
    assert [
        replace(layer, weights=layer.weights).contraction("row") is layer.contraction("row") for layer in layers
    ] == [False]


@pytest.mark.parametrize(
    ("guarantees", "weakest"),
    [([], "guaranteed"), (["guaranteed", "data"], "data"), (["data", "none", "guaranteed"], "none")],
)
def test_a_claim_is_worth_its_weakest_part(guarantees: list[str], weakest: str) -> None:
    assert weakest_guarantee(guarantees) == weakest
