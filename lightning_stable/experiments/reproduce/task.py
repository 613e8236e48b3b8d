"""A task of the paper: one readable YAML file, and the runs it stands for."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml

from lightning_stable import checks
from lightning_stable.experiments.reproduce.options import BudgetName

Config = dict[str, Any]


@dataclass(frozen=True)
class Published:
    """A figure from the literature.

    Attributes:
        core: ``"lstm"``, ``"tcn"``, ...
        value: The figure, in the unit of the task's metric.
        source: Where it was published.
        status: ``"published"``, or ``"recalled"`` if it was not confirmed.
        stable: Whether the model is stable; None where the source makes no difference.
    """

    core: str
    value: float
    source: str
    status: Literal["published", "recalled"] = "published"
    stable: bool | None = None


@dataclass(frozen=True)
class Metric:
    """What a task is measured by.

    Attributes:
        name: The name under which it is logged, after ``val_`` and ``test_``.
        title: The title in a table, with the unit.
        better: Which values are better.
        scale: The factor from what is logged to what is shown.
    """

    name: str
    title: str
    better: Literal["lower", "higher"] = "lower"
    scale: float = 1.0


@dataclass(frozen=True)
class Run:
    """One model to be trained.

    Attributes:
        core: ``"rnn"``, ``"lstm"``, ``"tcn"``, ...
        stable: Whether the model is projected after every step.
        window: The window of a truncated model; None for a recurrent one.
        config: The complete configuration of LightningCLI.
        seconds: About how long the run takes on one core.
    """

    core: str
    stable: bool
    window: int | None
    config: Config
    seconds: float

    @property
    def name(self) -> str:
        """The name of the run: ``lstm-stable-k10``."""
        parts = [self.core, "stable" if self.stable else "", f"k{self.window}" if self.window else ""]
        return "-".join(part for part in parts if part)


@dataclass(frozen=True)
class Task:
    """A task as its file describes it.

    A value ``data.NAME`` in a configuration is replaced by that attribute of the data module, once it is set up.

    Attributes:
        name: The name of the task and its file.
        title: The title of table and figure.
        metric: What is measured.
        config: The configuration that all runs share.
        cells: By the name of a recurrent core: ``config`` over the shared one, ``stable`` over that where the model is
            projected, ``seconds``, and ``window_cost``, the share of that by which a truncated run takes longer per
            input of its window.
        budgets: By name: ``config`` over the shared one, ``windows`` and a factor ``time``.
        note: What to expect; it is printed under the table.
        baselines: As ``cells``, for convolutional cores; ``always`` marks those that no option has to ask for.
        stable: The configuration over the shared one where a model is projected.
        windows: The windows of the truncated models.
        input_bound: The input set of the certificates, as ``class_path`` and ``init_args``; None takes what can be
            derived.
        published: The figures to compare with.
        floor: The score of a model that has learned nothing; None if unknown. A number, or the name of an attribute
            of the data module.
    """

    name: str
    title: str
    metric: Metric
    config: Config
    cells: dict[str, Config]
    budgets: dict[BudgetName, Config]
    note: str = ""
    baselines: dict[str, Config] = field(default_factory=dict)
    stable: Config = field(default_factory=dict)
    windows: list[int] = field(default_factory=list)
    input_bound: Config | None = None
    published: tuple[Published, ...] = ()
    floor: float | str | None = None

    def runs(
        self, budget: BudgetName, *, seed: int, data_dir: Path | None = None, baselines: bool = False
    ) -> list[Run]:
        """Return all models of a budget.

        Args:
            budget: ``"small"`` or ``"paper"``.
            seed: The seed of every run.
            data_dir: The folder with the data set; None takes the data module's default.
            baselines: Whether all convolutional cores are taken, not only those that are always there.
        """
        chosen = self.budgets[budget]
        shared = merged(self.config, chosen.get("config", {}))
        time: float = chosen.get("time", 1.0)
        options: Config = {"seed_everything": seed}
        if data_dir is not None:
            options["data"] = {"init_args": {"data_dir": str(data_dir)}}
        runs = []
        for core, own in self.cells.items():
            for stable in (False, True):
                for window in (None, *chosen.get("windows", self.windows)):
                    config = merged(shared, own.get("config", {}), {"model": {"init_args": {"cell": core}}})
                    if stable:
                        config = merged(config, self.stable, own.get("stable", {}))
                    if window is not None:
                        config = merged(config, {"model": {"init_args": {"window": window}}})
                    seconds = time * own["seconds"] * (1 + own.get("window_cost", 0.3) * (window or 0))
                    runs.append(Run(core, stable, window, merged(config, options), seconds))
        for core, own in self.baselines.items():
            if baselines or own.get("always", False):
                config = merged(shared, {"model": {"init_args": {"core": core}}}, own.get("config", {}), options)
                runs.append(Run(core, False, None, config, time * own["seconds"]))
        return runs


def task_names() -> list[str]:
    """Return the names of all tasks."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _folder().iterdir() if entry.name.endswith(".yaml"))


def load_task(name: str) -> Task:
    """Read the file of a task.

    Raises:
        ValueError: If there is no such task.
    """
    name = checks.choice("task", name, task_names())
    return read_task(_folder().joinpath(f"{name}.yaml").read_text(encoding="utf-8"), name)


def read_task(text: str, name: str) -> Task:
    """Return the task that the text of a file describes.

    Raises:
        ValueError: If it has keys that mean nothing, or lacks some.
    """
    content = yaml.safe_load(text)
    try:
        content["metric"] = Metric(**content["metric"])
        content["published"] = tuple(Published(**entry) for entry in content.get("published", ()))
        return Task(name=name, **content)
    except (KeyError, TypeError) as error:
        raise ValueError(f"The file of a task must hold what `Task` documents. Got {name!r}: {error}.") from error


def merged(*configs: Mapping[str, Any]) -> Config:
    """Return configurations laid over each other: the later wins, mappings are joined, lists are appended to lists."""
    result: Config = {}
    for config in configs:
        for key, value in config.items():
            below = result.get(key)
            if isinstance(below, dict) and isinstance(value, Mapping):
                # The arguments of one class mean nothing to another.
                other = "class_path" in value and value["class_path"] != below.get("class_path")
                result[key] = copy.deepcopy(dict(value)) if other else merged(below, value)
            elif isinstance(below, list) and isinstance(value, list):
                result[key] = [*below, *copy.deepcopy(value)]
            else:
                result[key] = copy.deepcopy(value)
    return result


def filled(config: Any, data: object) -> Any:
    """Return a configuration with every string ``"data.NAME"`` replaced by that attribute of the data module."""
    if isinstance(config, dict):
        return {key: filled(value, data) for key, value in config.items()}
    if isinstance(config, list):
        return [filled(value, data) for value in config]
    if isinstance(config, str) and config.startswith("data."):
        return getattr(data, config.removeprefix("data."))
    return config


def _folder() -> Any:
    return files("lightning_stable.experiments.reproduce.tasks")
