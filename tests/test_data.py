"""What priors are trained on: files of every kind, what is held out, and the crops that recipes make of them."""

from __future__ import annotations

import gzip
import struct
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import torch
from PIL import Image

from invdiff.priors import Recipe, from_hounsfield, registry, to_hounsfield
from invdiff.priors.data import Crops, load_data, load_images, split, with_phase

PHOTOS = Recipe("photos")
GRAY = Recipe("gray", channels=1)
CT = Recipe("ct", images="hounsfield", channels=1, crop=16)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def write_slices(folder: Path, names: list[str], side: int = 96) -> None:
    """16-bit slices of HU + 1024: air on the left, a smooth ramp up to bone."""
    ramp = np.linspace(0, 3000, side * side).round().astype(np.uint16).reshape(side, side)
    for i, name in enumerate(names):
        (folder / name).write_bytes(imagecodecs.png_encode(np.roll(ramp, 3 * i, 1)))


def write_digits(path: Path, n: int) -> np.ndarray:
    digits = np.random.default_rng(0).integers(0, 256, (n, 28, 28), np.uint8)
    path.write_bytes(gzip.compress(struct.pack(">4i", 0x803, n, 28, 28) + digits.tobytes()))
    return digits


def data_for(recipe: Recipe, folder: Path) -> Path | None:
    """A folder of files such as the recipe is trained on."""
    if recipe.images == "ellipses":
        return None
    if recipe.images == "digits":
        write_digits(folder / "t10k-images-idx3-ubyte.gz", 40)
    elif recipe.images == "hounsfield":
        write_slices(folder, [f"Lung_Dx-A000{p}_s1_{i}.png" for p in (1, 2) for i in range(2)])
    else:
        for i in range(3):
            array = np.random.default_rng(i).integers(0, 256, (100, 110, 3), np.uint8)
            Image.fromarray(array).convert("L" if recipe.images == "magnitude" else "RGB").save(folder / f"{i}.jpg")
    return folder


# Recipes that ship


@pytest.mark.parametrize("name", ["natural", "natural-further", "mnist", "phantom", "chest-ct", "brain-mri"])
def test_recipes_that_ship_make_batches(name: str, tmp_path: Path) -> None:
    recipe = replace(Recipe.load(name), batch=8)
    assert recipe.name == name and recipe.about
    crops, held, _ = load_data(recipe, data_for(recipe, tmp_path), None)
    x0, sigma, noise = crops.batch(3)
    assert x0.shape == noise.shape == (8, recipe.channels, recipe.crop, recipe.crop) and x0.dtype == torch.float32
    assert (sigma >= recipe.sigma_min * 0.999).all() and (sigma <= recipe.sigma_max * 1.001).all()
    assert held and all(len(image) == recipe.channels and image.dtype == torch.float32 for image in held)
    low = -2.5 if recipe.channels == 2 else 0.0
    assert low <= float(x0.min()) and float(x0.max()) <= (2.5 if recipe.channels == 2 else 1.0)
    assert float(x0.std()) > 0.05
    assert all(torch.equal(a, b) for a, b in zip(crops.batch(3), (x0, sigma, noise)))
    assert not torch.equal(crops.batch(4)[0], x0)


def test_all_priors_that_ship_stay_small() -> None:
    sizes = {path.stem: path.stat().st_size / 1e6 for path in registry.WEIGHTS.glob("*.safetensors")}
    assert sizes["natural"] < 14 and sizes["mnist"] < 2.2 and sum(sizes.values()) < 30, sizes


def test_digits_are_neither_mirrored_nor_turned(tmp_path: Path) -> None:
    recipe = replace(Recipe.load("mnist"), holdout=4)
    digits = write_digits(tmp_path / "t10k-images-idx3-ubyte.gz", 12)
    known = {digit.tobytes() for digit in digits}
    crops, _, _ = load_data(recipe, tmp_path, None)
    assert all((255 * x).round().to(torch.uint8).numpy().tobytes() in known for x in crops.batch(0)[0])


def test_held_out_phantoms_are_never_trained_on() -> None:
    recipe = Recipe("p", images="ellipses", channels=1, crop=32, batch=4, holdout=8)
    crops, held, how = load_data(recipe, None, None)
    seen = {x.numpy().tobytes() for step in range(12) for x in crops.batch(step)[0] if x.std() > 0}
    assert not seen & {x.numpy().tobytes() for x in held} and how == "drawn with other seeds"


# Reading


def test_photographs_are_read_as_they_look(tmp_path: Path) -> None:
    ramp = np.arange(12 * 16, dtype=np.uint16).reshape(12, 16) * 300
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(ramp))
    turned = Image.fromarray(np.zeros((12, 16, 3), np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "b.png", exif=exif)
    Image.new("RGBA", (12, 12), (0, 0, 0, 51)).save(tmp_path / "c.png")
    Image.new("RGB", (12, 12), (255, 0, 0)).save(tmp_path / "d.png")
    deep, upright, clear, _ = load_images(tmp_path, PHOTOS, 8).values()
    assert all(im.dtype == torch.uint8 and im.shape[0] == 3 for im in (upright, clear))
    np.testing.assert_array_equal((65535 * deep[1]).round(), ramp)  # no grey level of 65536 is lost
    assert upright.shape == (3, 16, 12)
    assert (clear == 204).all()  # a fifth of black on white
    red = load_images(tmp_path, GRAY, 8)["d.png"]
    assert red.shape == (1, 12, 12) and (red == 76).all()


def test_bad_files_are_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnot a picture")
    Image.new("L", (20, 20), 100).save(tmp_path / "eight.png")
    Image.new("L", (20, 20), 0).save(tmp_path / "black.png")
    (tmp_path / "images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, 2, 28, 28) + b"too short")
    (tmp_path / "labels-idx1-ubyte").write_bytes(b"labels are not read")
    assert list(load_images(tmp_path, GRAY, 16)) == ["black.png", "eight.png"]
    assert f"{tmp_path / 'bad.png'}: not a readable image" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"0 readable images.* 16-bit .png"):
        load_images(tmp_path, CT, 16)
    assert "8 bits do not hold Hounsfield units" in capsys.readouterr().err
    assert list(load_images(tmp_path, Recipe("m", images="magnitude", channels=2), 16)) == ["eight.png"]
    assert "nothing to normalise" in capsys.readouterr().err
    packed = bytearray(gzip.compress(bytes(range(256)) * 4))
    packed[15] ^= 255
    (tmp_path / "images-idx3-ubyte.gz").write_bytes(packed)
    with pytest.raises(ValueError, match="give a folder of IDX files"):
        load_images(tmp_path, Recipe("d", images="digits", channels=1), 28)
    assert capsys.readouterr().err.count("not a whole IDX file") == 2
    with pytest.raises(ValueError, match="is not a folder"):
        load_images(tmp_path / "none", PHOTOS, 16)


def test_hounsfield_units_keep_their_16_bits(tmp_path: Path) -> None:
    values = np.array([[0, 24, 1024, 1025], [2024, 1924, 4000, 65535]], np.uint16)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(values))
    x = load_images(tmp_path, CT, 1)["a.png"]
    hu = np.clip(values.astype(float) - 1024, -1000, 1000)
    np.testing.assert_allclose(to_hounsfield(x[0]), hu, atol=1e-3)
    torch.testing.assert_close(from_hounsfield(torch.tensor([-1000.0, 0.0, 1000.0])), torch.tensor([0.0, 0.5, 1.0]))


def test_a_magnitude_is_normalised_and_its_phase_smooth(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 180, (60, 50)).astype(np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    m = load_images(tmp_path, Recipe("m", images="magnitude", channels=2), 1)["a.png"]
    assert np.quantile(m.numpy(), 0.99) == pytest.approx(1, abs=1e-6)
    z = with_phase(m, generator())
    torch.testing.assert_close(torch.linalg.vector_norm(z, dim=0), m[0])
    flat = torch.stack([with_phase(torch.ones(1, 200, 161), generator(i)) for i in range(20)])
    phasors = torch.complex(flat[:, 0], flat[:, 1])
    steps = (phasors[:, :, 1:] * phasors[:, :, :-1].conj()).angle()  # radians from a pixel to its neighbour
    assert 0.02 < float(steps.square().mean().sqrt()) < 0.1 and float(steps.abs().max()) < 0.4
    means = phasors.mean((1, 2))
    assert float((means / means.abs()).mean().abs()) < 0.5  # any phase is as likely as any other


# Holding out


def test_patients_are_held_out_whole(tmp_path: Path) -> None:
    recipe = Recipe.load("chest-ct")
    names = [f"Lung_Dx-A000{p}_s2_{i:03}.png" for p in (1, 2) for i in range(3)]
    write_slices(tmp_path, names)
    images = load_images(tmp_path, recipe, recipe.crop)
    train, held, how = split(images, recipe)
    of = {id(image): name for name, image in images.items()}
    assert [of[id(im)] for im in train] == names[:3] and [of[id(im)] for im in held] == names[3:]
    assert "Lung_Dx-A0002" in how
    with pytest.raises(ValueError, match=r"names of all 6 images match .*Give --held DIR, or a recipe with your names"):
        split(images, replace(recipe, holdout_names="Lung"))


def test_names_that_no_file_has_hold_out_evenly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A user's own slices, with the recipe that ships, which names a patient of another collection."""
    write_slices(tmp_path, [f"scan_{i:02}.png" for i in range(6)], 100)
    crops, held, how = load_data(Recipe.load("chest-ct"), tmp_path, None)
    assert (crops.images, len(held)) == (3, 3)
    assert how == "evenly spread over all 6, in the order of their names, since no name matches 'Lung_Dx-A0002'" and how in capsys.readouterr().err


def test_files_are_held_out_evenly(tmp_path: Path) -> None:
    images = {f"{i:02}.png": torch.full((1, 4, 4), float(i)) for i in range(20)}
    train, held, how = split(images, replace(PHOTOS, holdout=4))
    assert [int(im[0, 0, 0]) for im in held] == [0, 5, 10, 15] and len(train) == 16 and how == "evenly spread over all 20, in the order of their names"
    _, held, _ = split(dict(list(images.items())[:19]), replace(PHOTOS, holdout=8))
    assert [int(im[0, 0, 0]) for im in held] == [0, 2, 4, 7, 9, 11, 14, 16]
    with pytest.raises(ValueError, match="two or more"):
        split({"a": torch.zeros(1, 4, 4)}, PHOTOS)


def test_what_needs_a_folder_and_what_does_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"natural \(photographs\) is trained on files: give --data DIR"):
        load_data(Recipe.load("natural"), None, None)
    for data, held in ((tmp_path, None), (None, tmp_path)):
        with pytest.raises(ValueError, match="phantom .*leave out --"):
            load_data(Recipe.load("phantom"), data, held)


def test_reduced_images_stay_in_range() -> None:
    edge = torch.zeros(1, 32, 32)
    edge[..., 16:] = 1.0
    for image in (edge, (255 * edge).to(torch.uint8)):
        crops = Crops([image], replace(CT, scales=(0.5,)))
        x0 = crops.batch(0)[0]
        assert x0.shape[-1] == 16 and 0 <= float(x0.min()) and float(x0.max()) <= 1


def test_no_held_out_phantom_is_black() -> None:
    _, held, _ = load_data(Recipe.load("phantom"), None, None)
    assert len(held) == Recipe.load("phantom").holdout and all(bool(x.any()) for x in held)


def test_hounsfield_units_in_16_bits() -> None:
    metal = torch.tensor([32767, 1000, -1000], dtype=torch.int16)
    assert from_hounsfield(metal).tolist() == [1.0, 1.0, 0.0]
