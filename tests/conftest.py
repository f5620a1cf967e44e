"""What the tests of the command line start from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from invdiff.priors.network import DenoisingUNet
from invdiff.priors.weights_io import save_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny untrained network: it shrinks towards gray, as a Gaussian prior of independent pixels does."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(DenoisingUNet(widths=(8, 8), blocks=1), path)
    return str(path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a photograph of 40x32 pixels, ``a.png``, and a mask, ``mask.png``."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(data.astronaut()[60:92, 180:220]).save("a.png")
    known = np.random.default_rng(0).random((32, 40)) < 0.5
    Image.fromarray((known * 255).astype(np.uint8)).save("mask.png")
    return tmp_path
