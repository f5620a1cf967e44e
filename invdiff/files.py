"""Files that are there whole or not at all, and folders in which one process works at a time."""

from __future__ import annotations

import os
import re
import socket
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a temporary file in the same folder, then rename it to ``path``, even if the machine goes down.

    Its name is the process's own, so that of two that write one file each writes it whole. What a killed process left is
    removed by the next :func:`lock` of the folder.
    """
    name = f".{path.name[:40]}.{zlib.crc32(path.name.encode()):08x}.{os.getpid()}.tmp"  # longer ones may not fit
    temporary = path.with_name(name)
    try:
        write(temporary)
        with temporary.open("rb+") as f:
            os.fsync(f.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text as it is, in UTF-8, whole or not at all."""
    write_atomically(path, lambda p: p.write_bytes(text.encode()))


_LEFT = re.compile(r"\..{1,40}\.[0-9a-f]{8}\.\d+\.tmp")  # names of temporary files


class Locked(RuntimeError):
    """Another process works in the folder."""


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder. The system drops the lock with the process, however it ends.

    :raises Locked: another process holds it.
    """
    path = folder / ".lock"
    with path.open("a+b") as f:
        try:
            _acquire(f.fileno())
        except OSError:
            f.seek(0)
            raise Locked(f"{folder} is being worked on by {f.read().decode() or 'another process'}; wait for it, or stop it") from None
        f.truncate(0)
        f.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        f.flush()
        for leftover in [*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")]:
            if _LEFT.fullmatch(leftover.name):
                leftover.unlink(missing_ok=True)  # of a process that was killed while writing
        yield


if os.name == "nt":  # the byte is beyond what is read, since it cannot be read while it is locked

    def _acquire(descriptor: int) -> None:
        import msvcrt

        os.lseek(descriptor, 1 << 20, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]

else:

    def _acquire(descriptor: int) -> None:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
