"""Whose code a frame runs: the user's, that of a library, or that of the tracing itself."""

from __future__ import annotations

import os
import sysconfig
from functools import lru_cache
from types import CodeType, FrameType

import torch

from lightning_stable.recurrence import registry

_TORCH = os.path.dirname(torch.__file__) + os.sep
_HERE = os.path.dirname(__file__) + os.sep
# The tracer asks the registry which modules are recurrent.
_REGISTRY = os.path.dirname(registry.__file__) + os.sep
_STANDARD = sysconfig.get_path("stdlib") + os.sep
_SITE = os.path.join(_STANDARD, "site-packages")
# A LightningModule's properties run their code, which looks at no tensor.
_LIBRARIES = tuple(
    os.path.join(os.sep, "site-packages", name)
    for name in ("lightning" + os.sep, "pytorch_lightning", "lightning_fabric", "lightning_utilities", "typing_ext")
)
_METACLASS = _TORCH + os.path.join("nn", "parameter.py")
# Files of torch that look at values, and what the user code that calls them does.
_LOOKS = {
    _TORCH + os.path.join("utils", "_pytree.py"): "takes a nested value apart",  # a traced one has no parts
    _TORCH + "overrides.py": "asks whether a value overrides functions of torch",  # traced ones do
}
_TRUSTED = tuple(
    _TORCH + os.path.join(*parts)
    for parts in (("fx", ""), ("utils", "_pytree.py"), ("overrides.py",), ("nn", "modules", "module.py"))
)


@lru_cache(maxsize=4096)
def _is_trusted(filename: str) -> bool:
    return filename.startswith((_HERE, *_TRUSTED))


@lru_cache(maxsize=4096)
def _is_of_user(filename: str) -> bool:
    standard = filename.startswith(_STANDARD) and not filename.startswith(_SITE)
    library = standard or any(part in filename for part in _LIBRARIES)
    return not (library or filename.startswith((_TORCH, _HERE, _REGISTRY, "<frozen ")))


def trusted(frame: FrameType) -> bool:
    """Whether the code may look at traced values: it is part of the tracing."""
    return _is_trusted(frame.f_code.co_filename)


def of_user(frame: FrameType) -> bool:
    """Whether the code is neither part of Python, of torch, of Lightning, nor of the tracing."""
    return _is_of_user(frame.f_code.co_filename)


def asking(frame: FrameType) -> FrameType:
    """The frame that called ``isinstance``: classes of torch look at an object on behalf of it."""
    while frame.f_code.co_filename == _METACLASS and frame.f_back is not None:
        frame = frame.f_back
    return frame


def look_by_torch(frame: FrameType) -> str | None:
    """What user code does that calls a function of torch which looks at values, as the end of a sentence."""
    look = _LOOKS.get(frame.f_code.co_filename)
    return look if frame.f_back is not None and of_user(frame.f_back) else None


def torchs(code: CodeType) -> bool:
    """Whether a function is part of torch."""
    return code.co_filename.startswith(_TORCH)


def users(code: CodeType) -> bool:
    """Whether a function is part of neither Python, torch, Lightning, nor the tracing."""
    return _is_of_user(code.co_filename)


def where(frame: FrameType | None) -> str:
    """The innermost function of user code, as the subject of a sentence."""
    while frame is not None and not of_user(frame):
        frame = frame.f_back
    return "`forward`" if frame is None else function(frame.f_code, frame.f_lineno)


def function(code: CodeType, line: int) -> str:
    """A function, as the subject of a sentence."""
    return f"`{code.co_name}` ({os.path.basename(code.co_filename)}, line {line})"
