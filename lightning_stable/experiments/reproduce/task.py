"""A task of the paper: one readable YAML file, and the runs it stands for."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from types import SimpleNamespace
from typing import Any, Literal

import yaml

from lightning_stable import checks
from lightning_stable.experiments.reproduce.options import BudgetName, ReproduceOptions

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
        seed: Its seed.
        is_one_of_many: Whether the same model is trained with other seeds, too.
    """

    core: str
    stable: bool
    window: int | None
    config: Config
    seconds: float
    seed: int = 0
    is_one_of_many: bool = False

    @property
    def model(self) -> str:
        """The name of the model: ``lstm-stable-k10``."""
        parts = [self.core, "stable" if self.stable else "", f"k{self.window}" if self.window else ""]
        return "-".join(part for part in parts if part)

    @property
    def name(self) -> str:
        """The name of the run: that of the model, and ``-seed1`` where there are several."""
        return f"{self.model}-seed{self.seed}" if self.is_one_of_many else self.model

    @property
    def may_end_early(self) -> bool:
        """Whether it may end before its last epoch."""
        callbacks = self.config["trainer"].get("callbacks", [])
        return any(callback["class_path"].endswith(".EarlyStopping") for callback in callbacks)


@dataclass(frozen=True)
class Task:
    """A task as its file describes it.

    A value ``data.NAME`` in a configuration is replaced by that attribute of the data module, once it is set up, and
    ``trainer.NAME`` by that argument of the trainer.

    Attributes:
        name: The name of the task and its file.
        title: The title of table and figure.
        metric: What is measured.
        config: The configuration that all runs share.
        cells: By the name of a recurrent core: ``config`` over the shared one, ``stable`` over that where the model is
            projected, ``seconds``, ``stable_seconds`` where projected models take another time, and ``window_cost``,
            the share of that by which a truncated run takes longer per input of its window.
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

    def runs(self, options: ReproduceOptions) -> list[Run]:
        """Return all models of a budget, each with all seeds.

        Args:
            options: How to train them; ``only`` is left to the caller.

        Raises:
            ValueError: If a seed or a window is given twice.
        """
        for name, values in (("seeds", options.seeds), ("windows", options.windows or ())):
            if len(set(values)) < len(values):
                raise ValueError(f"`--{name}` must name each once. Got {' '.join(map(str, values))}.")
        budget = self.budgets[options.budget]
        shared = merged(self.config, budget.get("config", {}))
        time: float = budget.get("time", 1.0)
        if options.epochs is not None:
            time *= options.epochs / shared["trainer"]["max_epochs"]
            shared = merged(shared, {"trainer": {"max_epochs": options.epochs}})
        windows = budget.get("windows", self.windows) if options.windows is None else options.windows
        size = {} if options.hidden_size is None else {"hidden_size": options.hidden_size}
        cores = self.baselines.items()
        runs = [
            *(
                self._recurrent(core, stable, window, size, shared, time)
                for core in self.cells
                for stable in (False, True)
                for window in (None, *windows)
            ),
            *(self._convolutional(core, shared, time) for core, own in cores if options.baselines or own.get("always")),
        ]
        return [_seeded(run, seed, options) for run in runs for seed in options.seeds]

    def _recurrent(self, core: str, stable: bool, window: int | None, size: Config, shared: Config, time: float) -> Run:
        own = self.cells[core]
        config = merged(shared, own.get("config", {}))
        if stable:
            config = merged(config, self.stable, own.get("stable", {}))
        arguments = {"cell": core, **size} | ({} if window is None else {"window": window})
        config = merged(config, {"model": {"init_args": arguments}})
        alone = own["stable_seconds" if stable and "stable_seconds" in own else "seconds"]
        seconds = time * alone * (1 + own.get("window_cost", 0.3) * (window or 0))
        return Run(core, stable, window, config, seconds)

    def _convolutional(self, core: str, shared: Config, time: float) -> Run:
        own = self.baselines[core]
        config = merged(shared, {"model": {"init_args": {"core": core}}}, own.get("config", {}))
        return Run(core, False, None, config, time * own["seconds"])


def by_importance(runs: Iterable[Run], baselines: Iterable[str]) -> list[Run]:
    """Return runs in the order in which to train them: a series that is stopped has the rows that say most.

    Recurrent models come first, unconstrained and stable beside each other, then truncated ones, then convolutional
    networks; the first seed of all of them before the second, and the longest first among what is alike.

    Args:
        runs: The runs.
        baselines: The names of the convolutional cores.
    """
    convolutional = set(baselines)
    runs = list(runs)
    seeds = {seed: place for place, seed in enumerate(dict.fromkeys(run.seed for run in runs))}
    pairs: dict[tuple[str, int | None], float] = {}
    for run in runs:
        pairs[run.core, run.window] = max(run.seconds, pairs.get((run.core, run.window), 0.0))

    def importance(run: Run) -> tuple[float, ...]:
        group = 2 if run.core in convolutional else 0 if run.window is None else 1
        return group, seeds[run.seed], -pairs[run.core, run.window]

    return sorted(runs, key=importance)


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


def filled(config: Any, data: object, trainer: Config | None = None) -> Any:
    """Return a configuration with the values that its strings name.

    Args:
        config: The configuration, or a part of it.
        data: The data module; ``"data.NAME"`` is that attribute of it.
        trainer: The arguments of the trainer; ``"trainer.NAME"`` is one of them.
    """
    sources = {"data": data, "trainer": SimpleNamespace(**(trainer or {}))}

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: fill(each) for key, each in value.items()}
        if isinstance(value, list):
            return [fill(each) for each in value]
        source, _, name = value.partition(".") if isinstance(value, str) else ("", "", "")
        return getattr(sources[source], name) if source in sources and name.isidentifier() else value

    return fill(config)


def _seeded(run: Run, seed: int, options: ReproduceOptions) -> Run:
    own: Config = {"seed_everything": seed}
    if options.data_dir is not None:
        own["data"] = {"init_args": {"data_dir": str(options.data_dir)}}
    many = len(options.seeds) > 1
    return replace(run, config=merged(run.config, own), seed=seed, is_one_of_many=many)


def _folder() -> Any:
    return files("lightning_stable.experiments.reproduce.tasks")
