"""Errors of the file system, one at a time: the n-th call of a kind that concerns files below a folder fails."""

import builtins
import contextlib
import errno
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

KINDS = {
    "read": ("EIO", "ESTALE", "EACCES"),
    "list": ("ESTALE", "EIO"),
    "create": ("ENOSPC", "EROFS", "EACCES"),
    "write": ("ENOSPC", "EIO"),
    "sync": ("EIO", "ENOSPC"),
    "rename": ("EIO", "ESTALE", "EACCES"),
    "mkdir": ("ENOSPC", "EROFS"),
    "delete": ("EACCES", "EIO"),
}
"""What a call of each kind may fail with. `read` and `create` are opening a file for it."""
PATCHED = {"open", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "listdir", "scandir"}
"""Functions of os; and the built-in open, under its two names."""


@dataclass(frozen=True)
class Fault:
    """The call of `kind` with this number, from 0, fails with the error of this name."""

    kind: str
    number: int
    error: str


class FaultyFiles:
    """Counts calls of each kind, and lets one fail, within `injected`."""

    def __init__(self, root: Path, fault: Fault | None = None) -> None:
        self.root, self.fault = f"{root}/", fault
        self.counts: Counter[str] = Counter()
        self.real: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in PATCHED}
        self.open = io.open

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        patches = {name: getattr(self, f"_{name}", self._named(name)) for name in PATCHED}
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.multiple(os, **patches))
            for module in (builtins, io):
                stack.enter_context(mock.patch.object(module, "open", self._open_file))
            yield

    def count(self, kind: str, path: Any, folder: int | None = None) -> None:
        """Of a call that concerns `path`, a name or a descriptor. Raises OSError where it is the one to fail."""
        if not f"{self._resolved(path, folder)}/".startswith(self.root):
            return
        number = self.counts[kind]
        self.counts[kind] += 1
        if self.fault is not None and (kind, number) == (self.fault.kind, self.fault.number):
            code = getattr(errno, self.fault.error)
            raise OSError(code, os.strerror(code), *([] if isinstance(path, int) else [str(path)]))

    def _resolved(self, path: Any, folder: int | None) -> str:
        if isinstance(path, int):
            return str(Path(f"/proc/self/fd/{path}").readlink())
        inside = Path.cwd() if folder is None else Path(f"/proc/self/fd/{folder}").readlink()
        return os.path.normpath(inside / os.fsdecode(path))

    def _named(self, name: str) -> Callable[..., Any]:
        kind = {
            "fsync": "sync", "rename": "rename", "replace": "rename", "mkdir": "mkdir", "unlink": "delete",
            "rmdir": "delete", "listdir": "list", "scandir": "list",
        }.get(name, name)  # fmt: skip

        def call(path: Any = ".", *arguments: Any, **options: Any) -> Any:
            self.count(kind, path, options.get("dir_fd"))
            return self.real[name](path, *arguments, **options)

        return call

    def _open(self, path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & os.O_CREAT:
            self.count("create", path, options.get("dir_fd"))
        descriptor: int = self.real["open"](path, flags, *arguments, **options)
        return descriptor

    def _open_file(self, file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        reads = mode.startswith("r") and "+" not in mode
        self.count("read" if reads else "create", file)
        opened = self.open(file, mode, *arguments, **options)
        if reads or isinstance(file, int):
            return opened
        return Writer(opened, lambda: self.count("write", file), once=str(file).endswith(".safetensors"))


class Writer:
    """A file opened for writing, of which `write` may fail. `once`: all its writes count as one, as there are hundreds
    of them."""

    def __init__(self, file: Any, count: Callable[[], None], *, once: bool) -> None:
        self._file, self._count, self._once = file, count, once

    def write(self, content: Any) -> Any:
        self._count()
        if self._once:
            self._count = lambda: None
        return self._file.write(content)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
