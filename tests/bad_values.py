"""What is wrong for every kind of argument, and how a bad one must be told.

A kind names values of a wrong type, and values of the right type that are wrong. Values are made when they are asked
for: tensors and modules would otherwise be shared by all tests.
"""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from signal import ITIMER_REAL, SIGALRM, setitimer, signal
from time import thread_time
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_stable.stability import ActiveEntries, Box

# What an error about a bad argument may be. Subclasses are not meant: a KeyError says nothing.
TOLD = (TypeError, ValueError, MisconfigurationException)
# Processor time that a refusal may take, and time after which a call is taken for one that hangs.
SECOND, HANG = 1.0, 10.0

NAN = math.nan
HUGE = 10**400
NEVER: Any = object()  # of no type that anything takes


class Made(NamedTuple):
    """A value that is made anew for each test."""

    words: str
    make: Callable[[], Any]


def made(value: Any) -> Any:
    return value.make() if isinstance(value, Made) else value


def words(value: Any) -> str:
    return value.words if isinstance(value, Made) else repr(value)[:60]


class Kind(NamedTuple):
    types: tuple[Any, ...] = ()
    values: tuple[Any, ...] = ()
    # What may stand for the argument in the message beside its own name.
    also: str = ""

    def __add__(self, other: Any) -> "Kind":
        return Kind(self.types + other.types, self.values + other.values, self.also or other.also)

    @property
    def all(self) -> tuple[Any, ...]:
        return self.types + self.values


def tensor(text: str) -> Made:
    scope = {"torch": torch, **{name: getattr(torch, name) for name in ("ones", "zeros", "full", "tensor", "empty")}}
    return Made(text, lambda: eval(text, scope))


EMPTY, NO_TOKENS = tensor("zeros(0).long()"), tensor("ones(0)")


class Holder(nn.Module):
    """A model with a layer called ``core``."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.core = layer

    def forward(self, inputs: Any) -> Any:
        return self.core(inputs)[0]


def changed(change: Callable[[nn.LSTM], Any]) -> Callable[[], nn.LSTM]:
    def make() -> nn.LSTM:
        layer = nn.LSTM(3, 4)
        change(layer)
        return layer

    return make


def in_inference_mode(make: Callable[[], Any]) -> Any:
    with torch.inference_mode():
        return make()


ONE = Kind((NEVER, (), {}, b"3", 3j))
NUMBER = Kind(("0.5", None, True, [0.5], tensor("tensor([0.5, 0.5])"), *ONE.types), (NAN, -1, -math.inf, -HUGE))
INTEGER = Kind((1.5, True, "3", None, [3], NAN, math.inf, *ONE.types))
TEXT = Kind((3, True, [], NEVER, b"text", 1.5))
NO_MODULE = Kind(
    (0, 1, None, "model", [1], [nn.Linear(1, 1)], {}, nn.LSTM, NEVER, 1.5, len, tensor("ones(2)")),
)
ODD_TENSORS = (
    tensor("ones(3, dtype=torch.complex64)"),
    tensor("ones(3).to(torch.float8_e4m3fn)"),
    tensor("ones(3).to_sparse()"),
    tensor("ones(3, device='meta')"),
    tensor("torch.nested.nested_tensor([ones(2), ones(3)])"),
)

KINDS: dict[str, Kind] = {
    "positive": INTEGER + Kind((), (0, -1, -HUGE, HUGE)),
    "nonnegative": INTEGER + Kind((), (-1, -HUGE, HUGE)),
    "seed": INTEGER + Kind((), (-1, 2**63, HUGE, -HUGE)),
    "boolean": Kind((1, 0, "yes", "False", None, 1.5, [], NEVER)),
    "rate": NUMBER + Kind((), (0, 1.0, 1.5, math.inf, HUGE)),
    "share": NUMBER + Kind((), (1.0, 2, math.inf, HUGE)),
    "inner share": NUMBER + Kind((), (0, 1.0, 2, math.inf, HUGE)),
    "positive number": NUMBER + Kind((), (0, math.inf, HUGE)),
    "nonnegative number": NUMBER + Kind((), (math.inf, HUGE)),
    "number above 1": NUMBER + Kind((), (0, 0.5, 1, math.inf, HUGE)),
    "finite number": Kind(NUMBER.types, (NAN, math.inf, -math.inf, HUGE)),
    "text": TEXT + Kind((None,), ("",)),
    "label": TEXT,
    "choice": TEXT + Kind((None,), ("", "neither")),
    "path": Kind((3, True, None, [], 1.5, NEVER), ("", "a\0b", "a" * 300, "folder/" + "a" * 300, "\ud800")),
    "patterns": Kind((3, True, (3,), ("core", None), NEVER, {1: 2}, [b"core"])),
    "module patterns": Kind((3, True, (3,), ("core", None), NEVER, {1: 2}, [b"core"]), (), "`modules`"),
    "module": NO_MODULE,
    "module with weights": NO_MODULE
    + Kind(
        (),
        (
            Made("float8 weights", changed(lambda layer: layer.to(torch.float8_e4m3fn))),
            Made("complex weights", changed(lambda layer: layer.to(torch.complex64))),
            Made("meta weights", changed(lambda layer: layer.to("meta"))),
            Made("NaN weights", changed(lambda layer: layer.weight_hh_l0.data.fill_(NAN))),
            Made("no weight_hh", changed(lambda layer: delattr(layer, "weight_hh_l0"))),
            Made("None as weight_hh", changed(lambda layer: setattr(layer, "weight_hh_l0", None))),
            Made(
                "wide weight_hh",
                changed(lambda layer: setattr(layer, "weight_hh_l0", nn.Parameter(torch.ones(16, 5)))),
            ),
            Made(
                "sparse weight_hh",
                changed(lambda layer: setattr(layer, "weight_hh_l0", nn.Parameter(torch.ones(16, 4).to_sparse()))),
            ),
            Made("no recurrence", lambda: nn.Linear(1, 1)),
        ),
        r"recurren|weight",
    ),
    # And what is good enough to be certified.
    "module to change": Kind(
        (),
        (
            Made(
                "expanded weight_hh",
                changed(lambda layer: setattr(layer, "weight_hh_l0", nn.Parameter(torch.ones(1, 1).expand(16, 4)))),
            ),
            Made("weights of inference mode", lambda: in_inference_mode(lambda: nn.LSTM(3, 4))),
        ),
    ),
    "class of modules": Kind((0, None, "nn.LSTM", int, Made("a module", lambda: nn.LSTM(1, 1)), [nn.LSTM], NEVER)),
    "callable": Kind((3, "logits", True, [], NEVER, 1.5)),
    # Of a model whose only recurrent layer is `core`, which takes 3 inputs.
    "bound": Kind(
        ("wide", True, NEVER, [1.0], b"1", len, 3j, {"core": "wide"}, {"core": None}, {1: 1.0}, Box),
        (
            *(-1.0, NAN, math.inf, -HUGE, HUGE, {"core": -1.0}, {"core": HUGE}),
            *ODD_TENSORS,
            tensor("full((3,), torch.nan)"),
        ),
    ),
    "bound of the model": Kind(
        (),
        (
            {"nobody": 1.0},
            tensor("ones(4)"),
            tensor("ones(2, 3)"),
            Made("Box of 4", lambda: Box(-torch.ones(4), torch.ones(4))),
            {"core": Box(torch.zeros(2), 1.0)},
            ActiveEntries(100),
        ),
    ),
    "end of a box": Kind(
        ("0.5", None, True, [0.5], NEVER, {}, b"3", 3j),
        (NAN, math.inf, -HUGE, HUGE, *ODD_TENSORS, tensor("full((3,), torch.inf)"), tensor("ones(2, 3)")),
    ),
    "points": Kind(
        ("ab", None, True, [[0.5]], NEVER, 3.0, ["a", "b"]),
        (
            tensor("ones(3)"),
            tensor("ones(0, 3)"),
            tensor("ones(2, 0)"),
            tensor("full((2, 3), torch.nan)"),
            tensor("ones(2, 3, dtype=torch.complex64)"),
            tensor("ones(2, 3).to(torch.float8_e4m3fn)"),
            tensor("ones(2, 3).to_sparse()"),
            tensor("ones(2, 3, device='meta')"),
            tensor("torch.nested.nested_tensor([ones(2), ones(3)])"),
        ),
    ),
    "tensor": Kind(("ab", None, True, [0.5], NEVER, 3.0, {})),
    # Of a layer that takes 3 inputs.
    "inputs": Kind(
        ("ab", None, True, [[0.5]], NEVER, 3.0, {}),
        (
            tensor("ones(3)"),
            tensor("ones(5, 2, 4)"),
            tensor("ones(1, 5, 2, 3)"),
            tensor("ones(0, 2, 3)"),
            tensor("full((5, 2, 3), torch.nan)"),
            tensor("ones(5, 2, 3, dtype=torch.complex64)"),
            tensor("ones(5, 2, 3).to(torch.float8_e4m3fn)"),
            tensor("ones(5, 2, 3).to_sparse()"),
            tensor("ones(5, 2, 3, device='meta')"),
            tensor("torch.nested.nested_tensor([ones(2, 3), ones(3, 3)])"),
        ),
    ),
    "example": Kind(
        ("ab", True, [[0.5]], NEVER, 3.0, {}),
        (
            *(tensor(text) for text in ("ones(3)", "ones(5, 2, 4)", "ones(1, 5, 2, 3)", "ones(0, 2, 3)")),
            *(tensor(text) for text in ("full((5, 2, 3), torch.nan)", "ones(5, 2, 3, device='meta')")),
            *(tensor(f"ones(5, 2, 3){text}") for text in (".to(torch.complex64)", ".to_sparse()")),
        ),
        "inputs of shape",
    ),
    "state": Kind(
        ("ab", True, NEVER, 3.0, {}, (tensor("ones(1, 2, 4)"),)), (tensor("ones(1, 2, 5)"), tensor("ones(2)"))
    ),
    "gradients": Kind(("ab", True, NEVER, 3.0, {}), (tensor("ones(1, 2, 5)"), tensor("ones(2)"))),
    "lengths": Kind(
        (3, "31", None, NEVER, ["a"], [1.5], [True], tensor("ones(2)"), tensor("ones(2, 2).int()")), ([], [-1], [HUGE])
    ),
    "stream": Kind(
        (3, [1, 2, 3], None, "text", NEVER),
        (
            tensor("ones(3, 3)"),
            NO_TOKENS,
            tensor("ones(9, device='meta')"),
            tensor("ones(9).to_sparse()"),
            tensor("torch.nested.nested_tensor([ones(2), ones(3)])"),
        ),
    ),
    "ids": Kind(
        (3, [1, 2, 3], None, "text", NEVER),
        (
            tensor("ones(3)"),
            EMPTY,
            tensor("tensor([-1])"),
            tensor("tensor([99])"),
            tensor("ones(9, dtype=torch.long, device='meta')"),
        ),
    ),
    "tokens": Kind((3, "<unk>", None, NEVER, [3], [None], ["a", 3]), ([], ["a", "a"])),
    "labels": Kind(("OB", 3, None, NEVER, ["O", 3], [None], {1: 2}), ([], ["O", "x"])),
    "frequencies": Kind((0.5, "ab", [0.5, "x"], NEVER, [None, 0.5]), ([0.5], [0.5, 1.5], [0.0, 0.5], [NAN, 0.5])),
    "pairs": Kind(
        (
            3,
            "ab",
            None,
            NEVER,
            [3],
            [None],
            ["ab"],
            [(1, 2)],
            [("a", "b")],
            [(torch.ones(2), "b")],
            [(torch.ones(2, 3),)],
        ),
        ([], [(torch.ones(2, 3), torch.ones(3, 3))]),
    ),
    "vocabulary": Kind((3, {"<unk>": 0}, NEVER, "<unk>", ["<unk>"], dict)),
    "device": Kind((1.5, [], NEVER), ("nowhere",)),
    "dtype": Kind((3, "float32", NEVER), (torch.int64, torch.complex64, torch.float8_e4m3fn)),
    "report": Kind((3, "stable", [], NEVER, {})),
    "twin": Kind((3, "copy", NEVER, [], Made("a layer", lambda: nn.LSTM(1, 1)))),
    "packed": Kind((3, None, "state", [], NEVER), ({}, {"state": 3}, {1: 2})),
    "carried": Kind((3, None, "state", NEVER, [3], (tensor("ones(2)"),))),
}


def problem(call: Callable[[], Any], name: str, value: Any, also: str, wrong_type: bool) -> str | None:
    """Return what is wrong with the answer to a bad value; None if it is an error that says all it should."""
    started = thread_time()
    try:
        with no_longer_than(HANG):
            result = call()
    except Exception as error:
        took, said = thread_time() - started, str(error)
        kind = type(error)
        if kind not in (TOLD if kind is MisconfigurationException else TOLD[:2]):
            return f"obscure: {kind.__name__}: {said[:150]}"
        if kind is not MisconfigurationException and kind is not (TypeError if wrong_type else ValueError):
            return f"wrong class: {kind.__name__}: {said[:150]}"
        if not re.search(rf"`{re.escape(name)}\b|{also or '(?!)'}", said):
            return f"names no argument: {kind.__name__}: {said[:150]}"
        if "Got" not in said:
            return f"names no value: {said[:150]}"
        if isinstance(value, (int, float, str, type(None))) and len(repr(value)) < 50 and repr(value) not in said:
            return f"names another value: {said[:150]}"
        if len(said) > 1000:
            return f"too long: {len(said)}"
        return f"slow: {took:.1f} s" if took > SECOND else None
    except Hang:
        return "hangs"
    return f"silent: {result!r:.100}"


class Hang(BaseException):
    """A call did not come back."""


@contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise Hang

    before = signal(SIGALRM, stop)
    setitimer(ITIMER_REAL, seconds)
    try:
        yield
    finally:
        setitimer(ITIMER_REAL, 0)
        signal(SIGALRM, before)
