"""Files of NVlabs/edm: pickles of the same structure, made of deepinv's networks and of classes that must never be run."""

from __future__ import annotations

import copy
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import randn, stirred
from deepinv.models import ADMUNet, NCSNpp
from torch import Tensor, nn

from invdiff import priors

SIZE = {"img_resolution": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8]}
NCSN = {"embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual", "resample_filter": [1, 3, 3, 1]}
NETWORKS: dict[str, tuple[type, dict[str, Any], dict[str, Any], dict[str, Any]]] = {  # class, shape, and how deepinv and EDM name the rest
    "ddpmpp": (NCSNpp, {"model_channels": 32, "augment_dim": 9}, {"model_type": "ddpm"}, {}),
    "ncsnpp": (NCSNpp, {"model_channels": 32, "augment_dim": 0}, {"model_type": "ncsn"}, NCSN),
    "ddpmpp-cond": (NCSNpp, {"model_channels": 64, "augment_dim": 0, "label_dim": 5}, {"model_type": "ddpm"}, {}),
    "adm-cond": (ADMUNet, {"model_channels": 64, "label_dim": 5}, {}, {}),
}


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
    raise AssertionError("code of the file was run")


class Persistent:
    """Pickled as EDM pickles a module: one function of EDM's, called with state and source code."""

    def __init__(self, class_name: str, state: dict[str, Any]) -> None:
        self.meta = {"type": "class", "version": 6, "module_src": "raise SystemExit", "class_name": class_name, "state": state}

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


def frozen(module: nn.Module, class_name: str = "", **more: Any) -> Any:
    """What EDM's code would have pickled of a module."""
    inside = {name: frozen(child) for name, child in module.named_children()}
    if isinstance(module, nn.ModuleDict):  # no class of EDM's
        whole = nn.ModuleDict()
        whole.__dict__["_modules"] = inside
        return whole
    state = {"training": False, "_parameters": module._parameters, "_buffers": module._buffers, "_modules": inside, **more}
    return Persistent(class_name or type(module).__name__, state)


def test_a_hostile_file_changes_nothing_and_takes_no_memory(tmp_path: Path) -> None:
    """Attributes set on what the file may call; tensors larger than their numbers; one number for a huge tensor."""
    rebuild, path = torch._utils._rebuild_tensor_v2, tmp_path / "hostile.pkl"
    before = rebuild.__defaults__

    def tensor(size: tuple[int, ...], stride: tuple[int, ...]) -> Any:
        class Claim:
            def __reduce__(self) -> tuple[Any, ...]:
                return rebuild, (torch.ones(4).storage(), 0, size, stride, False, None)

        return pickle.dumps({"ema": Claim()})

    setting = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}(U\x0c__defaults__(U\x01aU\x01btu\x86b."
    for data, message in (
        (setting, "may only use"),
        (tensor((3, 3), (3, 1)), "storage of 4 numbers"),
        (tensor((10**10,), (0,)), "storage of 4 numbers"),
        (tensor((2,), (-1,)), "storage of 4 numbers"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            priors.load(f"edm:{path}")
    assert rebuild.__defaults__ == before


@pytest.fixture(autouse=True)
def edm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules that EDM's pickles name, of which none is there when one is loaded."""
    monkeypatch.setattr(_reconstruct_persistent_obj, "__module__", "torch_utils.persistence")
    stand_in = types.ModuleType("torch_utils.persistence")
    stand_in._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", stand_in)


def written(name: str, path: Path, precond: str = "EDMPrecond", **changes: Any) -> Any:
    """The file of a small network, and the network as deepinv has it."""
    cls, shape, ours, theirs = NETWORKS[name]
    net = stirred(cls(pretrained=None, _was_trained_on_minus_one_one=True, pixel_std=0.4, **SIZE, **shape, **ours))
    for norm in (m for m in net.modules() if isinstance(m, nn.GroupNorm)):
        norm.num_groups = min(32, norm.num_channels // 4)  # EDM's rule
    kwargs = {**SIZE, **shape, **theirs, "in_channels": 3, "out_channels": 3, "dropout": 0.1, **changes}
    model = frozen(net, "DhariwalUNet" if cls is ADMUNet else "SongUNet", _init_args=(), _init_kwargs=kwargs)
    about = {"img_channels": 3, "label_dim": shape.get("label_dim", 0), "sigma_data": 0.4, "sigma_min": 0, "sigma_max": float("inf")}
    outer = Persistent(precond, {"_parameters": {}, "_buffers": {}, "_modules": {"model": model}, **about})
    path.write_bytes(pickle.dumps({"ema": outer, "augment_pipe": None, "dataset_kwargs": {"path": "x.zip"}}))
    return net


@pytest.mark.parametrize("name", NETWORKS)
def test_edm(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, path = written(name, tmp_path / "edm.pkl"), tmp_path / "edm.pkl"
    monkeypatch.delitem(sys.modules, "torch_utils.persistence")
    told = name.endswith("cond")
    prior = priors.load(f"edm:{path}", **({"label": 4} if told else {}))
    x, labels = randn(2, 3, 16, 16), torch.eye(5)[[4, 1]]
    for sigma in (0.002, 0.1, 5.0, torch.tensor([0.05, 0.2])):
        call = {"condition": torch.tensor([4, 1])} if told else {}
        wanted = net(x, sigma, **({"class_labels": labels} if told else {}))
        torch.testing.assert_close(prior(x, sigma, **call), wanted, rtol=0, atol=1e-5)
    assert prior(randn(1, 3, 13, 19), 0.1).shape == (1, 3, 13, 19)
    assert not prior.training and not any(p.requires_grad for p in prior.parameters())
    if told:
        with pytest.raises(ValueError, match="give label=0 to 4; got label=5"):
            priors.load(f"edm:{path}", label=5)


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


def test_files_that_are_no_network_of_edm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written("ddpmpp", Path("whole.pkl"))
    whole = Path("whole.pkl").read_bytes()
    written("ddpmpp", Path("vp.pkl"), precond="VPPrecond")
    written("ddpmpp", Path("skip.pkl"), decoder_type="skip")
    written("ddpmpp", Path("wide.pkl"), model_channels=2**20)
    Path("half.pkl").write_bytes(whole[: len(whole) // 2])
    Path("empty.pkl").touch()
    Path("runs.pkl").write_bytes(pickle.dumps(Runs()))
    Path("ema.pkl").write_bytes(pickle.dumps({"ema": Runs()}))
    Path("none.pkl").write_bytes(pickle.dumps({"ema": None}))
    reasons = {"vp.pkl": "preconditioned by VPPrecond", "skip.pkl": "neither DDPM", "wide.pkl": "do not fit NCSNpp"}
    for file in ("vp.pkl", "skip.pkl", "wide.pkl", "half.pkl", "empty.pkl", "runs.pkl", "ema.pkl", "none.pkl", "missing.pkl"):
        with pytest.raises(ValueError, match=reasons.get(file, "no network of EDM that can be read|no such file")) as failed:
            priors.load(f"edm:{file}")
        assert file in str(failed.value) and "\n" not in str(failed.value)
    assert not Path("executed").exists()


class Preconditioned(nn.Module):
    """A denoiser that scales image and level itself, as EDM's do."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.level = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(1, 3)

    def forward(self, z: Tensor, sigma: Tensor) -> Tensor:
        s = sigma.view(-1, 1, 1, 1)
        return z + 0.1 * s * (self.image(z) + self.level(sigma.log()[:, None] / 4)[:, :, None, None])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_16_bits_see_the_image_in_32(dtype: torch.dtype) -> None:
    """At little noise 16 bits are too few for the image: an estimate would be off by more than the noise."""
    torch.manual_seed(0)
    model, x, sigma = Preconditioned(), torch.rand(1, 3, 16, 16), 0.002
    with torch.no_grad():
        wanted = priors.KarrasPrior(model)(x, sigma)
        found = priors.KarrasPrior(copy.deepcopy(model).to(dtype))(x, sigma)
    assert found.dtype == torch.float32 and float((found - wanted).abs().max()) < 0.05 * sigma
