"""Image files in and out, with nothing lost on the way: bit depth, transparency, orientation, colour profile.

An image is read as a float tensor (1, C, H, W) in [0, 1], with C = 1 for gray and 3 for colour, and a :class:`Meta` of
what the tensor does not hold. Written with that ``Meta``, the file has the same bit depth, transparency and colour
profile. Palette and 1-bit pictures come back as 8-bit RGB or gray, because a restored picture has colours of its own.

Files are replaced atomically: a run that is stopped never leaves half an image.
"""

from __future__ import annotations

import struct
import tempfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torch.nn import functional as F

from invdiff.files import write_atomically

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".webp": "WEBP",
}
ALPHA = {"PNG", "TIFF", "WEBP"}  # formats that hold transparency
DEEP = {"PNG", "TIFF"}  # formats that hold 16 bits
LARGEST = {"JPEG": 65535, "WEBP": 16383}  # longest side, in pixels
OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
    "TIFF": {"compression": "tiff_deflate"},
}
ORIENTATION = 0x0112  # the EXIF and TIFF tag


@dataclass(frozen=True)
class Meta:
    """What a picture file holds besides the pixels.

    ``alpha`` is the transparency, (1, 1, H, W) in [0, 1]; ``icc`` the colour profile; ``exif`` the camera's notes without
    the orientation, which has been applied; ``notices`` are sentences for the user about what was changed in reading.
    """

    bits: int = 8
    alpha: Tensor | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    notices: tuple[str, ...] = ()


def read_image(path: str | Path) -> tuple[Tensor, Meta]:
    """Read PNG, JPEG, TIFF, BMP or WebP, 8 or 16 bits, gray, RGB or palette, with or without transparency.

    :return: image (1, C, H, W) in [0, 1] with C = 1 or 3, and its :class:`Meta`.
    :raises ValueError: in one line that names the file: missing, damaged, or of a pixel type with no known range.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        array, meta = _decode(path)
    except _UnsupportedError as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # decoders raise whatever comes to them on damaged files
        raise ValueError(f"{path}: not a readable image ({' '.join(str(error).split())})") from error
    x = torch.from_numpy(array.astype(np.float32) / (2**meta.bits - 1))
    x = x.reshape(*array.shape[:2], -1).permute(2, 0, 1)[None].contiguous()
    channels = 1 if x.shape[1] < 3 else 3
    return x[:, :channels], replace(meta, alpha=x[:, channels:] if x.shape[1] > channels else None)


def read_mask(path: str | Path, size: tuple[int, int]) -> Tensor:
    """Read a mask for an image of ``size`` (H, W): 1 where white (known), 0 where black (to be filled); split at 50 %."""
    x, meta = read_image(path)
    mask = (x.mean((0, 1)) > 0.5).float()
    if meta.alpha is not None and len(meta.alpha.unique()) > 1 and len(mask.unique()) == 1:
        raise ValueError(
            f"{path}: the mask is of one colour and its drawing lies in the transparency, which is not read; "
            "save it without transparency, white for known and black for what is to be filled"
        )
    if tuple(mask.shape) != tuple(size):
        raise ValueError(
            f"{path}: the mask is {mask.shape[1]}x{mask.shape[0]} pixels, the image {size[1]}x{size[0]}; they must agree"
        )
    if not bool(mask.any()):
        raise ValueError(f"{path}: the mask is black everywhere; white marks the known pixels, and there must be some")
    return mask


def check_writable(path: str | Path, size: tuple[int, int] = (1, 1)) -> None:
    """Find out, before the work, whether an image of ``size`` (H, W) can be written to ``path``; ``ValueError`` if not."""
    path = Path(path)
    form = _format(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: the folder {path.parent} does not exist; create it first")
    if max(size) > LARGEST.get(form, 2**31):
        raise ValueError(
            f"{path}: {form} files have sides of at most {LARGEST[form]} pixels, not {max(size)}; use .png"
        )
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ValueError(f"{path}: cannot write to the folder {path.parent} ({error.strerror})") from None


def write_image(path: str | Path, x: Tensor, meta: Meta | None = None, text: dict[str, str] | None = None) -> list[str]:
    """Write an image (1, C, H, W), clipped to [0, 1]; the suffix says the format, ``meta`` the bit depth and the rest.

    :param text: stored in the header of an 8-bit PNG.
    :return: notices for the user: what the chosen format could not hold.
    """
    path, meta = Path(path), meta or Meta()
    form, notices, planes = _format(path), [], [x]
    if meta.alpha is not None and form in ALPHA:
        planes.append(_resize(meta.alpha, (x.shape[-2], x.shape[-1])))
    elif meta.alpha is not None:
        notices.append(f"{path}: {form} files hold no transparency, it was dropped")
    deep = meta.bits == 16 and form in DEEP
    if meta.bits == 16 and not deep:
        notices.append(f"{path}: {form} files hold 8 bits, the input had 16")
    peak, dtype = (65535, np.uint16) if deep else (255, np.uint8)
    stack = torch.cat([p.detach().float().cpu() for p in planes], 1)[0].permute(1, 2, 0)
    array = np.ascontiguousarray((stack.clamp(0, 1) * peak).round().numpy().astype(dtype))
    if array.shape[2] == 1:
        array = array[..., 0]
    if deep:
        write = _deep_png if form == "PNG" else _deep_tiff
        write_atomically(path, lambda p: write(p, array, meta.icc))
    else:
        options = OPTIONS.get(form, {}) | {"icc_profile": meta.icc}
        if meta.exif and form != "TIFF":
            options["exif"] = meta.exif
        if text and form == "PNG":
            options["pnginfo"] = info = PngInfo()
            for key, value in text.items():
                info.add_text(key, value)
        write_atomically(path, lambda p: Image.fromarray(array).save(p, form, **options))
    return notices


class _UnsupportedError(Exception):
    """A sound file whose pixels we cannot place in [0, 1]."""


def _format(path: Path) -> str:
    if path.suffix.lower() not in FORMATS:
        raise ValueError(
            f"{path}: cannot write {path.suffix or 'a file without suffix'}; use one of {', '.join(FORMATS)}"
        )
    return FORMATS[path.suffix.lower()]


def _resize(alpha: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(alpha.shape[-2:]) == size:
        return alpha
    return F.interpolate(alpha, size=size, mode="bicubic", antialias=True, align_corners=False)


def _decode(path: Path) -> tuple[np.ndarray, Meta]:
    """Pixels (H, W) or (H, W, C) in uint8 or uint16, upright, gray or RGB with perhaps a plane of transparency."""
    with path.open("rb") as f:
        head = f.read(26)
    if head.startswith((b"II*\0", b"MM\0*")):
        deep = _read_deep_tiff(path)
        if deep is not None:
            return deep
    with Image.open(path) as im:
        if head.startswith(b"\x89PNG") and head[24] == 16:
            import imagecodecs

            array = imagecodecs.png_decode(path.read_bytes())
            meta = Meta(bits=16, icc=im.info.get("icc_profile"))
            return _upright(array, im.getexif().get(ORIENTATION, 1)), meta
        pages = 1 if im.format == "MPO" else getattr(im, "n_frames", 1)  # MPO: a telephone's JPEG with a preview
        notices = (f"{path}: only the first of {pages} pages is used",) if pages > 1 else ()
        im.load()
        return _decode_8bit(path, ImageOps.exif_transpose(im), im.format or "", notices)


def _decode_8bit(path: Path, im: Image.Image, form: str, notices: tuple[str, ...]) -> tuple[np.ndarray, Meta]:
    icc, mode, see_through = im.info.get("icc_profile"), im.mode, "transparency" in im.info
    exif = im.getexif().tobytes() if form in {"JPEG", "MPO", "PNG", "WEBP"} and im.getexif() else None
    if mode in {"P", "PA"}:
        im = im.convert("RGBA" if see_through or mode == "PA" else "RGB")
        notices += (f"{path}: a palette picture, restored as {im.mode}",)
        rgb = np.asarray(im)[..., :3]
        if (rgb == rgb[..., :1]).all():
            im = im.convert("LA" if im.mode == "RGBA" else "L")
    elif mode in {"1", "L", "LA", "La"}:
        im = im.convert("LA" if see_through or mode in {"LA", "La"} else "L")
        if mode == "1":
            notices += (f"{path}: a 1-bit picture, restored in 8 bits",)
    elif mode in {"RGB", "RGBA", "RGBa", "RGBX"}:
        im = im.convert("RGBA" if see_through or mode in {"RGBA", "RGBa"} else "RGB")
    elif mode in {"CMYK", "YCbCr", "LAB", "HSV"}:
        im, icc = im.convert("RGB"), None
        notices += (f"{path}: {mode} colours, converted to RGB without a colour profile",)
    else:
        raise _UnsupportedError(f"pixels of type {mode} have no known range; save it as 8 or 16 bits")
    return np.asarray(im), Meta(icc=icc, exif=exif, notices=notices)


def _read_deep_tiff(path: Path) -> tuple[np.ndarray, Meta] | None:
    """The first page of a 16-bit TIFF, which Pillow reads with 8 bits; ``None`` for any other TIFF."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        if page.dtype is not None and page.dtype.itemsize > 2:
            raise _UnsupportedError(f"pixels of type {page.dtype} have no known range; save it as 8 or 16 bits")
        if page.dtype != np.uint16:
            return None
        photometric = page.photometric.name
        if page.axes not in {"YX", "YXS", "SYX"} or photometric not in {"MINISBLACK", "MINISWHITE", "RGB"}:
            raise _UnsupportedError(
                f"a 16-bit TIFF with {photometric} pixels on axes {page.axes}; save it as gray or RGB"
            )
        array = page.asarray()
        if page.axes == "SYX":
            array = np.moveaxis(array, 0, -1)
        if photometric == "MINISWHITE":
            array = 65535 - array
        channels = 3 if photometric == "RGB" else 1
        if array.ndim == 3:
            array = array[..., : channels + bool(page.extrasamples)]
        notices = (f"{path}: only the first of {len(file.pages)} pages is used",) if len(file.pages) > 1 else ()
        tags = page.tags
        icc = tags["InterColorProfile"].value if "InterColorProfile" in tags else None
        turn = int(tags["Orientation"].value) if "Orientation" in tags else 1
        return _upright(array, turn), Meta(bits=16, icc=icc, notices=notices)


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation (1 to 8) to (H, W, ...)."""
    if orientation in {5, 6, 7, 8}:
        array = array.swapaxes(0, 1)
    if orientation in {3, 4, 7, 8}:
        array = array[::-1]
    return array[:, ::-1] if orientation in {2, 3, 6, 7} else array


def _deep_png(path: Path, array: np.ndarray, icc: bytes | None) -> None:
    import imagecodecs

    data = imagecodecs.png_encode(array)
    if icc:
        body = b"iCCP" + b"ICC profile\0\0" + zlib.compress(icc)
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        data = data[:33] + chunk + data[33:]  # the header takes 33 bytes, the profile comes next
    path.write_bytes(data)


def _deep_tiff(path: Path, array: np.ndarray, icc: bytes | None) -> None:
    import tifffile

    planes = array.shape[2] if array.ndim == 3 else 1
    tifffile.imwrite(
        path,
        array,
        photometric="rgb" if planes >= 3 else "minisblack",
        extrasamples=["unassalpha"] if planes in {2, 4} else None,
        planarconfig="contig" if planes > 1 else None,
        compression="zlib",
        predictor=True,
        iccprofile=icc,
    )
