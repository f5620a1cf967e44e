"""Image files: what is read is what is in the file, and what is written is what was read."""

from __future__ import annotations

import struct
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms

from invdiff.io import Meta, check_writable, read_image, read_mask, write_image

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def pixels(channels: int, bits: int = 8, size: tuple[int, int] = (13, 17)) -> np.ndarray:
    """Random pixels (H, W) or (H, W, C); odd sides on purpose."""
    shape = size if channels == 1 else (*size, channels)
    return np.random.default_rng(channels).integers(0, 2**bits, shape).astype(np.uint8 if bits == 8 else np.uint16)


def save(path: Path, array: np.ndarray) -> Path:
    if array.dtype == np.uint8:
        Image.fromarray(array).save(path)
    elif path.suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(array))
    else:
        photometric = "rgb" if array.ndim == 3 and array.shape[2] > 2 else "minisblack"
        extra = ["unassalpha"] if array.ndim == 3 and array.shape[2] in (2, 4) else None
        planar = "contig" if array.ndim == 3 else None
        tifffile.imwrite(path, array, photometric=photometric, extrasamples=extra, planarconfig=planar)
    return path


def load(path: Path, bits: int) -> np.ndarray:
    """Read independently of the code under test."""
    if bits == 16 and path.suffix == ".png":
        return imagecodecs.png_decode(path.read_bytes())
    if bits == 16:
        return tifffile.imread(path)
    with Image.open(path) as im:
        return np.asarray(im)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_lossless_formats_come_back_bit_for_bit(tmp_path: Path, suffix: str, bits: int, channels: int) -> None:
    array = pixels(channels, bits)
    x, meta = read_image(save(tmp_path / f"in{suffix}", array))
    assert x.shape == (1, 1 if channels < 3 else 3, 13, 17) and x.dtype == torch.float32
    assert meta.bits == bits and (meta.alpha is not None) == (channels in (2, 4))
    planes = torch.cat([x] if meta.alpha is None else [x, meta.alpha], 1)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(planes.squeeze(), array / (2**bits - 1), atol=1e-7)
    assert write_image(tmp_path / f"out{suffix}", x, meta) == []
    np.testing.assert_array_equal(load(tmp_path / f"out{suffix}", bits), array)


@pytest.mark.parametrize("suffix", [".bmp", ".webp"])
def test_bmp_and_webp_keep_colours(tmp_path: Path, suffix: str) -> None:
    array = pixels(3)
    x, meta = read_image(save(tmp_path / "in.png", array))
    write_image(tmp_path / f"out{suffix}", x, meta)
    np.testing.assert_array_equal(load(tmp_path / f"out{suffix}", 8), array)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_stays_close_and_keeps_its_mode(tmp_path: Path, channels: int) -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8)[None].repeat(48, 0)
    array = ramp if channels == 1 else np.stack([ramp] * 3, -1)
    x, meta = read_image(save(tmp_path / "in.jpg", array))
    write_image(tmp_path / "out.jpeg", x, meta)
    out = load(tmp_path / "out.jpeg", 8)
    assert out.shape == array.shape and np.abs(out.astype(int) - array).max() <= 3


def test_palette_one_bit_and_cmyk_are_converted_with_a_notice(tmp_path: Path) -> None:
    rgb = Image.fromarray(pixels(3)).quantize(8)
    rgb.save(tmp_path / "p.png")
    x, meta = read_image(tmp_path / "p.png")
    np.testing.assert_allclose(x[0].permute(1, 2, 0) * 255, np.asarray(rgb.convert("RGB")), atol=1e-4)
    assert "palette" in meta.notices[0]

    gray = Image.new("P", (4, 3), 7)
    gray.putpalette([v for v in range(256) for _ in range(3)])
    gray.save(tmp_path / "g.png")
    assert read_image(tmp_path / "g.png")[0].shape == (1, 1, 3, 4)

    bits = pixels(1) > 127
    Image.fromarray(bits).save(tmp_path / "b.png")
    x, meta = read_image(tmp_path / "b.png")
    np.testing.assert_array_equal(x[0, 0], bits)
    assert "1-bit" in meta.notices[0]

    Image.fromarray(pixels(4)).convert("CMYK").save(tmp_path / "c.jpg")
    x, meta = read_image(tmp_path / "c.jpg")
    assert x.shape[1] == 3 and "CMYK" in meta.notices[0]


def test_transparent_colour_of_a_palette_becomes_alpha(tmp_path: Path) -> None:
    im = Image.fromarray(pixels(1) // 64).convert("P")
    im.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    im.save(tmp_path / "t.png", transparency=1)
    x, meta = read_image(tmp_path / "t.png")
    assert x.shape[1] == 3 and meta.alpha is not None
    np.testing.assert_array_equal(meta.alpha[0, 0] == 0, np.asarray(im) == 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif", "deep.png", "deep.tif"])
def test_orientation_is_applied_once(tmp_path: Path, name: str, orientation: int) -> None:
    upright = pixels(3, 16 if "deep" in name else 8)
    turn = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.swapaxes(0, 1)}
    turn |= {6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: lambda a: np.rot90(a, -1)}
    stored = np.ascontiguousarray(turn[orientation](upright))  # what a camera turned like this records
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / name
    if name == "deep.png":
        data = imagecodecs.png_encode(stored)
        body = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
        path.write_bytes(data[:33] + struct.pack(">I", len(body) - 4) + body + crc(body) + data[33:])
    elif name == "deep.tif":
        tifffile.imwrite(path, stored, photometric="rgb", extratags=[(0x0112, 3, 1, orientation, True)])
    else:
        Image.fromarray(stored).save(path, exif=exif)
    x, meta = read_image(path)
    peak = 2**meta.bits - 1
    np.testing.assert_allclose(x[0].permute(1, 2, 0), upright / peak, atol=1e-7)
    write_image(tmp_path / f"out{path.suffix}", x, meta)
    again, _ = read_image(tmp_path / f"out{path.suffix}")
    torch.testing.assert_close(again, x, atol=1e-7, rtol=0)


def crc(body: bytes) -> bytes:
    import zlib

    return struct.pack(">I", zlib.crc32(body))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp", "deep.png", "deep.tif"])
def test_colour_profile_is_kept(tmp_path: Path, name: str) -> None:
    x = torch.rand(1, 3, 8, 8)
    write_image(tmp_path / name, x, Meta(bits=16 if "deep" in name else 8, icc=ICC))
    assert read_image(tmp_path / name)[1].icc == ICC


def test_camera_notes_are_kept(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "maker", 6
    Image.fromarray(pixels(3)).save(tmp_path / "in.jpg", exif=exif)
    x, meta = read_image(tmp_path / "in.jpg")
    assert x.shape == (1, 3, 17, 13)
    write_image(tmp_path / "out.jpg", x, meta)
    with Image.open(tmp_path / "out.jpg") as im:
        assert im.size == (13, 17) and im.getexif()[0x010F] == "maker" and 0x0112 not in im.getexif()


def test_white_is_zero_and_planes_apart_in_deep_tiff(tmp_path: Path) -> None:
    array = pixels(1, 16)
    tifffile.imwrite(tmp_path / "w.tif", array, photometric="miniswhite")
    np.testing.assert_allclose(read_image(tmp_path / "w.tif")[0][0, 0], 1 - array / 65535, atol=1e-6)
    array = pixels(3, 16)
    tifffile.imwrite(tmp_path / "s.tif", np.moveaxis(array, -1, 0), photometric="rgb", planarconfig="separate")
    np.testing.assert_allclose(read_image(tmp_path / "s.tif")[0][0].permute(1, 2, 0), array / 65535, atol=1e-7)


def test_compressed_deep_tiff_as_photo_editors_write_it(tmp_path: Path) -> None:
    array = pixels(3, 16)
    tifffile.imwrite(tmp_path / "l.tif", array, photometric="rgb", compression="lzw", predictor=True)
    np.testing.assert_allclose(read_image(tmp_path / "l.tif")[0][0].permute(1, 2, 0), array / 65535, atol=1e-7)


@pytest.mark.parametrize("bits", [8, 16])
def test_only_the_first_page_is_used_and_said_so(tmp_path: Path, bits: int) -> None:
    pages = [pixels(1, bits), pixels(1, bits)[::-1]]
    tifffile.imwrite(tmp_path / "m.tif", np.stack(pages), photometric="minisblack")
    x, meta = read_image(tmp_path / "m.tif")
    np.testing.assert_allclose(x[0, 0], pages[0] / (2**bits - 1), atol=1e-7)
    assert "first of 2 pages" in meta.notices[0]


def test_transparency_follows_a_new_size_and_is_dropped_with_a_notice(tmp_path: Path) -> None:
    alpha = torch.zeros(1, 1, 8, 8)
    alpha[..., 4:] = 1
    notices = write_image(tmp_path / "out.png", torch.rand(1, 3, 32, 32), Meta(alpha=alpha))
    out = load(tmp_path / "out.png", 8)
    assert notices == [] and out.shape == (32, 32, 4)
    assert (out[:, :10, 3] == 0).all() and (out[:, -10:, 3] == 255).all()
    (notice,) = write_image(tmp_path / "out.jpg", torch.rand(1, 3, 8, 8), Meta(alpha=alpha))
    assert "transparency" in notice
    (notice,) = write_image(tmp_path / "out.bmp", torch.rand(1, 3, 8, 8), Meta(bits=16))
    assert "8 bits" in notice


def test_values_are_clipped_and_rounded(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", torch.tensor([[[[-0.5, 0.4999 / 255, 0.5001 / 255, 1.7]]]]))
    np.testing.assert_array_equal(load(tmp_path / "a.png", 8), [[0, 0, 1, 255]])


def test_text_is_stored(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", torch.rand(1, 1, 4, 4), text={"white": "0.25"})
    with Image.open(tmp_path / "a.png") as im:
        assert im.info["white"] == "0.25"


@pytest.mark.parametrize("name", ["t8.png", "t16.png", "t.jpg", "t8.tif", "t16.tif", "t.bmp", "t.webp"])
@pytest.mark.parametrize("keep", [0, 10, 0.5])
def test_damaged_files_are_named_in_one_line(tmp_path: Path, name: str, keep: float) -> None:
    path = save(tmp_path / name, pixels(3, 16 if "16" in name else 8, (64, 64)))
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep == 0.5 else int(keep)])
    with pytest.raises(ValueError) as error:
        read_image(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_missing_files_and_unknown_pixel_types(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        read_image(tmp_path / "none.png")
    tifffile.imwrite(tmp_path / "f.tif", np.zeros((4, 4), np.float32))
    tifffile.imwrite(tmp_path / "rgb.tif", np.zeros((4, 4, 3), np.float32), photometric="rgb")
    for name in ("f.tif", "rgb.tif"):
        with pytest.raises(ValueError, match="float32 have no known range; save it as 8 or 16 bits"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("gray", [0, 255])
def test_a_mask_drawn_in_the_transparency_is_refused(tmp_path: Path, gray: int) -> None:
    array = np.full((4, 4, 2), gray, np.uint8)
    array[..., 1] = [[0], [0], [255], [255]]
    with pytest.raises(ValueError, match="drawing lies in the transparency"):
        read_mask(save(tmp_path / "m.png", array), (4, 4))
    array[:2, :, 0] = 255 - gray
    assert read_mask(save(tmp_path / "m.png", array), (4, 4)).mean() == 0.5


def test_mask_is_split_at_half(tmp_path: Path) -> None:
    array = np.array([[0, 120, 130, 255]], np.uint8)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "m.png", array), (1, 4)), [[0, 0, 1, 1]])
    np.testing.assert_array_equal(
        read_mask(save(tmp_path / "c.png", np.stack([array] * 3, -1)), (1, 4)), [[0, 0, 1, 1]]
    )
    with pytest.raises(ValueError, match="4x1 pixels, the image 4x2"):
        read_mask(tmp_path / "m.png", (2, 4))
    with pytest.raises(ValueError, match="black everywhere"):
        read_mask(save(tmp_path / "z.png", array * 0), (1, 4))


def test_unwritable_outputs_are_found_before_the_work(tmp_path: Path) -> None:
    check_writable(tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
    for path, reason in [
        (tmp_path / "none" / "a.png", "does not exist"),
        (tmp_path / "a.xyz", "cannot write .xyz"),
        (tmp_path / "a", "without suffix"),
        (tmp_path, "suffix|folder"),
    ]:
        with pytest.raises(ValueError, match=reason):
            check_writable(path)
    with pytest.raises(ValueError, match="at most 16383 pixels"):
        check_writable(tmp_path / "a.webp", (10, 20000))


def test_no_permission_is_found_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(ValueError, match="Permission denied"):
        check_writable(tmp_path / "a.png")
