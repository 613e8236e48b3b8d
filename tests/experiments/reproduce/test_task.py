from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from lightning.pytorch.cli import instantiate_class

from lightning_stable.commands.reproduce import TaskName
from lightning_stable.experiments.reproduce.options import BudgetName, ReproduceOptions
from lightning_stable.experiments.reproduce.task import (
    by_importance,
    filled,
    load_task,
    merged,
    read_task,
    task_names,
)
from lightning_stable.models import CELLS, CORES

TEXT = """
title: A task
metric: {name: loss, title: squared error}
config:
  data: {class_path: Data, init_args: {length: 5}}
  model: {class_path: Model, init_args: {size: 3}}
  trainer: {max_epochs: 2, callbacks: [{class_path: First}]}
stable: {trainer: {callbacks: [{class_path: Projection}]}}
windows: [4]
cells:
  rnn: {seconds: 10, stable_seconds: 15}
  gru: {seconds: 20, config: {model: {init_args: {size: 7}}}, stable: {optimizer: {init_args: {lr: 1.0}}}}
baselines:
  tcn: {seconds: 5, always: true}
  wavenet: {seconds: 5}
budgets:
  small: {}
  paper: {time: 10, windows: [], config: {data: {init_args: {length: 50}}}}
published:
- {core: rnn, value: 1.5, source: Somebody}
"""


def test_a_task_stands_for_its_runs() -> None:
    task = read_task(TEXT, "task")
    runs = {run.name: run for run in task.runs(ReproduceOptions(seeds=(3,), data_dir=Path("there")))}
    assert list(runs) == [
        *("rnn", "rnn-k4", "rnn-stable", "rnn-stable-k4", "gru", "gru-k4", "gru-stable", "gru-stable-k4", "tcn")
    ]
    assert runs["rnn"].config == {
        "data": {"class_path": "Data", "init_args": {"length": 5, "data_dir": "there"}},
        "model": {"class_path": "Model", "init_args": {"size": 3, "cell": "rnn"}},
        "trainer": {"max_epochs": 2, "callbacks": [{"class_path": "First"}]},
        "seed_everything": 3,
    }
    best = runs["gru-stable-k4"]
    assert best.config["model"]["init_args"] == {"size": 7, "cell": "gru", "window": 4}
    assert best.config["trainer"]["callbacks"] == [{"class_path": "First"}, {"class_path": "Projection"}]
    assert best.config["optimizer"] == {"init_args": {"lr": 1.0}}
    assert "optimizer" not in runs["gru-k4"].config
    assert (best.core, best.stable, best.window) == ("gru", True, 4)
    assert runs["tcn"].config["model"]["init_args"] == {"size": 3, "core": "tcn"}
    assert best.seconds > runs["gru"].seconds == 20
    assert (runs["rnn"].seconds, runs["rnn-stable"].seconds, runs["gru-stable"].seconds) == (10, 15, 20)
    paper = {run.name: run for run in task.runs(ReproduceOptions(budget="paper", baselines=True))}
    assert list(paper) == ["rnn", "rnn-stable", "gru", "gru-stable", "tcn", "wavenet"]
    assert paper["rnn"].config["data"]["init_args"] == {"length": 50}
    assert paper["rnn"].seconds == 100


def test_options_replace_what_the_budget_says() -> None:
    options = ReproduceOptions(seeds=(0, 4), epochs=8, hidden_size=9, windows=(2, 6), baselines=False)
    runs = {run.name: run for run in read_task(TEXT, "task").runs(options)}
    assert len(runs) == 2 * (2 * 2 * 3 + 1)
    names = [name for name in runs if name.startswith("rnn-stable")]
    assert names == [f"rnn-stable{window}-seed{seed}" for window in ("", "-k2", "-k6") for seed in (0, 4)]
    run = runs["gru-k6-seed4"]
    assert (run.model, run.seed, run.config["seed_everything"]) == ("gru-k6", 4, 4)
    assert run.config["trainer"]["max_epochs"] == 8
    assert run.config["model"]["init_args"] == {"size": 7, "cell": "gru", "hidden_size": 9, "window": 6}
    assert runs["gru-seed0"].seconds == 80  # for four times as many epochs
    assert "hidden_size" not in runs["tcn-seed0"].config["model"]["init_args"]


@pytest.mark.parametrize(("name", "values"), [("seeds", (1, 2, 1)), ("windows", (5, 5))])
def test_what_is_given_twice_is_refused(name: str, values: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"`--{name}` must name each once. Got {' '.join(map(str, values))}"):
        read_task(TEXT, "task").runs(replace(ReproduceOptions(), **{name: values}))


def test_the_main_rows_come_first() -> None:
    task = read_task(TEXT, "task")
    runs = by_importance(task.runs(ReproduceOptions(seeds=(5, 1))), task.baselines)
    pairs = ["gru", "gru-stable", "rnn", "rnn-stable"]
    truncated = [f"{name}-k4" for name in pairs]
    expected = [(name, seed) for names in (pairs, truncated, ["tcn"]) for seed in (5, 1) for name in names]
    assert [(run.model, run.seed) for run in runs] == expected


def test_configurations_are_laid_over_each_other() -> None:
    below = {"a": {"b": 1, "c": [1]}, "class": {"class_path": "X", "init_args": {"x": 1}}}
    above: dict[str, Any] = {"a": {"c": [2], "d": None}, "class": {"class_path": "Y", "init_args": {"y": 2}}}
    assert merged(below, above) == {"a": {"b": 1, "c": [1, 2], "d": None}, "class": above["class"]}
    assert merged(below, {"class": {"init_args": {"x": 2}}})["class"] == {"class_path": "X", "init_args": {"x": 2}}
    # And are none of each other's.
    result = merged(below, above)
    result["a"]["c"].append(3)
    result["class"]["init_args"]["y"] = 5
    assert below["a"] == {"b": 1, "c": [1]}
    assert above["class"]["init_args"] == {"y": 2}


@pytest.mark.parametrize("line", ["nonsense: 1", "metric: {name: loss}", "published: [{core: rnn}]"])
def test_a_file_with_something_else_in_it_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"must hold what `Task` documents. Got 'broken'"):
        read_task(f"{TEXT}\n{line}", "broken")


def test_unknown_task() -> None:
    with pytest.raises(ValueError, match=r"`task` must be one of .*jsb.* Got 'poetry'"):
        load_task("poetry")


# The files ------------------------------------------------------------------------------------------------------------
def test_every_task_has_a_file() -> None:
    assert sorted(get_args(TaskName)) == task_names()


@pytest.mark.parametrize("name", get_args(TaskName))
@pytest.mark.parametrize("budget", get_args(BudgetName))
def test_models_and_callbacks_of_every_task_can_be_made(name: str, budget: Any) -> None:
    task = load_task(name)
    assert task.cells.keys() <= CELLS.keys()
    assert task.baselines.keys() <= CORES.keys()
    assert any(baseline.get("always") for baseline in task.baselines.values())
    runs = task.runs(ReproduceOptions(budget=budget, baselines=True))
    assert all({"rnn", "lstm"} <= {run.core for run in runs if run.stable == stable} for stable in (False, True))
    data = SimpleNamespace(vocab_size=9, labels=["O", "B-x"], max_active=4, key_frequencies=[0.05] * 88)
    for run in runs:
        config = filled(run.config, data, run.config["trainer"])
        arguments = config["model"]["init_args"]
        assert arguments.keys() >= ({"core"} if run.core in CORES else {"cell"})
        if arguments.get("hidden_size", 0) <= 300:  # large ones take their time
            model = instantiate_class((), config["model"])
            assert model.receptive_field == run.window or run.window is None
        callbacks = config["trainer"].get("callbacks", [])
        for callback in callbacks:
            given = dict(callback["init_args"])
            if isinstance(given.get("input_bound"), dict):  # as LightningCLI does
                given["input_bound"] = instantiate_class((), given["input_bound"])
            instantiate_class((), {**callback, "init_args": given})
        assert run.stable == any("StabilityProjection" in callback["class_path"] for callback in callbacks)
    if task.input_bound is not None:
        assert instantiate_class((), filled(task.input_bound, data)).guarantee == "guaranteed"


def test_values_of_the_data_are_filled_in() -> None:
    config = {"a": ["data.size", {"b": "data.size"}], "c": "database", "d": 3}
    assert filled(config, SimpleNamespace(size=5)) == {"a": [5, {"b": 5}], "c": "database", "d": 3}
    schedule = {"T_max": "trainer.max_epochs", "text": "trainer. It trains."}
    assert filled(schedule, None, {"max_epochs": 7}) == schedule | {"T_max": 7}
