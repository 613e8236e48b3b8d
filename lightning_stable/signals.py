"""Signals that wait for a moment at which a run can be saved."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

# What schedulers and users send to save or end a run.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


class HeldSignals:
    """Holds signals back whose handlers are Python functions, until :meth:`open`; of each kind the second one passes.

    A handler may save a checkpoint (Lightning's, for SLURM) or raise (KeyboardInterrupt), and Python runs it between
    any two instructions: also where a part of the weights has made its step and the rest has not.

    Nothing is held back outside of the main thread, which alone runs handlers.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._waiting: list[int] = []
        self._is_open = True

    def attach(self) -> None:
        """Take the place of the handlers; signals pass until :meth:`close`."""
        if threading.current_thread() is not threading.main_thread():
            return
        for name in _NAMES:
            if not hasattr(signal, name):  # Windows has not all of them
                continue
            number: int = getattr(signal, name)
            handler = signal.getsignal(number)
            if callable(handler):
                self._handlers[number] = handler
                signal.signal(number, self._handle)

    def detach(self) -> None:
        """Give the handlers their places back; what still waits is dropped."""
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._handle:  # nobody has taken the place since
                signal.signal(number, handler)
        self._handlers, self._waiting = {}, []

    def close(self) -> None:
        """Hold signals back from now on."""
        self._is_open = False

    def open(self) -> None:
        """Run the handlers that wait, and let signals pass from now on."""
        self._is_open = True
        while self._waiting:
            number = self._waiting.pop(0)
            self._handlers[number](number, sys._getframe())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_open or number in self._waiting:
            if number in self._waiting:
                self._waiting.remove(number)
            self._handlers[number](number, frame)
        else:
            self._waiting.append(number)
