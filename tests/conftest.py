"""What several files of tests start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from small_network import tiny

from invdiff.priors import network
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


@pytest.fixture(scope="module")
def net() -> DenoisingUNet:
    """A small network whose layers all matter: those that start at zero get random weights."""
    return tiny(seed=0)


@pytest.fixture(params=["bf16", "float32"])
def precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run in bf16 where this machine does so by itself, and in float32; the tolerance in units of the image."""
    if request.param == "bf16" and network.has_bf16(torch.device("cpu")):
        return {"rtol": 0.0, "atol": 1e-2}
    monkeypatch.setattr(network, "has_bf16", lambda device: False)
    return {"rtol": 0.0, "atol": 2e-6}
