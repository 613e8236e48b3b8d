"""What the bytecode of a function says about looks and effects that no traced value can notice.

``x is y``, ``type(x)`` and ``match`` ask a value nothing, so a stand-in for a tensor answers them wrongly and silently;
an exception handler is a branch on values; a global variable is outside every model. The functions here read the code
alone and need no torch. They know the instructions of Python 3.10 to 3.13.
"""

from __future__ import annotations

import dis
import sys
from collections import ChainMap
from functools import lru_cache, reduce
from types import CodeType, FrameType
from typing import Any, NamedTuple

_MATCHES = {"MATCH_MAPPING", "MATCH_SEQUENCE", "MATCH_KEYS", "MATCH_CLASS"}
_HANDLERS = {"CHECK_EXC_MATCH", "CHECK_EG_MATCH", "JUMP_IF_NOT_EXC_MATCH"}
_CALLS = {"CALL", "PRECALL", "CALL_FUNCTION"}
_IDENTITY = {"type", "id"}
# What a LightningModule says about the run it is in, which goes on while the model stays the same.
_PROGRESS = {"trainer", "global_step", "current_epoch"}


class Reading(NamedTuple):
    """What :func:`read` finds in a function's code.

    Attributes:
        objection: What makes a trace of the function untrue, as the end of a sentence about it; None if nothing does.
        tests_none: Whether a value is compared with None.
    """

    objection: str | None
    tests_none: bool


@lru_cache(maxsize=4096)
def read(code: CodeType) -> Reading:
    """Read one code object; functions defined inside have their own."""
    instructions = list(dis.get_instructions(code))
    at = {instruction.offset: index for index, instruction in enumerate(instructions)}
    objection, tests_none = None, False
    for index, instruction in enumerate(instructions):
        name = instruction.opname
        compared = name == "IS_OP" and _constant_none(instructions[max(0, index - 2) : index])
        if compared or "IF_NONE" in name or "IF_NOT_NONE" in name:
            tests_none = True
        else:
            objection = objection or _objection(code, instructions, index, at)
    return Reading(objection, tests_none)


def _constant_none(before: list[dis.Instruction]) -> bool:
    """Whether one of the two operands loaded last is the constant None."""
    operands = before if before and before[-1].opname.startswith("LOAD_") else before[-1:]
    return any(i.opname == "LOAD_CONST" and i.argval is None for i in operands)


def _objection(code: CodeType, instructions: list[dis.Instruction], index: int, at: dict[int, int]) -> str | None:
    instruction = instructions[index]
    name, value, following = instruction.opname, instruction.argval, instructions[index + 1 : index + 3]
    if name == "IS_OP":
        return "compares values by `is`"
    if name in _MATCHES:
        return "matches a value against patterns"
    if name in ("STORE_GLOBAL", "DELETE_GLOBAL"):
        return f"changes the global variable `{value}`"
    if name in ("STORE_DEREF", "DELETE_DEREF") and value in code.co_freevars:
        return f"changes the variable `{value}` of an enclosing function"
    if name in _HANDLERS or _handles_everything(instructions, index, at):
        return "handles exceptions"
    if name in ("LOAD_GLOBAL", "LOAD_NAME") and value in _IDENTITY:
        return None if _called_with_self(following) else f"looks at `{value}(...)` of a value"
    if name == "LOAD_CONST" and value == "__torch_function__":
        return "looks for `__torch_function__`"
    if name in ("LOAD_ATTR", "LOAD_METHOD") and value in _PROGRESS:
        return f"reads `{value}`"
    return None


def _handles_everything(instructions: list[dis.Instruction], index: int, at: dict[int, int]) -> bool:
    """Whether a bare ``except:`` starts at this instruction; ``with`` and ``finally`` pass exceptions on."""
    instruction = instructions[index]
    if instruction.opname == "PUSH_EXC_INFO":
        return instructions[index + 1].opname == "POP_TOP"
    # Python 3.10 names the handler where the block is entered.
    return instruction.opname == "SETUP_FINALLY" and instructions[at[instruction.argval]].opname == "POP_TOP"


def _called_with_self(following: list[dis.Instruction]) -> bool:
    if len(following) < 2:
        return False
    argument, call = following
    return argument.opname.startswith("LOAD_FAST") and argument.argval == "self" and call.opname in _CALLS


def instruction(frame: FrameType) -> tuple[str, int]:
    """Name and argument of the instruction that a frame is executing."""
    code = frame.f_code.co_code
    return dis.opname[code[frame.f_lasti]], code[frame.f_lasti + 1]


def reads_attribute(frame: FrameType) -> bool:
    """Whether the frame is executing a plain ``x.name``; ``hasattr`` and ``getattr`` are calls."""
    return instruction(frame)[0] in ("LOAD_ATTR", "LOAD_METHOD")


def calls_method(frame: FrameType) -> bool:
    """Whether the frame is executing the ``x.name`` of ``x.name(...)``."""
    name, argument = instruction(frame)
    # From Python 3.12 on, a bit of LOAD_ATTR says so.
    return name == "LOAD_METHOD" or (sys.version_info >= (3, 12) and name == "LOAD_ATTR" and argument & 1 == 1)


def asked_class(frame: FrameType) -> Any:
    """The class in the ``isinstance(x, name)`` that a frame is executing; None for anything less plain.

    The class is a global variable or an attribute of one, and ``x`` is a local variable.
    """
    name, count = instruction(frame)
    if name not in _CALLS or count != 2:
        return None
    before = [i for i in dis.get_instructions(frame.f_code) if i.offset < frame.f_lasti and i.opname != "PRECALL"]
    attributes: list[str] = []
    while before and before[-1].opname == "LOAD_ATTR":
        attributes.insert(0, before.pop().argval)
    if len(before) < 3:
        return None
    function, value, owner = before[-3:]
    plain = function.opname == owner.opname == "LOAD_GLOBAL" and value.opname.startswith("LOAD_FAST")
    variables = ChainMap(frame.f_globals, frame.f_builtins)
    if not plain or variables.get(function.argval) is not isinstance:
        return None
    return reduce(getattr, attributes, variables.get(owner.argval))


def raises(code: CodeType, position: int) -> bool:
    """Whether the instruction at ``position`` is a ``raise`` or a failed ``assert``."""
    return dis.opname[code.co_code[position]] == "RAISE_VARARGS"


def uses(code: CodeType, name: str) -> bool:
    """Whether a function reads one of its arguments."""
    if name in code.co_cellvars:
        return True
    loads = (i.argval for i in dis.get_instructions(code) if i.opname.startswith("LOAD_FAST"))
    return any(name in value if isinstance(value, tuple) else name == value for value in loads)
