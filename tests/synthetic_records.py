"""Benchmark folders as `invdiff bench run` leaves them, of any size, with known scores: for the tests of what reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from skimage import data
from skimage.filters import gaussian
from skimage.transform import resize

from invdiff.bench.records import Record, key

TASKS = {"inpaint": "half the pixels missing, noise 0.05", "deblur": "Gaussian blur of 2 pixels", "superres": "4 times fewer pixels"}
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "camera", "rocket", "cat")
METHODS = {"total-variation": (24.0, 0, 3.0), "ddrm": (25.5, 20, 6.0), "diffpir": (27.3, 20, 5.0), "dps": (27.0, 100, 38.0), "auto": (27.8, 30, 12.0), "mcg": (23.0, 100, 40.0)}  # fmt: skip


def spec(task: str, image: str, method: str, **other: Any) -> dict[str, Any]:
    return {
        "task": task, "image": image, "method": method, "settings": f"{method.upper()}(steps={METHODS.get(method, (0, 20))[1]})",
        "prior": "natural", "prior_sha256": "ab" * 32, "samples": 4, "seed": 0, "operator": {"name": "Inpainting"}, "noise": 0.05,
        "image_sha256": f"sha of {image}", "measurement_sha256": f"sha of {task} {image}", **other,
    }  # fmt: skip


def record(
    task: str, image: str, method: str, metrics: dict[str, float | None] | None = None, status: str = "ok", error: str | None = None,
    cost: dict[str, float | None] | None = None, pictures: dict[str, str] | None = None, **other: Any,
) -> Record:  # fmt: skip
    what = spec(task, image, method, **other)
    return {
        "key": key(what), "suite": "synthetic", "protocol": "0123456789abcdef", "spec": what,
        "status": status, "error": error, "metrics": metrics or {}, "cost": cost or {}, "versions": {"invdiff": "0.1.0", "torch": "2.9"},
        "machine": {"cpu": "Testium 9", "cores": 2, "gpu": None, "threads": 1, "python": "3.11"}, "started": "2026-01-01T00:00:00Z",
        "warnings": [], "pictures": pictures or {},
    }  # type: ignore[return-value] # fmt: skip


def write(folder: Path, records: list[Record], protocol: str | None = None) -> Path:
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    for r in records:
        (folder / "runs" / f"{r['key']}.json").write_text(json.dumps(r))
    images, tasks, methods = ({r["spec"][k]: {} for r in records} for k in ("image", "task", "method"))
    suite = {"name": "synthetic", "images": images, "tasks": tasks, "methods": methods}
    (folder / "suite.yaml").write_text(protocol or yaml.safe_dump(suite, sort_keys=False))
    return folder


def scores(rng: np.random.Generator, level: float, difficulty: float) -> dict[str, float | None]:
    """Scores that go with a PSNR of about ``level``."""
    psnr = level - difficulty + 0.15 * rng.standard_normal()
    error = 10 ** (-psnr / 20)
    return {
        "psnr": psnr, "ssim": 1 - 4 * error, "ms_ssim": None, "lpips": None, "dists": None, "fsim": 1 - 2 * error, "gmsd": 2 * error,
        "haarpsi": 1 - 6 * error, "nmse": 4 * error**2, "crps": 0.56 * error, "coverage_50": float(rng.normal(0.4, 0.03)),
        "coverage_90": float(rng.normal(0.78, 0.03)), "spread_skill": float(rng.normal(1.5, 0.1)), "chi_square": float(rng.normal(1, 0.02)),
    }  # fmt: skip


def benchmark(folder: Path, *, side: int = 96, images: int = 6, seed: int = 0) -> Path:
    """A small benchmark of photographs: 3 tasks, 6 methods, one of which fails on some and is refused on others."""
    rng = np.random.default_rng(seed)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    records = []
    difficulty = rng.normal(0, 2.5, len(PHOTOGRAPHS))
    for i, name in enumerate(PHOTOGRAPHS[:images]):
        truth = photograph(name, side)
        save(folder / "pictures" / f"{name}.png", truth)
        for t, task in enumerate(TASKS):
            y = measured(truth, task, rng)
            save(folder / "pictures" / f"{task}-{name}-y.png", y)
            for method, (level, nfe, seconds) in METHODS.items():
                if method == "mcg" and task == "superres":
                    records.append(record(task, name, method, status="refused", error="ValueError: MCG needs a linear operator <b>bold</b>; use DPS"))
                    continue
                if method == "mcg" and i % 3 == 1:
                    records.append(record(task, name, method, status="failed", error="FloatingPointError: the result is not finite"))
                    continue
                what = key(spec(task, name, method))
                x = restored(truth, y, level, rng)
                save(folder / "pictures" / f"{what}-x.png", x)
                paths = {"x": f"pictures/{what}-x.png", "y": f"pictures/{task}-{name}-y.png", "truth": f"pictures/{name}.png"}
                found = scores(rng, level - 1.5 * t, difficulty[i])
                if nfe:
                    spread = gaussian(np.abs(x - truth).mean(-1), 1.5)
                    save(folder / "pictures" / f"{what}-std.png", spread / spread.max(), white=spread.max())
                    paths["std"] = f"pictures/{what}-std.png"
                else:
                    found |= dict.fromkeys(("crps", "coverage_50", "coverage_90", "spread_skill"))
                cost = {"nfe": nfe, "backward": nfe if method in ("dps", "mcg") else 0, "seconds": seconds * rng.uniform(0.9, 1.1), "peak_mib": 600 + 4 * seconds}
                records.append(record(task, name, method, found, cost=cost, pictures=paths))
    suite = {
        "name": "synthetic", "about": "what the tests read", "samples": 4,
        "images": {n: {"source": {"photograph": {"name": n, "size": side}}, "sha256": "ab" * 32} for n in PHOTOGRAPHS[:images]},
        "tasks": {k: {"title": title, "operator": {"Inpainting": {"mask": "..."}}, "noise": 0.05} for k, title in TASKS.items()},
        "methods": dict.fromkeys(METHODS), "metrics": {"psnr": "deepinv 0.5.0", "ssim": "piq 0.8.0"},
    }  # fmt: skip
    return write(folder, records, yaml.safe_dump(suite, sort_keys=False, default_flow_style=None))


def photograph(name: str, side: int) -> np.ndarray:
    picture = getattr(data, name)()[..., :3]
    picture = np.repeat(picture[..., None], 3, -1) if picture.ndim == 2 else picture
    h, w = picture.shape[:2]
    cut = min(h, w)
    picture = picture[(h - cut) // 2 :, (w - cut) // 2 :][:cut, :cut]
    return resize(picture / 255, (side, side), anti_aliasing=True)


def measured(truth: np.ndarray, task: str, rng: np.random.Generator) -> np.ndarray:
    if task == "inpaint":
        return truth * (rng.random(truth.shape[:2]) < 0.5)[..., None]
    if task == "deblur":
        return gaussian(truth, 2, channel_axis=-1)
    return resize(truth, (truth.shape[0] // 4, truth.shape[1] // 4, 3), anti_aliasing=True)


def restored(truth: np.ndarray, y: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    blurred = gaussian(truth, max(0.3, (29 - level) / 3), channel_axis=-1)
    return blurred + 10 ** (-level / 20) * 0.3 * rng.standard_normal(truth.shape)


def save(path: Path, picture: np.ndarray, white: float | None = None) -> None:
    header = PngInfo()
    if white is not None:
        header.add_text("white", f"{white:.6g}")
    Image.fromarray((np.clip(picture, 0, 1) * 255).round().astype(np.uint8)).save(path, pnginfo=header)


def many(folder: Path, count: int, *, methods: int = 20, tasks: int = 5, seed: int = 0) -> Path:
    """``count`` records without pictures of their own: a large benchmark."""
    rng = np.random.default_rng(seed)
    records = []
    for n in range(count):
        m, t, i = n % methods, n // methods % tasks, n // methods // tasks
        found = scores(rng, 22 + 8 * m / methods - t, 0.05 * (i % 40))
        cost = {"nfe": 10 * (m + 1), "backward": 0, "seconds": 0.3 * (m + 1), "peak_mib": 900}
        pictures = {"truth": f"pictures/{i}.png"} | ({"x": f"pictures/{n}-x.png"} if (folder / f"pictures/{n}-x.png").is_file() else {})
        records.append(record(f"task-{t}", f"image-{i:04}", f"method-{m:02}", found, cost=cost, pictures=pictures))  # type: ignore[arg-type]
    return write(folder, records)
