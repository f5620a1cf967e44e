"""The pictures of records inside a page: as they are while they fit a budget of bytes, else smaller and as JPEG."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 160  # of reduced pictures, at most
QUALITY = 80
MOST = 1000  # reduced pictures: a few milliseconds each


def embed(folder: Path, names: Iterable[str], budget: int) -> tuple[dict[str, str], list[str]]:
    """Data URIs of pictures by name (a path from ``folder``), the first ones first, and what has to be said about it.

    If all fit into ``budget`` bytes they are embedded unchanged. Otherwise they are reduced to SIDE pixels and JPEG, and those that
    come after the budget is spent, or after MOST pictures, are left out. A picture outside the folder is never read.
    """
    root = folder.resolve()
    inside = [name for name in dict.fromkeys(names) if (root / name).resolve().is_relative_to(root)]
    files = {name: root / name for name in inside if (root / name).is_file()}
    notes = [f"{len(inside) - len(files)} pictures are not there"] if len(files) < len(inside) else []
    if sum(path.stat().st_size for path in files.values()) * 4 // 3 <= budget:
        return {name: _uri(path.read_bytes(), "png") for name, path in files.items()}, notes
    found: dict[str, str] = {}
    spent = 0
    for name, path in files.items():
        try:
            uri = _uri(_reduced(path), "jpeg")
        except (OSError, ValueError, SyntaxError):  # what Pillow says of files that are no pictures
            notes.append(f"{name} cannot be read as a picture")
            continue
        spent += len(uri)
        if spent > budget or len(found) == MOST:
            break
        found[name] = uri
    notes.append(
        f"pictures are reduced to {SIDE} pixels and JPEG to keep this page under {budget / 2**20:.0f} MiB of pictures; "
        f"{len(found)} of {len(files)} are in it, the originals are in pictures/"
    )
    return found, notes


def white(path: Path) -> float | None:
    """What white stands for in a picture of a standard deviation: the entry ``white`` in the header of its file, if it has one."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return float(picture.info["white"])
    except (OSError, KeyError, ValueError):
        return None


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{b64encode(data).decode()}"


def read(folder: Path, name: str) -> np.ndarray | None:
    """A picture (a path from ``folder``) as 8-bit gray or colour; None if it lies outside the folder, or is none."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        return None
    try:
        return np.asarray(_open(path))
    except (OSError, ValueError, SyntaxError):  # what Pillow says of files that are no pictures
        return None


def _open(path: Path) -> Any:
    """A picture as Pillow has it, in 8 bits, gray or RGB."""
    from PIL import Image

    with Image.open(path) as picture:
        if picture.mode.startswith("I"):  # 16 bits
            picture = picture.point(lambda v: v / 257).convert("L")  # type: ignore[assignment]
        return picture.convert("L" if picture.mode in ("L", "LA", "1") else "RGB")


def _reduced(path: Path) -> bytes:
    small = _open(path)
    small.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()
