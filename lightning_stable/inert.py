"""A file of ``torch.save`` without its code: tensors and plain values are read, everything else leaves a stand-in.

A pickle is a program that names what to call. Here a name is looked up in a table of this module and nowhere else:
nothing is imported, and what the table lacks becomes a class of its own that does nothing. Tensors are built from the
bytes of the archive.
"""

from __future__ import annotations

import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_stable.copying import parts_of


class Unread:
    """What stands for an object that was not read: it keeps nothing and does nothing.

    Attributes:
        path: The name under which the file asked for its class, or for the function that makes it.
    """

    path = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Unread:
        """Take any arguments."""
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def _ignore(self, *args: Any) -> None: ...

    # All through which a pickle fills an object.
    __setstate__ = append = extend = add = __setitem__ = _ignore


class _Known:
    """A function that a file may call, and not change."""

    __slots__ = ("path",)
    path: str

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, *args: Any) -> Any:
        return _FUNCTIONS[self.path](*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("the file changes a function")


def load_inert(path: Path) -> Any:
    """Read an archive of ``torch.save`` onto the CPU; whatever is no tensor and no plain value becomes :class:`Unread`.

    Raises:
        Exception: Of any kind, if the file is no such archive or is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        (pickled,) = (name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl"))
        with archive.open(pickled) as file:
            return _Unpickler(file, archive, pickled.removesuffix("data.pkl")).load()


def unread_in(structure: Any) -> list[str]:
    """Return the paths of everything in a structure of tuples, lists, sets and mappings that was not read."""
    found = {part.path for part in parts_of(Unread, structure)} | {part.path for part in parts_of(_Known, structure)}
    return sorted(found | {kind.path for kind in parts_of(type, structure) if issubclass(kind, Unread)})


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(file)
        self._archive, self._root = archive, root
        self._storages: dict[str, Tensor] = {}
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder").decode() != sys.byteorder:
            raise pickle.UnpicklingError("the tensors are in the byte order of another kind of machine")

    def find_class(self, module: str, name: str) -> Any:
        path = f"{module}.{name}"
        if path in _FUNCTIONS:
            return _Known(path)
        return _DTYPES.get(path) or type("Unread", (Unread,), {"path": path})

    def persistent_load(self, pid: Any) -> Tensor:
        """Return a storage as a flat tensor: the file says its kind, its dtype, its member and where it was."""
        kind, dtype, key, *_ = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError("the file holds a storage of a kind that is not known")
        if key not in self._storages:
            content = bytearray(self._archive.read(f"{self._root}data/{key}"))
            self._storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return self._storages[key].view(dtype)


def _tensor(storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)  # which stays inside the storage


_STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}
_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_DTYPES |= {f"torch.{kind}Storage": dtype for kind, dtype in _STORAGES.items()}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch.Size": torch.Size,
    "torch.device": torch.device,
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "__builtin__.set": set,
    "__builtin__.frozenset": frozenset,
    "_codecs.encode": lambda text, _: text.encode("latin1"),  # how old protocols write bytes
}
