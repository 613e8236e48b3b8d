import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from lightning_stable import certify
from lightning_stable.recurrence import find_recurrences
from lightning_stable.stability import ActiveEntries, Recorded, SupNorm, record_inputs
from lightning_stable.stability.inputs.watch import InputMonitor
from tests.nets import net


def test_the_range_of_every_input_is_recorded() -> None:
    model = nn.ModuleDict({"core": net("gru", num_layers=2), "cell": net("lstm_cell")})
    batches = [torch.randn(4, 2, 3, dtype=torch.float64) for _ in range(3)]
    with record_inputs(model) as seen:
        for x in batches:
            model["core"](input=2 * x)
            model["cell"](x[0])
    data = 2 * torch.cat(batches)
    recorded = seen["core"]
    assert isinstance(recorded, Recorded)
    torch.testing.assert_close(recorded.low, data.amin((0, 1)).float())
    torch.testing.assert_close(recorded.high, data.amax((0, 1)).float())
    torch.testing.assert_close(seen["cell"].high, data[[0, 4, 8]].amax((0, 1)).float() / 2)
    report = certify(model, input_bound=seen)
    assert [c.guarantee for c in report.layers] == ["data", "guaranteed", "data"]
    # The hooks are gone.
    with torch.no_grad():
        model["core"](100 * batches[0])
    assert recorded.high.max() < 50


def test_padding_of_packed_sequences_is_not_seen() -> None:
    core = net("lstm", dtype=torch.float32)
    x = torch.ones(5, 2, 3)
    x[2:, 1] = 100.0
    with record_inputs(core) as seen:
        core(pack_padded_sequence(x, torch.tensor([5, 2])))
    assert seen[""].high.tolist() == [1.0, 1.0, 1.0]


def test_hooks_are_removed_after_an_error() -> None:
    core = net("rnn", dtype=torch.float32)
    with pytest.raises(RuntimeError, match="must be equal to"), record_inputs(core):
        core(torch.ones(4, 2, 7))
    assert not core._forward_pre_hooks


def test_known_sets_are_compared_with_what_comes_in() -> None:
    model = nn.ModuleDict({"a": net("gru", dtype=torch.float32), "b": net("gru", dtype=torch.float32)})
    monitor = InputMonitor(find_recurrences(model), {"a": SupNorm(1.0), "b": ActiveEntries(1)})
    monitor.attach()
    one_hot = torch.eye(3).expand(2, 3, 3)
    model["a"](one_hot)
    model["b"](one_hot)
    assert sorted(monitor.excess) == ["a", "b"]
    assert all(excess <= 0 for excess in monitor.excess.values())
    model["a"](-1.5 * one_hot)
    model["a"](one_hot)
    model["b"](torch.ones(2, 3, 3))
    assert {name: round(excess.item(), 3) for name, excess in monitor.excess.items()} == {"a": 0.5, "b": 2.0}
    monitor.checking = False
    model["a"](9 * one_hot)
    assert monitor.excess["a"].item() == pytest.approx(0.5, rel=1e-3)
    monitor.detach()
    assert monitor.recorded() == {}


def test_the_first_inputs_are_announced_before_they_are_used() -> None:
    core = net("gru", dtype=torch.float32)
    announced = []
    monitor = InputMonitor(find_recurrences(core), on_first=announced.append)
    monitor.attach()
    core(torch.ones(4, 2, 3))
    core(torch.ones(4, 2, 3))
    assert announced == [""]
