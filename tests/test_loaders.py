"""Checkpoints of other projects: each loader against the library that wrote the file; diffusers' are in a file of their own.

Every checkpoint is a real one, small and random: written by its own library, read by ours, and the estimates of the clean
image compared.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from checkpoints import ABAR, SIGMAS, TIMES, agree, randn, saved, stirred
from deepinv.models import ADMUNet, DiffUNet, DRUNet, NCSNpp
from deepinv.models import diffunet as layers
from safetensors.torch import save_file
from torch import Tensor, nn

from invdiff import priors
from invdiff.priors import from_deepinv
from invdiff.priors.condition import takes_condition
from invdiff.priors.schedule import Schedule, ScheduledPrior

# The conversion, against a closed form: x0 ~ N(0.2, 0.3^2) in the network's unit


@pytest.fixture(autouse=True)
def same_weights_every_time() -> None:
    torch.manual_seed(0)


class Exact(nn.Module):
    """The network that predicts without error: it reads the noise level off the time it is told."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule, self.anchor = schedule, nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def sigma(self, t: Tensor) -> Tensor:
        t = t.double()
        if self.schedule.path == "ve":
            return t
        if self.schedule.path == "flow":
            return t / (1000 - t)
        return torch.as_tensor(np.exp(np.interp(t.numpy(), np.arange(1000), np.log(self.schedule.sigmas))))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        sigma = self.sigma(t).view(-1, 1, 1, 1)
        a = self.schedule.alpha(sigma)
        z = x_t / a
        x0 = 0.2 + 0.09 / (0.09 + sigma**2) * (z - 0.2)
        n = (z - x0) / sigma
        out = {
            "epsilon": n,
            "sample": x0,
            "v_prediction": a * n - a * sigma * x0,
            "score": -n / (a * sigma),
            "flow": n - x0,
        }[self.schedule.prediction]
        return torch.cat([out, torch.full_like(out, 9.0)], dim=1)  # the second half is a learned variance


CONVENTIONS = {
    **{p: Schedule.discrete(ABAR, p) for p in ("epsilon", "sample", "v_prediction")},
    "score": Schedule("ve", "score", (0.01, 50.0)),
    "flow": Schedule.flow(),
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_every_convention_gives_the_posterior_mean(name: str) -> None:
    prior = ScheduledPrior(Exact(CONVENTIONS[name]), CONVENTIONS[name], channels=1)
    exact = priors.Gaussian(torch.full((1, 8, 8), 0.6), 0.15**2)  # the same law in [0, 1]
    sigma = torch.tensor([0.006, 0.1, 0.5, 3.0, 20.0], dtype=torch.float64)
    x = 0.6 + sigma.view(-1, 1, 1, 1) * randn(5, 1, 8, 8).double()
    together = prior(x, sigma)
    torch.testing.assert_close(together, exact(x, sigma), rtol=0, atol=2e-5)  # times are float32
    for i, level in enumerate(sigma.tolist()):
        torch.testing.assert_close(prior(x[i : i + 1], level), together[i : i + 1], rtol=0, atol=1e-9)
    assert (prior.mean, prior.std) == (0.5, 0.25)
    assert 0 < prior.sigma_min < 0.01 and prior.sigma_max > 20


@pytest.mark.parametrize("name", CONVENTIONS)
def test_outside_the_trained_range(name: str) -> None:
    prior = ScheduledPrior(Exact(CONVENTIONS[name]), CONVENTIONS[name], channels=1)
    n = randn(1, 1, 8, 8).double()
    for sigma in (1e-4, 1e-6):
        x = 0.3 + sigma * n
        assert float((prior(x, sigma) - x).abs().max()) < 0.1 * sigma
    assert bool(prior(1e4 * n, 1e4).isfinite().all())


def test_times_between_the_trained_ones() -> None:
    schedule = CONVENTIONS["epsilon"]
    whole = schedule.timestep(torch.tensor(SIGMAS))
    torch.testing.assert_close(whole, torch.arange(1000.0), rtol=0, atol=1e-4)
    between = torch.tensor([np.sqrt(SIGMAS[10] * SIGMAS[11]), 1e-9, 1e9])
    torch.testing.assert_close(schedule.timestep(between), torch.tensor([10.5, 0.0, 999.0]), rtol=0, atol=1e-4)
    zero_snr = Schedule.discrete([0.9, 0.5, 0.0], "v_prediction")
    assert len(zero_snr.sigmas) == 2 and np.isfinite(zero_snr.sigmas).all()
    for wrong in (("vp", "noise", (1.0, 2.0)), ("sub-vp", "epsilon", (1.0, 2.0)), ("vp", "epsilon", (2.0, 1.0))):
        with pytest.raises(ValueError, match="a schedule has"):
            Schedule(*wrong)


# Guided diffusion


@pytest.fixture(scope="module")
def adm(tmp_path_factory: pytest.TempPathFactory) -> tuple[DiffUNet, Path]:
    """deepinv's copy of the network of DPS and DiffPIR, at its only size, and its file."""
    torch.manual_seed(0)  # how much rounding there is depends on the weights
    net = stirred(DiffUNet(pretrained=None))
    return net, saved(net, tmp_path_factory.mktemp("adm") / "diffusion_ffhq_10m.pt")


def test_guided_diffusion(adm: tuple[DiffUNet, Path]) -> None:
    net, path = adm
    prior = priors.load(f"deepinv:diffunet:{path}")
    for t in TIMES[::2]:
        sigma = SIGMAS[t]
        z = randn(1, 3, 32, 32, seed=t) * (0.5 + sigma)
        eps = net.forward_diffusion((z / np.sqrt(1 + sigma**2)).float(), torch.tensor([t]))[:, :3]
        agree(2 * prior((z + 1) / 2, sigma / 2) - 1, z - sigma * eps, sigma)
    x = randn(1, 3, 40, 25)  # no multiple of 32
    assert prior(x, 0.1).shape == x.shape


def small_adm() -> nn.ModuleDict:
    """A guided-diffusion network of one level, to be saved: it has the names, and no forward pass."""

    def residual(ins: int) -> nn.Module:
        return layers.ResBlock(ins, 64, 0.0, 32)

    ends = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 3, 3, padding=1)
    parts = {
        "time_embed": nn.Sequential(nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, 64)),
        "input_blocks": nn.ModuleList([nn.Sequential(ends[0]), nn.Sequential(residual(32))]),
        "middle_block": nn.Sequential(residual(32), layers.AttentionBlock(32), residual(32)),
        "output_blocks": nn.ModuleList([nn.Sequential(residual(64)), nn.Sequential(residual(64))]),
        "out": nn.Sequential(nn.GroupNorm(32, 32), nn.SiLU(), ends[1]),
    }
    return stirred(nn.ModuleDict(parts))


def test_options_of_guided_diffusion(tmp_path: Path) -> None:
    net = small_adm()
    path = saved(net, tmp_path / "plain.pt")
    plain = priors.load(f"adm:{path}", heads=1)
    save_file(net.state_dict(), tmp_path / "plain.safetensors")
    x = randn(2, 3, 9, 8)
    assert torch.equal(priors.load(f"adm:{tmp_path / 'plain.safetensors'}", head_channels=32)(x, 0.3), plain(x, 0.3))
    assert torch.equal(priors.load(f"deepinv:diffunet:{path}", heads=1)(x, 0.3), plain(x, 0.3))
    assert priors.load(f"adm:{path}", heads=1, noise="cosine").sigma_max > 10 * plain.sigma_max
    with pytest.raises(ValueError, match="takes no label; got label=3"):
        priors.load(f"adm:{path}", heads=1, label=3)
    with pytest.raises(ValueError, match="linear or cosine, got 'quadratic'"):
        priors.load(f"adm:{path}", heads=1, noise="quadratic")
    with pytest.raises(ValueError, match="no U-Net of guided diffusion: .* not divisible"):
        priors.load(f"adm:{path}")  # 32 channels make no heads of 64

    net["label_emb"] = nn.Embedding(10, 64)
    path = saved(net, tmp_path / "classes.pt")
    told = priors.load(f"adm:{path}", heads=1, label=3)
    assert takes_condition(told) and not takes_condition(plain)
    plain.net.time_embed.register_forward_hook(lambda module, args, out: out + net["label_emb"].weight[[3, 7]])
    torch.testing.assert_close(told(x, 0.3, condition=torch.tensor([3, 7])), plain(x, 0.3), rtol=0, atol=1e-6)
    torch.testing.assert_close(told(x[:1], 0.3), plain(x, 0.3)[:1], rtol=0, atol=1e-6)
    for label in (10, -1):
        with pytest.raises(ValueError, match=f"give label=0 to 9; got label={label}"):
            priors.load(f"adm:{path}", heads=1, label=label)
    free = priors.load(f"adm:{path}", heads=1)
    for wrong in (None, torch.tensor([3, 10]), torch.tensor([-1, 0]), torch.tensor([0.5, 1.0]), ["a", "b"]):
        with pytest.raises(ValueError, match="is told a class, condition=0 to 9, .* got"):
            free(x, 0.3, condition=wrong)


# deepinv

SMALL: dict[str, tuple[type, dict[str, Any]]] = {
    "drunet": (DRUNet, {"nc": (8, 8, 8, 8), "nb": 1}),
    "drunet-gray": (DRUNet, {"nc": (8, 8, 8, 8), "nb": 1, "in_channels": 1, "out_channels": 1}),
    "ncsnpp": (NCSNpp, {"model_channels": 32, "num_blocks": 1, "img_resolution": 16, "channel_mult": (1, 1)}),
    "ddpmpp": (NCSNpp, {"model_channels": 32, "num_blocks": 1, "img_resolution": 16, "model_type": "ddpm"}),
    "adm": (ADMUNet, {"model_channels": 64, "num_blocks": 1, "img_resolution": 16, "channel_mult": (1, 1)}),
}


@pytest.mark.parametrize("name", SMALL)
def test_deepinv(name: str, tmp_path: Path) -> None:
    cls, options = SMALL[name]
    edm = {} if cls is DRUNet else {"_was_trained_on_minus_one_one": True, "pixel_std": 0.5}
    told, call = ({}, {}) if name != "adm" else ({"label": 4}, {"class_labels": torch.eye(1000)[[4, 4]]})
    net = stirred(cls(pretrained=None, **edm, **options, **({"label_dim": 1000} if told else {})))
    prior = priors.load(f"deepinv:{name}:{saved(net, tmp_path / 'w.pth')}", **options, **told)
    x = randn(2, 1 if name == "drunet-gray" else 3, 16, 16)
    for sigma in (0.01, 0.1, torch.tensor([0.05, 0.2])):
        torch.testing.assert_close(prior(x, sigma), net(x, sigma, **call), rtol=0, atol=1e-6)
    assert prior(randn(1, x.shape[1], 19, 13).double(), 0.1).dtype == torch.float64  # any size, any precision
    with pytest.raises(ValueError, match=rf"images of shape \(B, {x.shape[1]}, H, W\)"):
        prior(randn(1, 2, 16, 16), 0.1)
    assert not prior.training and not any(p.requires_grad for p in prior.parameters())
    assert (prior.mean, prior.std) == (0.5, 0.25)
    assert takes_condition(prior) == bool(told)
    if told:
        labels = {"class_labels": torch.eye(1000)[[4, 9]]}
        torch.testing.assert_close(
            prior(x, 0.1, condition=torch.tensor([4, 9])), net(x, 0.1, **labels), rtol=0, atol=1e-6
        )
        with pytest.raises(ValueError, match="give label=0 to 999; got label=1000"):
            priors.load(f"deepinv:{name}:{tmp_path / 'w.pth'}", **options, label=1000)
    if name == "ncsnpp":  # EDM's own call: images in [-1, 1], one sigma an image
        karras = priors.KarrasPrior(lambda z, s: net(z, s.reshape(-1), input_in_minus_one_one=True))
        torch.testing.assert_close(karras(x, 0.1), prior(x, 0.1), rtol=0, atol=1e-6)


DEEPINV: dict[str, Callable[[], nn.Module]] = {
    "drunet": DRUNet,
    "drunet-gray": lambda: DRUNet(in_channels=1, out_channels=1),
    "diffunet": DiffUNet,
    "diffunet-large": lambda: DiffUNet(large_model=True),
    "ncsnpp": NCSNpp,
    "ddpmpp": lambda: NCSNpp(model_type="ddpm"),
    "ncsnpp-cifar10": lambda: NCSNpp(pretrained="edm-cifar10-32x32-uncond-ve"),
    "ddpmpp-cifar10": lambda: NCSNpp(pretrained="edm-cifar10-32x32-uncond-vp", model_type="ddpm"),
    "adm": ADMUNet,
}


class Asked(Exception):
    pass


@pytest.mark.parametrize("name", sorted(from_deepinv.NETWORKS))
def test_without_a_network_the_error_says_what_to_get(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is the file that deepinv itself asks for."""

    def ask(url: str, *args: Any, **kwargs: Any) -> None:
        raise Asked(url.removesuffix("?download=true"))

    def fail(*args: Any) -> None:
        raise URLError("Name or service not known")

    for module in ("drunet", "diffunet", "ncsnpp", "guided_diffusion"):
        monkeypatch.setattr(f"deepinv.models.{module}.load_state_dict_from_url", ask)
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with torch.device("meta"), pytest.raises(Asked) as asked:  # no need to draw a hundred million numbers
        DEEPINV[name]()
    with pytest.raises(ConnectionError) as failed:
        priors.load(f"deepinv:{name}")
    assert str(asked.value) in str(failed.value) and "\n" not in str(failed.value)
    assert f'priors.load("deepinv:{name}:{from_deepinv.NETWORKS[name].weights}")' in str(failed.value)


def test_the_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    _, options = SMALL["drunet"]
    (tmp_path / "checkpoints").mkdir()
    saved(DRUNet(pretrained=None, **options), tmp_path / "checkpoints" / from_deepinv.NETWORKS["drunet"].weights)
    assert priors.load("deepinv:drunet", **options)(randn(1, 3, 32, 32), 0.1).shape == (1, 3, 32, 32)


# Denoisers of other libraries


@pytest.mark.parametrize("name", ["VESchedule", "VPSchedule", "CosineSchedule", "RectifiedSchedule"])
def test_azula(name: str) -> None:
    noise, denoise = pytest.importorskip("azula.noise"), pytest.importorskip("azula.denoise")
    schedule = getattr(noise, name)()
    prior = priors.AzulaPrior(denoise.SimpleDenoiser(Backbone(), schedule))
    exact = priors.Gaussian(torch.full((1, 8, 8), 0.6), 0.15**2)
    for sigma in (0.01, 0.1, 1.0, 10.0, torch.tensor([0.05, 2.0])):
        x = 0.6 + torch.as_tensor(sigma).view(-1, 1, 1, 1) * randn(2, 1, 8, 8)
        agree(prior(x, sigma), exact(x, sigma), float(torch.as_tensor(sigma).max()))
    x = 0.3 + 1e-5 * randn(1, 1, 8, 8)
    torch.testing.assert_close(prior(x, 1e-5), x, rtol=0, atol=1e-6)


class Backbone(nn.Module):
    """E[z0 | z] for z0 ~ N(0.2, 0.3^2), of what azula's denoiser hands on: ``z / sqrt(1 + sigma^2)`` and ``log sigma``."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, log_sigma: Tensor) -> Tensor:
        square = (2 * log_sigma).exp().view(-1, 1, 1, 1)
        return 0.2 + 0.09 / (0.09 + square) * ((1 + square).sqrt() * x - 0.2)


def test_k_diffusion_call() -> None:
    def model(z: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.shape == (len(z),)
        return 0.2 + 0.09 / (0.09 + sigma.view(-1, 1, 1, 1) ** 2) * (z - 0.2)

    prior = priors.KarrasPrior(model, sigmas=(0.01, 50.0))
    exact = priors.Gaussian(torch.full((1, 8, 8), 0.6), 0.15**2)
    x = randn(2, 1, 8, 8)
    for sigma in (0.01, 3.0, torch.tensor([0.1, 1.0])):
        torch.testing.assert_close(prior(x, sigma), exact(x, sigma), rtol=0, atol=1e-6)
    assert (prior.sigma_min, prior.sigma_max) == (0.005, 25.0)


# What goes wrong


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize("source", ["adm", "deepinv:drunet", "deepinv:diffunet"])
def test_files_that_are_no_weights(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = saved(nn.Linear(100, 100), Path("linear.pt")).read_bytes()
    Path("pickle.pt").write_bytes(pickle.dumps(Runs()))
    torch.save(Runs(), "pickle.pth")
    torch.save([1, 2], "list.pt")
    torch.save({"step": 3, "weights": {}}, "run.pt")
    Path("half.pt").write_bytes(whole[: len(whole) // 2])
    Path("flipped.pt").write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    Path("half.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    Path("empty.pt").touch()
    Path("folder.pt").mkdir()
    wrong = {
        "no such file": ["missing.pt", "folder.pt"],
        "not a readable weights file": [
            "pickle.pt",
            "pickle.pth",
            "half.pt",
            "flipped.pt",
            "half.safetensors",
            "empty.pt",
        ],
        "holds no state dict": ["list.pt", "run.pt"],
        "do not fit|no U-Net of guided diffusion": ["linear.pt"],
    }
    for reason, files in wrong.items():
        for file in files:
            with pytest.raises(ValueError, match=reason) as failed:
                priors.load(f"{source}:{file}", **(SMALL["drunet"][1] if source == "deepinv:drunet" else {}))
            assert file in str(failed.value) and "\n" not in str(failed.value)
    assert not Path("executed").exists()


def test_weights_of_another_shape(tmp_path: Path) -> None:
    _, options = SMALL["drunet"]
    path = saved(DRUNet(pretrained=None, **options), tmp_path / "small.pth")
    with pytest.raises(
        ValueError, match=r"do not fit DRUNet: m_head.weight is \(8, 4, 3, 3\) in the file, \(16, 4, 3, 3\)"
    ):
        priors.load(f"deepinv:drunet:{path}", **{**options, "nc": (16, 8, 8, 8)})
    state = {k: v for k, v in small_adm().state_dict().items() if k != "middle_block.2.out_layers.3.bias"}
    torch.save(state, tmp_path / "adm.pt")
    with pytest.raises(ValueError, match=r"do not fit ADM: middle_block.2.out_layers.3.bias is missing in the file"):
        priors.load(f"adm:{tmp_path / 'adm.pt'}", heads=1)


def test_adm_files_with_gaps_are_named(tmp_path: Path) -> None:
    """Whatever part of the network is missing, at whatever depth, and tensors that have no axes."""
    whole, path = small_adm().state_dict(), tmp_path / "gap.pt"
    names = [name.split(".") for name in whole]
    parts = sorted({".".join(name[:depth]) for name in names for depth in range(1, 4)})
    gaps = [{k: v for k, v in whole.items() if k != part and not k.startswith(f"{part}.")} for part in parts]
    for state in [*gaps, whole | {"middle_block.1.norm.weight": torch.zeros(())}]:
        torch.save(state, path)
        with pytest.raises(ValueError, match=f"{path}.*(holds no U-Net of guided diffusion|do not fit ADM)"):
            priors.load(f"adm:{path}", heads=1)


def test_unknown_sources_names_and_options() -> None:
    with pytest.raises(ValueError, match="unknown network of deepinv 'dncnn'; known are drunet, "):
        priors.load("deepinv:dncnn")
    with pytest.raises(ValueError, match="unknown prior 'timm:resnet'.*adm:..., deepinv:..., diffusers:..."):
        priors.load("timm:resnet")
    with pytest.raises(TypeError, match="natural takes no options, got prompt"):
        priors.load("natural", prompt="a cat")
