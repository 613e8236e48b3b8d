"""Signals that wait for a moment at which a run can be saved."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

# Returns the signals that wait in any process, from those that wait in this one.
Agree = Callable[[Sequence[int]], list[int]]
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
        self._due: list[int] = []  # those whose handlers run now
        self._is_open, self._is_agreeing = True, False

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
        self._handlers, self._waiting, self._due = {}, [], []

    def close(self) -> None:
        """Hold signals back from now on."""
        self._is_open = False

    def open(self, agree: Agree | None = None) -> None:
        """Run the handlers that wait, and let signals pass from now on.

        Args:
            agree: Returns the signals that wait in any of several processes, from those that wait in this one:
                handlers that communicate must run in all of them at one moment.
        """
        self._is_agreeing = agree is not None
        try:
            self._due = self._waiting if agree is None else agree(self._waiting)
            self._waiting = [number for number in self._waiting if number not in self._due]
        finally:
            self._is_agreeing = False
        self._is_open = True
        try:
            while self._due:
                number = self._due[0]
                if number in self._handlers:
                    self._handlers[number](number, sys._getframe())
                self._due = self._due[1:]
        finally:  # a handler may raise
            self._due = []

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_agreeing or number in self._due:
            # Lightning's handler sends the signal on to the other processes, which have it by now, or find it waiting.
            if number not in (*self._waiting, *self._due):
                self._waiting.append(number)
        elif self._is_open or number in self._waiting:
            if number in self._waiting:
                self._waiting.remove(number)
            self._handlers[number](number, frame)
        else:
            self._waiting.append(number)
