"""Watching the functions of user code that run during a trace."""

from __future__ import annotations

import gc
import operator
import os
import random
import sys
from collections.abc import Callable
from contextlib import suppress
from types import CodeType, FrameType, TracebackType
from typing import Any

import torch

from lightning_stable.stability.inputs.tracing import bytecode
from lightning_stable.stability.inputs.tracing.frames import function, look_by_torch, of_user, where
from lightning_stable.stability.inputs.tracing.memory import Memory
from lightning_stable.stability.inputs.tracing.refusal import Refusal

# Functions that see what no traced value notices, or a mode of torch that is not traced both ways.
_LOOKS = (
    *(callable, id, globals, operator.is_, operator.is_not, os.urandom),
    *(torch.is_inference_mode_enabled, torch.is_autocast_enabled),
    *(torch._C._has_torch_function, torch._C._has_torch_function_unary, torch._C._has_torch_function_variadic),
)
_NAMES = {look.__name__ for look in _LOOKS} | {"is_grad_enabled"}


class UserCode:
    """The user code that all traces of a model run; a context in which it is watched.

    Args:
        memory: What the code uses of its module's globals and of enclosing functions is kept in it.

    Attributes:
        tests_none: Whether something is compared with None.
        asks_grad: Whether something depends on whether gradients are recorded.
        refuse: Called with a reason before code runs that cannot be followed; what it returns is raised.
    """

    def __init__(self, memory: Memory) -> None:
        self.tests_none = self.asks_grad = False
        self.refuse: Callable[[str], Refusal] = Refusal
        self._memory = memory
        self._read: dict[int, CodeType] = {}
        self._active = self._collecting = False
        self._before: Any = None

    def __enter__(self) -> None:
        self._before, self._active = sys.getprofile(), True
        # A collection may run anybody's code at any time.
        self._collecting = gc.isenabled()
        gc.disable()
        sys.setprofile(self._watch)

    def __exit__(self, *args: object) -> None:
        self._active = False
        sys.setprofile(self._before if callable(self._before) else None)
        if self._before is not None and not callable(self._before):  # a profiler written in C
            self._before.enable()
        if self._collecting:
            gc.enable()

    def paused(self) -> _Pause:
        """A context in which the tracing itself runs."""
        return _Pause(self._watch if self._active else None)

    def _watch(self, frame: FrameType, event: str, called: Any) -> None:
        try:
            if event == "call":
                if of_user(frame):
                    self._enter_function(frame)
                elif (look := look_by_torch(frame)) is not None:
                    raise Refusal(f"{where(frame)} {look}")
                elif frame.f_code is suppress.__exit__.__code__:
                    raise Refusal(f"{where(frame)} suppresses exceptions")
            elif event == "c_call":
                self._enter_builtin(frame, called)
        except Refusal as refusal:
            raise self.refuse(str(refusal)) from None

    def _enter_function(self, frame: FrameType) -> None:
        code = frame.f_code
        for name in code.co_freevars:
            self._memory.keep(frame.f_locals.get(name), f"the variable `{name}` of an enclosing function")
        if id(code) in self._read:
            return
        reading = bytecode.read(code)
        if reading.objection is not None or code.co_name == "__exit__":
            what = reading.objection or "is a context manager that may handle exceptions"
            raise Refusal(f"{function(code, code.co_firstlineno)} {what}")
        self._read[id(code)] = code
        self.tests_none |= reading.tests_none
        for name in code.co_names:
            self._memory.keep(frame.f_globals.get(name), f"the global variable `{name}`")

    def _enter_builtin(self, frame: FrameType, called: Any) -> None:
        if issubclass(type(getattr(called, "__self__", None)), random.Random):
            raise Refusal(f"{where(frame)} draws random numbers")
        name = getattr(called, "__name__", "")
        if name == "seed" and issubclass(type(getattr(called, "__self__", None)), torch.Generator):
            raise Refusal(f"{where(frame)} takes a random seed")
        if name not in _NAMES:
            return
        if name == "is_grad_enabled":
            self.asks_grad = True
        elif called in _LOOKS and (of_user(frame) or called is os.urandom):
            raise Refusal(f"{where(frame)} calls `{name}`")


class _Pause:
    def __init__(self, watch: Any) -> None:
        self._watch = watch

    def __enter__(self) -> None:
        if self._watch is not None:
            sys.setprofile(None)

    def __exit__(self, *args: object) -> None:
        if self._watch is not None:
            sys.setprofile(self._watch)


def raised_by_user(error: Exception) -> bool:
    """Whether user code has raised the error itself, by ``raise`` or ``assert``."""
    last: TracebackType | None = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and of_user(last.tb_frame) and bytecode.raises(last.tb_frame.f_code, last.tb_lasti)
