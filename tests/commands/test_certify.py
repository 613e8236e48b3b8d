"""``lightning-stable certify``: its exit status, what it prints, and one line for what is wrong."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_stable import certify, cli, project_
from lightning_stable.callbacks import StabilityProjectionCallback
from lightning_stable.commands._checkpoint import assignment, parse_input_bound
from lightning_stable.models import LanguageModel, MusicModel
from lightning_stable.stability import ActiveEntries, Box, L2Ball
from tests.checkpoint_files import CLASS, Gated, Plain, as_cli, save
from tests.helpers import sequences, trainer


def language_model(rate: float | None = 0.9, **kwargs: Any) -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(7, **{"hidden_size": 6, "embedding_size": 5, "dropout": 0.3, **kwargs})
    if rate is None:
        with torch.no_grad():
            model.core.weight_hh_l0.mul_(5)
    else:
        project_(model, rate)
    return model


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on stderr of a command that fails."""
    assert cli.main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("lightning-stable: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize(("rate", "status"), [(0.9, 0), (None, 1)])
def test_the_status_says_whether_it_is_stable(
    rate: float | None, status: int, window: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = as_cli(language_model(rate, window=window), tmp_path)
    assert cli.main(["certify", str(path)]) == status
    out = capsys.readouterr().out
    assert "core.l0" in out
    assert ("Not certified stable: 'core.l0' has rate" if status else "Stable: every step contracts by 0.") in out


@pytest.mark.parametrize(("rate", "status"), [(0.9, 0), (None, 1)])
def test_json(rate: float | None, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = language_model(rate)
    assert cli.main(["certify", str(as_cli(model, tmp_path)), "--json"]) == status
    found = json.loads(capsys.readouterr().out)
    assert found.pop("stable") is (status == 0)
    assert "stable" in found.pop("reason").lower()
    assert found == certify(model.eval()).to_dict()


@pytest.mark.parametrize("rate", [0.9, None])
def test_the_window_for_a_tolerance(rate: float | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = language_model(rate)
    cli.main(["certify", str(as_cli(model, tmp_path)), "--tolerance", "0.01"])
    out = capsys.readouterr().out
    if rate is None:
        assert "No useful bound is certified. The rate of 'core.l0'" in out
    else:
        assert f"after {certify(model.eval()).required_window(0.01)} inputs (derived), the past changes no" in out


def test_the_papers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = language_model(0.9)
    assert cli.main(["certify", str(as_cli(model, tmp_path)), "--citation"]) == 0
    assert capsys.readouterr().out == certify(model.eval()).citation() + "\n"


def test_inputs_that_are_not_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Gated(4)
    project_(model, 0.9, input_bound=2.0)
    certify_it = ["certify", str(save(model, tmp_path)), "--class-path", CLASS]
    message = error_of(capsys, *certify_it)
    assert "`--input-bound` must bound the inputs of 'core.l0' (gru), unless" in message
    assert cli.main([*certify_it, "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert (found["stable"], found["guarantee"], found["rate"]) == (None, "none", None)
    for reason in (found["reason"], found["layers"][0]["reason"]):
        assert "--input-bound" in reason
        assert "StabilityProjectionCallback recorded" in reason
    assert cli.main(certify_it) == 2
    table = " ".join(capsys.readouterr().out.split())
    assert "no set of them is known. Pass `--input-bound`" in table
    assert "recorded the ranges" in table
    assert cli.main([*certify_it, "--input-bound", "2"]) == 0
    assert "|x| <= 2" in capsys.readouterr().out
    assert cli.main([*certify_it, "--input-bound", "box:-1:2"]) == 0
    assert "-1 <= x <= 2" in capsys.readouterr().out
    assert cli.main([*certify_it, "--input-bound", "1000"]) == 1


def test_what_was_read_off_the_model_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(as_cli(language_model(), tmp_path))
    assert cli.main(["certify", path]) == 0
    out = capsys.readouterr().out
    assert "derived" in out
    assert "for all inputs the traced model lets through (derived); --input-bound declares them" in out
    assert cli.main(["certify", path, "--input-bound", "10", "--json"]) in (0, 1)
    assert json.loads(capsys.readouterr().out)["guarantee"] == "guaranteed"


def test_a_rate_without_an_end_is_not_stable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(Gated(4, scale=1e30), tmp_path)
    assert cli.main(["certify", str(path), "--class-path", CLASS, "--input-bound", "1e300"]) == 1
    assert "Not certified stable: 'core.l0' has rate" in capsys.readouterr().out


def test_a_damaged_weight_is_not_certified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Gated(4)
    path = save(model, tmp_path)
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(model.core.weight_hh_l0.detach().numpy().tobytes()) + 2] ^= 64
    path.write_bytes(damaged)
    message = error_of(capsys, "certify", path, "--class-path", CLASS, "--input-bound", 1)
    assert "model.ckpt" in message


def test_a_rate_that_is_too_large_weighs_more_than_an_unknown_one(tmp_path: Path) -> None:
    model = Gated(4, num_layers=2, scale=5.0)  # the layer above reads bounded outputs
    assert cli.main(["certify", str(save(model, tmp_path)), "--class-path", CLASS]) == 1


def test_the_range_seen_in_training_where_nothing_better_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, path = trainer(tmp_path, StabilityProjectionCallback(0.9)), tmp_path / "model.ckpt"
    run.fit(Gated(4), sequences())
    run.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    (state,) = checkpoint["callbacks"].values()
    state["input_ranges"]["elsewhere"] = torch.ones(2, 3)  # of no recurrence whose inputs are unknown
    torch.save(checkpoint, path)
    certify_it = ["certify", str(path), "--class-path", CLASS]
    assert cli.main(certify_it) == 0
    assert "for inputs in the range seen in training" in capsys.readouterr().out
    assert cli.main([*certify_it, "--json"]) == 0
    assert [layer["guarantee"] for layer in json.loads(capsys.readouterr().out)["layers"]] == ["data"]
    assert cli.main([*certify_it, "--input-bound", "1000", "--json"]) == 1
    assert [layer["guarantee"] for layer in json.loads(capsys.readouterr().out)["layers"]] == ["guaranteed"]


def test_a_bound_known_in_training_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, path = trainer(tmp_path, StabilityProjectionCallback(0.9, input_bound=5.0)), tmp_path / "model.ckpt"
    run.fit(Gated(4), sequences())
    run.save_checkpoint(path)
    assert "(in training: '|x| <= 5')" in error_of(capsys, "certify", path, "--class-path", CLASS)


def test_dropout_is_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Gated(4, num_layers=2)
    model.core.dropout = 0.5
    path = save(model, tmp_path)
    cli.main(["certify", str(path), "--class-path", CLASS, "--input-bound", "1", "--json"])
    assert json.loads(capsys.readouterr().out)["rate"] == certify(model.eval(), input_bound=1.0).rate


@pytest.mark.parametrize(
    "arguments", [["num_layers=2", "hidden_size=4"], ["hidden_size=4", "num_layers=2", "cell=gru"]]
)
def test_arguments_that_the_checkpoint_lacks(arguments: list[str], tmp_path: Path) -> None:
    path = save(Gated(4, num_layers=2), tmp_path, hyper_parameters={})
    given = [part for argument in arguments for part in ("--set", argument)]
    assert cli.main(["certify", str(path), "--class-path", CLASS, "--input-bound", "1", *given]) in (0, 1)


def test_errors_take_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(Gated(4), tmp_path)
    assert "not found" in error_of(capsys, "certify", tmp_path / "missing.ckpt")
    assert "--class-path" in error_of(capsys, "certify", path)
    assert "can be imported" in error_of(capsys, "certify", path, "--class-path", "nowhere.Model")
    given = ("--class-path", CLASS, "--input-bound", "1")
    assert "The weights must fit" in error_of(capsys, "certify", path, *given, "--set", "hidden_size=5")
    assert "unexpected keyword" in error_of(capsys, "certify", path, *given, "--set", "other=5")
    assert "Got 'many'" in error_of(capsys, "certify", path, "--class-path", CLASS, "--input-bound", "many")
    (tmp_path / "corrupt.ckpt").write_bytes(path.read_bytes()[:-500])
    assert "and whole" in error_of(capsys, "certify", tmp_path / "corrupt.ckpt", *given)
    code = torch.load(path, weights_only=True)
    torch.save(code | {"hyper_parameters": {"hidden_size": Path("4")}}, tmp_path / "code.ckpt")
    assert "--trust" in error_of(capsys, "certify", tmp_path / "code.ckpt", *given)
    plain = save(Plain(), tmp_path)
    assert "No recurrence" in error_of(capsys, "certify", plain, "--class-path", "tests.checkpoint_files.Plain")
    convolutional = as_cli(MusicModel(4, hidden_size=5, core="tcn"), tmp_path)
    assert "No recurrence" in error_of(capsys, "certify", convolutional)


@pytest.mark.parametrize("command", ["certify", "profile", "export"])
def test_trust_reads_what_is_not_read_without(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = save(Gated(4), tmp_path, hyper_parameters={"hidden_size": Fraction(4)})
    torch.save(torch.zeros(2, 5, 3), tmp_path / "x.pt")
    options = {"certify": (), "profile": ("--data", "x.pt"), "export": ("--window", "2", "--example", "x.pt")}[command]
    arguments = [command, str(path), "--class-path", CLASS, "--input-bound", "1", *options]
    assert "Got fractions.Fraction in `hidden_size`" in error_of(capsys, *arguments)
    assert "hidden_size should be of type int" in error_of(capsys, *arguments, "--trust")  # it came through
    assert "--trust" not in error_of(capsys, *arguments, "--trust")


@pytest.mark.parametrize("before", [True, False])
def test_a_traceback_if_wanted(before: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["certify", str(tmp_path / "missing.ckpt")]
    # 1 would say that the model is not certified stable.
    assert cli.main(["--traceback", *arguments] if before else [*arguments, "--traceback"]) == 2
    assert capsys.readouterr().err.startswith("Traceback")


@pytest.mark.parametrize("assignment", ["novalue", "1x=3", "=3"])
def test_assignments_have_a_name_and_a_value(assignment: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["certify", "x.ckpt", "--set", assignment])
    assert "must have the form NAME=VALUE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("1e-3", 1e-3), ("true", True), ("False", False), ("None", None), ("gru", "gru"), ("[1, 2]", [1, 2])],
)
def test_values_of_assignments(text: str, value: object) -> None:
    assert assignment(f"name={text}") == ("name", value)


def test_input_bounds() -> None:
    active, ball, box, number = map(parse_input_bound, ("active:8", "l2:2.5", "box:-1:3", "2"))
    assert isinstance(active, ActiveEntries)
    assert (active.count, active.height) == (8, 1.0)
    assert isinstance(ball, L2Ball)
    assert ball.radius == 2.5
    assert isinstance(box, Box)
    assert (box.low.item(), box.high.item()) == (-1.0, 3.0)
    assert number.describe() == "|x| <= 2"


@pytest.mark.parametrize(
    "text",
    [
        *("", "many", "-1", "nan", "inf", "active", "active:", "active:0", "active:1.5", "active:inf"),
        *("l2:-1", "l2:1:2", "box:1", "box:2:1", "box:0:nan", "cube:1", "3:4"),
    ],
)
def test_input_bounds_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="`--input-bound` must be") as error:
        parse_input_bound(text)
    assert str(error.value).endswith(f"Got {text!r}.")
