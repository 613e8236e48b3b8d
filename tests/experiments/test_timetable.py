"""Estimates that follow what was measured."""

from __future__ import annotations

import pytest

from lightning_stable.experiments.timetable import Expected, Timetable, duration


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_was_expected_until_something_is_measured() -> None:
    clock = Clock()
    times = Timetable([Expected("a", 40), Expected("b", 20), Expected("c", 60)], 2, clock)
    assert times.left == 60
    times.begin("a")
    clock.now += 10
    assert times.left == 55
    assert times.elapsed == 10


def test_the_speed_of_a_job_corrects_it_and_those_that_wait() -> None:
    clock = Clock()
    times = Timetable([Expected("a", 40), Expected("b", 40)], 1, clock)
    times.begin("a")
    clock.now += 7  # until it trains
    times.report("a", 0.0)
    clock.now += 50
    times.report("a", 0.25)  # it takes 200 seconds, five times as long as expected
    assert times.left == pytest.approx(150 + 207)
    clock.now += 150
    times.finish("a")
    assert times.left == pytest.approx(207)


def test_a_job_that_goes_on_is_measured_from_where_it_went_on() -> None:
    clock = Clock()
    times = Timetable([Expected("a", 100)], 1, clock)
    times.begin("a")
    times.report("a", 0.5)
    assert times.left == pytest.approx(50)
    clock.now += 20
    times.report("a", 0.75)
    assert times.left == pytest.approx(20)


def test_of_jobs_that_may_end_early_only_finished_ones_say_how_long_others_take() -> None:
    clock = Clock()
    times = Timetable([Expected("a", 40, True), Expected("b", 40, True)], 1, clock)
    times.begin("a")
    times.report("a", 0.0)
    clock.now += 20
    times.report("a", 0.1)  # 200 seconds, if it went on to its last epoch
    assert times.left == pytest.approx(20 + 40)
    clock.now += 30
    times.report("a", 0.25)  # longer than was expected
    assert times.left == pytest.approx(150 + 40)
    clock.now += 30
    times.finish("a")
    assert times.left == pytest.approx(80)


def test_jobs_that_fail_say_nothing() -> None:
    clock = Clock()
    times = Timetable([Expected("a", 40), Expected("b", 40)], 1, clock)
    times.begin("a")
    clock.now += 1
    times.fail("a")
    assert times.left == 40


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 seconds"),
        (1, "1 second"),
        (89, "89 seconds"),
        (90, "2 minutes"),
        (3600, "1 hour"),
        (5 * 3600 + 20 * 60, "5 hours 20 minutes"),
        (340_000 * 60, "236 days 2 hours"),
        (86_400 + 300, "1 day"),
    ],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
