"""Checkpoints of other projects: each loader against the library that wrote the file.

Every checkpoint is a real one, tiny and random: written by its own library, read by ours, and the estimates of the clean
image compared with those of the library's own scheduler or pipeline.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from deepinv.models import ADMUNet, DiffUNet, DRUNet, NCSNpp
from deepinv.models import diffunet as layers
from safetensors.torch import save_file
from torch import Tensor, nn

from invdiff import operators, priors, solve
from invdiff.priors import from_deepinv
from invdiff.priors.from_adm import BETAS
from invdiff.priors.schedule import ConvertedPrior, Schedule, ScheduledPrior

TIMES = (0, 1, 37, 500, 999)
AGREEMENT = 1e-5  # relative to the noise level where that is above 1: what the network's rounding is multiplied by
ABAR = np.cumprod(1 - BETAS["linear"])
SIGMAS = np.sqrt(1 / ABAR - 1)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stirred(net: Any) -> Any:
    """The network with random numbers in the layers that start at zero, which would hide a difference."""
    torch.manual_seed(0)
    for p in net.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.05)
    return net.eval().requires_grad_(False)


def agree(got: Tensor, wanted: Tensor, sigma: float) -> None:
    worst = float((got - wanted).abs().max()) / max(1.0, sigma)
    assert got.shape == wanted.shape and worst < AGREEMENT, f"they differ by {worst:.1e} at sigma {sigma:.3g}"


def saved(net: nn.Module, path: Path) -> Path:
    torch.save(net.state_dict(), path)
    return path


# The conversion, against a closed form: x0 ~ N(0.2, 0.3^2) in the network's unit


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
    plain.net.time_embed.register_forward_hook(lambda module, args, out: out + net["label_emb"].weight[3])
    torch.testing.assert_close(told(x, 0.3), plain(x, 0.3), rtol=0, atol=1e-6)
    for label in (None, 10, -1):
        with pytest.raises(ValueError, match=f"give label=0 to 9; got label={label}"):
            priors.load(f"adm:{path}", heads=1, label=label)


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
    if told:
        with pytest.raises(ValueError, match="give label=0 to 999; got label=None"):
            priors.load(f"deepinv:{name}:{tmp_path / 'w.pth'}", **options)
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


# Diffusers: pixels


def unet(**changes: Any) -> Any:
    from diffusers import UNet2DModel

    plan = {"sample_size": 16, "in_channels": 3, "out_channels": 3, "layers_per_block": 1, "norm_num_groups": 8}
    plan |= {"block_out_channels": (16, 16), "attention_head_dim": 8}
    plan |= {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return stirred(UNet2DModel(**{**plan, **changes}))


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("pipeline", ["DDPMPipeline", "DDIMPipeline"])
def test_diffusers_pixels(pipeline: str, prediction: str, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    variances = 2 if prediction == "epsilon" else 1
    net = unet(out_channels=3 * variances)
    trained = diffusers.DDPMScheduler(prediction_type=prediction, beta_schedule="scaled_linear")
    getattr(diffusers, pipeline)(net, trained).save_pretrained(tmp_path)
    prior = priors.load(f"diffusers:{tmp_path}")
    step = diffusers.DDIMScheduler.from_config(trained.config, clip_sample=False).step
    abar = trained.alphas_cumprod.double()
    step.__self__.set_timesteps(1000)
    for t in TIMES:
        a, sigma = float(abar[t].sqrt()), float((1 / abar[t] - 1).sqrt())
        x_t = randn(2, 3, 16, 16, seed=t)
        wanted = step(net(x_t, t).sample[:, :3], t, x_t).pred_original_sample
        agree(2 * prior((x_t / a + 1) / 2, sigma / 2) - 1, wanted, sigma)


def test_diffusers_score_sde(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    net, scheduler = unet(time_embedding_type="fourier"), diffusers.ScoreSdeVeScheduler(sigma_max=50.0)
    diffusers.ScoreSdeVePipeline(net, scheduler).save_pretrained(tmp_path)
    prior = priors.load(f"diffusers:{tmp_path}")
    assert (prior.sigma_min, prior.sigma_max) == (0.01, 50.0)  # pixels in [0, 1] in that project
    scheduler.set_timesteps(1000)
    scheduler.set_sigmas(1000)
    for i in (0, 400, 998):
        sigma, lower = (float(scheduler.discrete_sigmas[len(scheduler.discrete_sigmas) - 1 - i - k]) for k in (0, 1))
        x = 0.5 + sigma * randn(1, 3, 16, 16, seed=i)
        score = net(x, torch.tensor([sigma])).sample
        mean = scheduler.step_pred(score, scheduler.timesteps[i], x).prev_sample_mean
        part = 1 - (lower / sigma) ** 2  # of the way to the clean image, which one step of the reverse process goes
        agree(x + part * (prior(x, sigma) - x), mean, sigma)


# Diffusers: latents


def vae(kind: str = "AutoencoderKL", **changes: Any) -> Any:
    diffusers = pytest.importorskip("diffusers")
    plan = {"block_out_channels": (8, 8), "norm_num_groups": 8, "latent_channels": 4, "sample_size": 16}
    plan |= {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    if kind == "VQModel":
        plan.pop("sample_size")
        plan |= {"num_vq_embeddings": 32}
    return stirred(getattr(diffusers, kind)(**{**plan, **changes}))


CHARACTERS = [chr(i) for i in range(33, 127)]


def clip(cls: str = "CLIPTextModel", **changes: Any) -> tuple[Any, Any]:
    """A text encoder of CLIP and its tokenizer, which knows single characters."""
    transformers = pytest.importorskip("transformers")
    words = ["<|startoftext|>", "<|endoftext|>", *CHARACTERS, *(c + "</w>" for c in CHARACTERS)]
    tokenizer = transformers.CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=12)
    plan = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    plan |= {"num_attention_heads": 2, "max_position_embeddings": 12, "projection_dim": 16}
    plan |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    torch.manual_seed(1)
    return getattr(transformers, cls)(transformers.CLIPTextConfig(**plan, **changes)).eval(), tokenizer


def t5(width: int) -> tuple[Any, Any]:
    """A text encoder of T5 and its tokenizer."""
    transformers = pytest.importorskip("transformers")
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -1.0), *((c, -2.0) for c in CHARACTERS)]
    tokenizer = transformers.T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=12)
    plan = {"vocab_size": len(pieces), "d_model": width, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    torch.manual_seed(2)
    return transformers.T5EncoderModel(transformers.T5Config(**plan)).eval(), tokenizer


def check_codec(prior: Any, autoencoder: Any, scale: float, shift: float) -> None:
    """encode and decode are what the pipelines do around their image processors."""
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    code = autoencoder.encode(2 * x - 1)
    latents = code.latents if hasattr(code, "latents") else code.latent_dist.mode()
    z = prior.encode(x)
    torch.testing.assert_close(z, (latents - shift) * scale, rtol=0, atol=1e-6)
    decoded = autoencoder.decode(z / scale + shift).sample / 2 + 0.5
    torch.testing.assert_close(prior.decode(z), decoded, rtol=0, atol=1e-6)
    assert (prior.mean, prior.std) == (0.0, 1.0)


def test_ldm(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    code, net = vae("VQModel", latent_channels=3), unet()
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    diffusers.LDMPipeline(code, net, scheduler).save_pretrained(tmp_path)
    prior = priors.load(f"diffusers:{tmp_path}")
    check_codec(prior, code, code.config.scaling_factor, 0.0)
    sigma = SIGMAS[500]
    x_t = randn(1, 3, 8, 8)
    scheduler.set_timesteps(1000)
    wanted = scheduler.step(net(x_t, 500).sample, 500, x_t).pred_original_sample
    agree(prior(x_t * float(np.sqrt(1 + sigma**2)), sigma), wanted, sigma)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("prompt", ["", "a cat"])
def test_stable_diffusion(prompt: str, prediction: str, tmp_path: Path) -> None:
    """One step of the pipeline, from its highest level to zero, is the estimate of the clean latents."""
    diffusers = pytest.importorskip("diffusers")
    code, (text, tokenizer) = vae(), clip()
    torch.manual_seed(0)
    plan = {"in_channels": 4, "out_channels": 4, "layers_per_block": 1, "cross_attention_dim": 16, "norm_num_groups": 8}
    plan |= {"block_out_channels": (16, 16), "attention_head_dim": 2, "sample_size": 8}
    plan |= {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}
    plan |= {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    net = stirred(diffusers.UNet2DConditionModel(**plan))
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": prediction}
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing", **betas)
    pipe = diffusers.StableDiffusionPipeline(
        code, text, tokenizer, net, scheduler, None, None, requires_safety_checker=False
    )
    pipe.save_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    prior = priors.load(f"diffusers:{tmp_path}", prompt=prompt)
    check_codec(prior, code, code.config.scaling_factor, 0.0)
    x_t = randn(2, 4, 8, 8)
    # whose guidance is off at 1, and whose images are latents
    wanted = pipe([prompt] * 2, num_inference_steps=1, guidance_scale=1.0, latents=x_t, output_type="latent").images
    abar = scheduler.alphas_cumprod[999].double()
    sigma = float((1 / abar - 1).sqrt())
    agree(prior(x_t / float(abar.sqrt()), sigma), wanted, sigma)
    own = randn(1, 12, 16).requires_grad_()  # an embedding of one's own, as in prompt tuning
    out = prior(x_t[:1], 0.5, encoder_hidden_states=own)
    (grad,) = torch.autograd.grad(out.square().sum(), own)
    assert bool(grad.any()) and not torch.equal(out, prior(x_t[:1], 0.5))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_stable_diffusion_3(shift: float, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    code = vae(latent_channels=8, scaling_factor=1.5, shift_factor=0.06)
    (one, words), (two, _), (three, words_t5) = (
        clip("CLIPTextModelWithProjection"),
        clip("CLIPTextModelWithProjection"),
        t5(32),
    )
    torch.manual_seed(0)
    net = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=8,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        out_channels=8,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    pipe = diffusers.StableDiffusion3Pipeline(stirred(net), scheduler, code, one, words, two, words, three, words_t5)
    pipe.save_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    prior = priors.load(f"diffusers:{tmp_path}", prompt="a cat")
    check_codec(prior, code, 1.5, 0.06)
    check_flow(pipe, prior, shift, guidance_scale=1.0)
    assert prior(randn(1, 8, 7, 5), 1.0).shape == (1, 8, 7, 5)


@pytest.mark.parametrize("distilled", [True, False])
def test_flux(distilled: bool, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    code = vae(latent_channels=4, scaling_factor=0.36, shift_factor=0.11)
    (text, words), (text_t5, words_t5) = clip(), t5(16)
    net = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=distilled,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipe = diffusers.FluxPipeline(scheduler, code, text, words, text_t5, words_t5, stirred(net))
    pipe.save_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    prior = priors.load(f"diffusers:{tmp_path}", prompt="a cat", guidance=2.0)
    check_codec(prior, code, 0.36, 0.11)
    check_flow(pipe, prior, 1.0, guidance_scale=2.0, max_sequence_length=512)


def check_flow(pipe: Any, prior: Any, shift: float, **options: Any) -> None:
    """One step of a flow pipeline from time t to zero is the estimate of the clean latents; shifting moves t only."""
    side = 8 * pipe.vae_scale_factor
    for asked in (0.1, 0.5, 0.9):
        t = shift * asked / (1 + (shift - 1) * asked)
        x_t = randn(2, prior.channels, 8, 8, seed=int(10 * asked))
        packs = hasattr(pipe, "_pack_latents")
        given = pipe._pack_latents(x_t, 2, prior.channels, 8, 8) if packs else x_t
        wanted = pipe(
            ["a cat"] * 2, height=side, width=side, sigmas=[asked], latents=given, output_type="latent", **options
        ).images
        if packs:
            wanted = pipe._unpack_latents(wanted, side, side, pipe.vae_scale_factor)
        agree(prior(x_t / (1 - t), t / (1 - t)), wanted, t / (1 - t))


def test_other_pipelines_are_refused(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")

    def refused(folder: str, pipe: Any, reason: str) -> None:
        pipe.save_pretrained(tmp_path / folder)
        with pytest.raises(ValueError, match=reason):
            priors.load(f"diffusers:{tmp_path / folder}")

    refused("six", diffusers.DDPMPipeline(unet(in_channels=6), diffusers.DDPMScheduler()), "more than a noisy image")
    consistency = diffusers.ConsistencyModelPipeline(unet(), diffusers.CMStochasticIterativeScheduler())
    refused("consistency", consistency, "its scheduler is neither .* got CMStochasticIterativeScheduler")
    torch.manual_seed(0)
    net = diffusers.DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=1)
    dit = diffusers.DiTPipeline(net, vae(), diffusers.DDIMScheduler())
    refused("dit", dit, "a prior is made of UNet2DModel, .* but DiTTransformer2DModel")


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


# Input, use, and what goes wrong


@pytest.fixture
def ddpm(tmp_path: Path) -> tuple[Path, ConvertedPrior]:
    diffusers = pytest.importorskip("diffusers")
    diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    return tmp_path / "ddpm", priors.load(f"diffusers:{tmp_path / 'ddpm'}")  # type: ignore[return-value]


def test_a_loaded_prior_is_one_like_any_other(ddpm: tuple[Path, ConvertedPrior]) -> None:
    _, prior = ddpm
    x = randn(2, 3, 15, 13)
    together = prior(x, torch.tensor([0.1, 0.7]))
    assert together.shape == x.shape
    torch.testing.assert_close(prior(x[1:], 0.7), together[1:], rtol=0, atol=1e-5)
    torch.testing.assert_close(pickle.loads(pickle.dumps(prior))(x, 0.3), prior(x, 0.3))
    assert priors.as_prior(prior) is prior
    assert prior(x.double(), 0.3).dtype == torch.float64
    x.requires_grad_()
    (grad,) = torch.autograd.grad(prior(x, 0.3).square().sum(), x)
    assert bool(grad.any()) and not prior.training and not any(p.requires_grad for p in prior.parameters())
    for wrong in (x[0], x[:, :1]):
        with pytest.raises(ValueError, match=r"images of shape \(B, 3, H, W\)"):
            prior(wrong, 0.1)


@pytest.mark.parametrize("solver", ["auto", "ddnm"])
def test_solve_with_a_loaded_prior(ddpm: tuple[Path, ConvertedPrior], solver: str) -> None:
    mask = operators.random_mask((16, 12), 0.5, seed=0)
    y = operators.Inpainting(mask, noise=0.01).measure(torch.full((1, 3, 16, 12), 0.6), seed=0)
    result = solve(y, operators.Inpainting(mask, noise=0.01), ddpm[1], solver, samples=2, steps=5)
    assert result.x.shape == y.shape and result.nfe >= 5 and bool(result.samples.isfinite().all())
    if solver == "ddnm":  # whatever an untrained network says, what was measured holds
        torch.testing.assert_close(mask * result.x, mask * y, rtol=0, atol=1e-5)


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


def test_damaged_pipelines(ddpm: tuple[Path, ConvertedPrior], tmp_path: Path) -> None:
    folder = ddpm[0]
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    config = folder / "unet" / "config.json"
    text = config.read_text()
    (tmp_path / "empty").mkdir()

    def refused(path: Path) -> None:
        with pytest.raises(ValueError, match="is not a readable pipeline of diffusers") as failed:
            priors.load(f"diffusers:{path}")
        assert "\n" not in str(failed.value)

    for content in (whole[: len(whole) // 2], whole[:9], b""):
        weights.write_bytes(content)
        refused(folder)
    weights.write_bytes(whole)
    config.write_text(text.replace('"layers_per_block": 1', '"layers_per_block": 2'))
    refused(folder)
    config.write_text(text[:50])
    refused(folder)
    config.write_text(text)
    priors.load(f"diffusers:{folder}")
    refused(tmp_path / "empty")
    for missing in (tmp_path / "not there", "ddpm", "runs/photos/ddpm"):
        with pytest.raises(ValueError, match=f"no pipeline at {missing}: there is no such folder"):
            priors.load(f"diffusers:{missing}")


def test_diffusers_missing_or_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    diffusers = pytest.importorskip("diffusers")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("Cannot load model google/ddpm:\n not cached")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "load_config", fail)
    with pytest.raises(
        ConnectionError, match="google/ddpm is no folder here .* https://huggingface.co/google/ddpm"
    ) as failed:
        priors.load("diffusers:google/ddpm")
    assert "\n" not in str(failed.value)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install \"invdiff\[diffusers\]\""):
        priors.load("diffusers:google/ddpm")


def test_unknown_sources_names_and_options() -> None:
    with pytest.raises(ValueError, match="unknown network of deepinv 'dncnn'; known are drunet, "):
        priors.load("deepinv:dncnn")
    with pytest.raises(ValueError, match="unknown prior 'timm:resnet'.*adm:..., deepinv:..., diffusers:..."):
        priors.load("timm:resnet")
    with pytest.raises(TypeError, match="natural takes no options, got prompt"):
        priors.load("natural", prompt="a cat")
