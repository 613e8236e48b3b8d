import os
import signal
import threading
from collections.abc import Iterator, Sequence

import pytest

from lightning_stable.signals import HeldSignals

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs POSIX signals")


@pytest.fixture
def seen() -> Iterator[list[str]]:
    """Names of the signals that were handled, by a handler of two of them."""
    names: list[str] = []
    numbers = (signal.SIGUSR1, signal.SIGTERM)
    before = {
        number: signal.signal(number, lambda got, _: names.append(signal.Signals(got).name)) for number in numbers
    }
    yield names
    for number, handler in before.items():
        signal.signal(number, handler)


def send(*numbers: signal.Signals) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def test_signals_wait_in_their_order(seen: list[str]) -> None:
    held = HeldSignals()
    held.attach()
    send(signal.SIGUSR1)
    assert seen == ["SIGUSR1"]
    held.close()
    send(signal.SIGTERM, signal.SIGUSR1)
    assert seen == ["SIGUSR1"]
    held.open()
    assert seen == ["SIGUSR1", "SIGTERM", "SIGUSR1"]
    send(signal.SIGTERM)
    assert seen[-1] == "SIGTERM"
    held.detach()


def test_the_second_one_of_a_kind_passes_at_once(seen: list[str]) -> None:
    held = HeldSignals()
    held.attach()
    held.close()
    send(signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM)
    assert seen == ["SIGTERM"]
    held.open()
    assert seen == ["SIGTERM", "SIGUSR1"]
    held.detach()


def test_ctrl_c_is_raised_when_signals_pass(seen: list[str]) -> None:
    before, held = signal.signal(signal.SIGINT, signal.default_int_handler), HeldSignals()
    try:  # a shell's jobs in the background ignore it
        held.attach()
        held.close()
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            held.open()
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)  # once more, as what the first one led to hangs
        held.detach()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_handlers_get_their_places_back(seen: list[str]) -> None:
    ours, held = signal.getsignal(signal.SIGUSR1), HeldSignals()
    held.attach()
    held.close()
    send(signal.SIGUSR1)
    other = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # another one takes a place
    held.detach()
    assert not seen  # what waited for the end of a run that failed is dropped
    assert signal.getsignal(signal.SIGUSR1) is ours
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    assert other == held._handle


def test_other_threads_hold_nothing(seen: list[str]) -> None:
    before, held = signal.getsignal(signal.SIGUSR1), HeldSignals()

    def attach() -> None:
        held.attach()
        held.close()

    thread = threading.Thread(target=attach)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGUSR1) is before
    send(signal.SIGUSR1)
    assert seen == ["SIGUSR1"]


def test_handlers_run_for_what_waits_in_any_process(seen: list[str]) -> None:
    held = HeldSignals()
    held.attach()
    held.close()
    send(signal.SIGUSR1)
    held.open(lambda waiting: [*waiting, signal.SIGTERM, signal.SIGHUP])
    assert seen == ["SIGUSR1", "SIGTERM"]  # and nobody handles SIGHUP
    held.detach()


def test_what_comes_while_processes_agree_waits_or_is_due(seen: list[str]) -> None:
    held = HeldSignals()
    held.attach()
    held.close()
    send(signal.SIGTERM)

    def agree(waiting: Sequence[int]) -> list[int]:
        found = [*waiting]
        send(signal.SIGTERM, signal.SIGUSR1)  # another process sent the first one on
        return found

    held.open(agree)
    assert seen == ["SIGTERM"]
    held.close()
    held.open()
    assert seen == ["SIGTERM", "SIGUSR1"]
    held.detach()


def test_a_signal_that_its_handler_is_sent_again_runs_once() -> None:
    runs = []

    def handle(*_: object) -> None:
        runs.append(1)
        send(signal.SIGUSR1)

    before, held = signal.signal(signal.SIGUSR1, handle), HeldSignals()
    try:
        held.attach()
        held.close()
        send(signal.SIGUSR1)
        held.open()
        held.close()
        assert len(runs) == 1
        held.detach()
    finally:
        signal.signal(signal.SIGUSR1, before)
