"""Readings of bytecode, whose instructions change with every version of Python."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable
from typing import Any

import pytest

from lightning_stable.stability.inputs.tracing.bytecode import asked_class, calls_method, read, reads_attribute, uses

SOURCE = """
def branch(x):
    if x is None: return 1
def value(x): return x is not None
def reversed_(x): return None is x
def loop(x):
    while x is not None: x = x.next
def attribute(self, x): return 1 if self.y is None else x
def none_pattern(x):
    match x:
        case None: return 1

def names(x, y): return x is y
def flag(self, x): return x is self.flag
def true(x): return x is True
def pattern(x):
    match x:
        case dict(): return 1
def type_of(x): return type(x) == int
def type_of_attribute(self): return type(self.x)
def identity(x): return id(x)
def override(x): return hasattr(x, "__torch_function__")
def global_(x):
    global G
    G = x
def handler(x):
    try: return x + 1
    except ValueError as error: return error
def bare(x):
    try: return x + 1
    except: return 2
def progress(self): return self.trainer.max_epochs

def own_type(self): return type(self).__name__
def method(x): return x.type(int), x.id
def finally_(x):
    try: y = x + 1
    finally: print(x)
    return y
def with_(x):
    with x as f: return f.read()
def generator(x): yield from (i for i in x)
def nested():
    n = 0
    n += 1
    return lambda: n
"""


def functions(part: int) -> dict[str, Callable[..., Any]]:
    namespace: dict[str, Any] = {}
    exec(SOURCE.split("\n\n")[part], namespace)
    return {name: value for name, value in namespace.items() if callable(value)}


@pytest.mark.parametrize("function", functions(0).values(), ids=functions(0))
def test_comparisons_with_none(function: Any) -> None:
    assert read(function.__code__) == (None, True)


@pytest.mark.parametrize("function", functions(1).values(), ids=functions(1))
def test_what_no_traced_value_notices(function: Any) -> None:
    assert read(function.__code__).objection is not None


@pytest.mark.parametrize("function", functions(2).values(), ids=functions(2))
def test_what_is_no_look(function: Any) -> None:
    assert read(function.__code__) == (None, False)


def test_variables_of_enclosing_functions() -> None:
    count = 0

    def counting() -> None:
        nonlocal count
        count += 1

    assert read(counting.__code__).objection == "changes the variable `count` of an enclosing function"


def test_plain_attributes_are_told_from_hasattr() -> None:
    seen = []

    class Asked:
        def __getattr__(self, name: str) -> Any:
            seen.append((reads_attribute(sys._getframe(1)), calls_method(sys._getframe(1))))
            return lambda: None

    asked = Asked()
    for _ in range(100):  # until the interpreter has specialized its instructions
        seen.clear()
        _ = asked.name, asked.method(), hasattr(asked, "name"), getattr(asked, "name", None)
    assert seen == [(True, False), (True, True), (False, False), (False, False)]


def test_arguments_that_are_read() -> None:
    def function(a: int, *args: int, **kwargs: int) -> Any:
        return args, lambda: kwargs

    assert uses(function.__code__, "args")
    assert uses(function.__code__, "kwargs")
    assert not uses(function.__code__, "a")


class Asked:
    """Remembers the class for which ``isinstance`` has asked it."""

    seen: Any = None

    @property
    def __class__(self) -> Any:
        Asked.seen = asked_class(sys._getframe(1))
        return Asked


PLAIN = (
    (lambda x: isinstance(x, int), int),
    (lambda x: isinstance(x, builtins.int), int),
    (lambda x: [isinstance(x, float), 1], float),
)
NOT_PLAIN = (
    lambda x: isinstance(x, (int, float)),
    lambda x: isinstance(x, int | float),
    lambda x: isinstance([x][0], int),
    lambda x: any(map(isinstance, [x], [int])),
    lambda x: getattr(x, "__class__", int),
    lambda x: x.__class__,
    lambda x, isinstance=isinstance: isinstance(x, int),
)


def test_the_class_of_a_plain_isinstance_is_read() -> None:
    for function, kind in PLAIN:
        function(Asked())
        assert Asked.seen is kind


@pytest.mark.parametrize("function", NOT_PLAIN)
def test_no_class_is_read_of_anything_less_plain(function: Callable[[Any], Any]) -> None:
    Asked.seen = ...
    function(Asked())
    assert Asked.seen is None
