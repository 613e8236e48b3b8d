"""The search at one point: trials in a storage that survives a kill and that several processes share."""

from __future__ import annotations

import math
import time
import warnings
import zlib
from collections.abc import Sequence
from typing import Any

import optuna
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from optuna import storages
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.samplers import BaseSampler, GPSampler, RandomSampler
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from lightning_stable.experiments.capacity.experiment import Experiment
from lightning_stable.experiments.capacity.point import Outcome, Point, Trial
from lightning_stable.experiments.pool import Report

# Seconds between two signs of life of a running trial; seconds without any after which it is taken for killed.
HEARTBEAT, GRACE = 5, 30
RETRIES = 3
# Trials drawn at random before the Gaussian process is asked; those of `Experiment.first` count.
STARTUP = 2


def open_storage(url: str) -> RDBStorage:
    """Open the storage behind a database URL; it is made if it is new.

    The next search tries a trial again whose process was killed, up to three times.
    """
    # Renamed, callback and argument, in optuna 4.9.
    new = hasattr(storages, "RetryHeartbeatStaleTrialCallback")
    retry: Any = getattr(storages, "RetryHeartbeatStaleTrialCallback" if new else "RetryFailedTrialCallback")
    argument = "heartbeat_stale_trial_callback" if new else "failed_trial_callback"
    # Processes that share a file wait for each other.
    options: dict[str, Any] = {"engine_kwargs": {"connect_args": {"timeout": 120}}} if url.startswith("sqlite") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        options |= {"heartbeat_interval": HEARTBEAT, "grace_period": GRACE, argument: retry(max_retry=RETRIES)}
        return RDBStorage(url, **options)


def study_name(experiment: Experiment, point: Point, steps: int, seed: int) -> str:
    """Return the name of a point in the storage: other steps or another seed are another search."""
    return f"{experiment.name}/{point.name}/{steps}-steps/seed-{seed}"


def search_point(
    experiment: Experiment, point: Point, url: str, budget: tuple[int, int, int], report: Report
) -> list[Trial]:
    """Try hyperparameters at a point until so many trials are finished, those of other processes included.

    Args:
        experiment: The experiment, which measures.
        point: The point of its grid.
        url: The URL of the storage.
        budget: The number of trials, the gradient steps of each, and the seed.
        report: Called after every trial.

    Returns:
        All finished trials in the storage.
    """
    trials, steps, seed = budget
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", ExperimentalWarning)
    name = study_name(experiment, point, steps, seed)
    # Where hyperparameters are drawn at random, they and the data are the same at all points.
    shared = experiment.name if experiment.random else name
    study = optuna.create_study(
        storage=open_storage(url), study_name=name, direction=experiment.direction, load_if_exists=True
    )
    if not study.trials:
        for params in experiment.first(point):
            study.enqueue_trial(params, skip_if_exists=True)

    def objective(trial: optuna.Trial) -> float:
        trial_seed = _seed(shared, trial.number, seed)
        start = time.perf_counter()
        for key, value in {"seed": trial_seed, "steps": steps}.items():
            trial.set_user_attr(key, value)
        params = experiment.suggest(trial)
        try:
            with isolate_rng():
                torch.manual_seed(trial_seed)
                outcome = experiment.measure(point, params, steps, trial_seed)
            if not math.isfinite(outcome.value):
                raise ValueError(f"Training must end with a finite measurement. Got {outcome.value}.")
        except Exception as error:
            outcome = Outcome(math.nan, {"error": f"{type(error).__name__}: {error}"})  # which fails the trial
        trial.set_user_attr("seconds", round(time.perf_counter() - start, 2))
        trial.set_user_attr("details", outcome.details)
        return outcome.value

    patience = time.monotonic() + 2 * GRACE
    while True:
        fail_stale_trials(study)
        ended = finished(study.trials)
        waiting = any(trial.state == TrialState.WAITING for trial in study.trials)
        running = sum(trial.state == TrialState.RUNNING for trial in study.trials)
        # A running trial belongs to another process; whether that was killed takes a while to know.
        patient = time.monotonic() < patience
        if (waiting and len(ended) < trials) or len(ended) + (running if patient else 0) < trials:
            study.sampler = _sampler(experiment, _seed(shared, len(study.trials), seed))
            try:
                study.optimize(objective, n_trials=1)
            except (UpdateFinishedTrialError, ValueError) as error:
                # SQLite locks no row: two processes may take the same waiting trial, and the first to end it counts.
                if isinstance(error, ValueError) and "Cannot tell" not in str(error):
                    raise
            ended = finished(study.trials)
            patience = time.monotonic() + 2 * GRACE
            values = [trial.value for trial in ended if trial.value is not None]
            best = f", best {(max if experiment.direction == 'maximize' else min)(values):.4g}" if values else ""
            report(min(len(ended), trials), trials, f"trial {len(ended)} of {trials}{best}")
        elif len(ended) < trials:
            time.sleep(1.0)
        else:
            return ended


def stored(experiment: Experiment, point: Point, storage: RDBStorage, steps: int, seed: int) -> list[Trial]:
    """Return the finished trials of a point that a storage holds."""
    name = study_name(experiment, point, steps, seed)
    try:
        return finished(optuna.load_study(study_name=name, storage=storage).trials)
    except KeyError:
        return []


def finished(trials: Sequence[FrozenTrial]) -> list[Trial]:
    """Return the trials that came to an end, also by an error; not those that were killed."""
    return [
        Trial(
            number=trial.number,
            params=trial.params,
            seed=trial.user_attrs["seed"],
            steps=trial.user_attrs["steps"],
            seconds=trial.user_attrs["seconds"],
            value=trial.value if trial.state == TrialState.COMPLETE else None,
            details=trial.user_attrs["details"],
        )
        for trial in trials
        if trial.state == TrialState.COMPLETE
        # One that was killed has no error, and was put in line again.
        or (trial.state == TrialState.FAIL and "error" in trial.user_attrs.get("details", {}))
    ]


def _sampler(experiment: Experiment, seed: int) -> BaseSampler:
    # Seeded for every trial: a sampler seeded once would repeat its first draws after a kill.
    if experiment.random:
        return RandomSampler(seed)
    return GPSampler(seed=seed, n_startup_trials=STARTUP)


def _seed(name: str, number: int, seed: int) -> int:
    return (zlib.crc32(name.encode()) + 7919 * number + 104729 * seed) % 2**31
