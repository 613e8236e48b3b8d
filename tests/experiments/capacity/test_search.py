import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import optuna
import pytest
import torch
from optuna.trial import TrialState

from lightning_stable.experiments.capacity import search
from lightning_stable.experiments.capacity.search import open_storage, stored, study_name
from tests.experiments.capacity.tiny import POINT, Tiny, ignore


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'search.db'}"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "HEARTBEAT", 1)
    monkeypatch.setattr(search, "GRACE", 2)


def test_every_trial_is_kept_with_its_seed_and_budget(url: str) -> None:
    before = torch.get_rng_state()
    reports: list[str] = []
    trials = search.search_point(Tiny(), POINT, url, (5, 7, 3), lambda done, total, text: reports.append(text))
    assert torch.equal(torch.get_rng_state(), before)
    assert [trial.params["learning_rate"] for trial in trials[:3]] == [0.01, 0.02, 0.03]
    assert [trial.number for trial in trials] == [0, 1, 2, 3, 4]
    assert len({trial.seed for trial in trials}) == 5
    assert {trial.steps for trial in trials} == {7}
    assert all(trial.value == trial.params["learning_rate"] for trial in trials)
    assert reports[1] == "trial 2 of 5, best 0.02"
    assert stored(Tiny(), POINT, open_storage(url), 7, 3) == trials
    # Other steps and seeds are other searches.
    assert stored(Tiny(), POINT, open_storage(url), 8, 3) == stored(Tiny(), POINT, open_storage(url), 7, 4) == []


def test_a_finished_search_is_not_repeated_and_a_longer_one_goes_on(url: str) -> None:
    first = search.search_point(Tiny(), POINT, url, (3, 1, 0), ignore)
    again = Tiny()
    assert search.search_point(again, POINT, url, (3, 1, 0), ignore) == first
    assert again.calls == 0
    longer = search.search_point(again, POINT, url, (5, 1, 0), ignore)
    assert again.calls == 2
    assert longer[:3] == first
    # What it would have drawn had it not been interrupted.
    whole = search.search_point(Tiny(), POINT, url.replace("search.db", "other.db"), (5, 1, 0), ignore)
    assert [trial.params for trial in longer] == [trial.params for trial in whole]


def test_a_failing_trial_is_recorded_and_counts(url: str) -> None:
    trials = search.search_point(Tiny(broken=(2,)), POINT, url, (3, 1, 0), ignore)
    assert [trial.value for trial in trials] == [0.01, None, 0.03]
    assert trials[1].details["error"].startswith("ValueError: `x` must be whole.")


def test_a_search_killed_in_the_middle_goes_on_where_it_was(url: str) -> None:
    command = [sys.executable, "-m", "tests.experiments.capacity.tiny", url]
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        while heartbeats(url) < 3:  # a trial that is killed before its first sign of life is not found again
            time.sleep(0.05)
        process.kill()
    before = stored(Tiny(), POINT, open_storage(url), 1, 0)
    assert [trial.params["learning_rate"] for trial in before] == [0.01, 0.02]
    again = Tiny()
    again.random = True  # which costs no fit of a Gaussian process
    trials = search.search_point(again, POINT, url, (5, 1, 0), ignore)
    assert trials[:2] == before
    assert len(trials) == 5
    # The trial that was killed was tried again.
    assert sorted(trial.params["learning_rate"] for trial in trials).count(0.03) == 1
    states = [trial.state for trial in optuna.load_study(study_name=name(), storage=open_storage(url)).trials]
    assert states.count(TrialState.COMPLETE) == 5
    assert states.count(TrialState.FAIL) == 1
    assert TrialState.RUNNING not in states


def test_two_searches_share_the_trials(url: str) -> None:
    open_storage(url)
    both = [Tiny(pause=0.3), Tiny(pause=0.3)]
    threads = [
        threading.Thread(target=search.search_point, args=(each, POINT, url, (6, 1, 0), ignore)) for each in both
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(each.calls >= 1 for each in both)
    found = stored(both[0], POINT, open_storage(url), 1, 0)
    # Two that begin at once may take the same waiting trial, and two that end at once make one too many.
    assert 6 <= len(found) <= 7
    assert len(found) <= sum(each.calls for each in both) <= len(found) + 3


def heartbeats(url: str) -> int:
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as database:
        (count,) = database.execute("select count(*) from trial_heartbeats").fetchone()
    return int(count)


def name() -> str:
    return study_name(Tiny(), POINT, 1, 0)
