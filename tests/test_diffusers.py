"""Pipelines of diffusers: written by it, tiny and random, read by ours, and compared with its own schedulers and pipelines."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import SIGMAS, TIMES, agree, clip, randn, stirred, t5, unet, vae
from torch import Tensor

from invdiff import operators, priors, solve
from invdiff.priors.condition import takes_condition
from invdiff.priors.schedule import ConvertedPrior

diffusers = pytest.importorskip("diffusers")

# Pixels


@pytest.fixture(autouse=True)
def same_weights_every_time() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("pipeline", "prediction"),
    [("DDPMPipeline", "epsilon"), ("DDPMPipeline", "sample"), ("DDIMPipeline", "v_prediction")],
)
def test_diffusers_pixels(pipeline: str, prediction: str, tmp_path: Path) -> None:
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


def test_class_labels(tmp_path: Path) -> None:
    net = unet(num_class_embeds=3)
    diffusers.DDPMPipeline(net, diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    prior = priors.load(f"diffusers:{tmp_path}", label=2)
    assert takes_condition(prior)
    x_t, labels, sigma = randn(2, 3, 16, 16), torch.tensor([2, 0]), float(SIGMAS[500])
    x = (x_t * float(np.sqrt(1 + sigma**2)) + 1) / 2
    wanted = 2 * x - 1 - sigma * net(x_t, 500, class_labels=labels).sample
    agree(2 * prior(x, sigma / 2, condition=labels) - 1, wanted, sigma)
    agree(2 * prior(x[:1], sigma / 2) - 1, wanted[:1], sigma)
    with pytest.raises(ValueError, match="give label=0 to 2; got label=3"):
        priors.load(f"diffusers:{tmp_path}", label=3)


# Latents


def check_codec(prior: Any, autoencoder: Any, scale: float, shift: float) -> None:
    """encode and decode are what the pipelines do around their image processors."""
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    code = autoencoder.encode(2 * x - 1)
    latents = code.latents if hasattr(code, "latents") else code.latent_dist.mode()
    z = prior.encode(x)
    torch.testing.assert_close(z, (latents - shift) * scale, rtol=0, atol=1e-6)
    decoded = autoencoder.decode(z / scale + shift).sample / 2 + 0.5
    torch.testing.assert_close(prior.decode(z), decoded, rtol=0, atol=1e-6)
    assert (prior.denoiser.mean, prior.denoiser.std) == (0.0, 1.0)
    assert prior.latent_shape(x.shape) == z.shape[1:]


def test_ldm(tmp_path: Path) -> None:
    code, net = vae("VQModel", latent_channels=3), unet()
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    diffusers.LDMPipeline(code, net, scheduler).save_pretrained(tmp_path)
    prior = priors.load(f"diffusers:{tmp_path}")
    check_codec(prior, code, code.config.scaling_factor, 0.0)
    sigma = SIGMAS[500]
    x_t = randn(1, 3, 8, 8)
    scheduler.set_timesteps(1000)
    wanted = scheduler.step(net(x_t, 500).sample, 500, x_t).pred_original_sample
    agree(prior.denoiser(x_t * float(np.sqrt(1 + sigma**2)), sigma), wanted, sigma)
    assert not takes_condition(prior.denoiser)


def stable_diffusion(folder: Path, prediction: str = "epsilon") -> Any:
    """A pipeline of Stable Diffusion, saved; its scheduler steps from its highest level to zero."""
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
    pipe.save_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def step(pipe: Any, prompts: list[str], x_t: Tensor, guidance: float) -> tuple[Tensor, Tensor, float]:
    """The noisy latents, the estimate of the clean ones by one step of the pipeline, and the noise level."""
    wanted = pipe(prompts, num_inference_steps=1, guidance_scale=guidance, latents=x_t, output_type="latent").images
    abar = pipe.scheduler.alphas_cumprod[999].double()
    return x_t / float(abar.sqrt()), wanted, float((1 / abar - 1).sqrt())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_stable_diffusion(prediction: str, tmp_path: Path) -> None:
    pipe = stable_diffusion(tmp_path, prediction)
    prior = priors.load(f"diffusers:{tmp_path}", prompt="a cat")
    check_codec(prior, pipe.vae, pipe.vae.config.scaling_factor, 0.0)
    prompts = ["a cat", ""]
    x, wanted, sigma = step(pipe, prompts, randn(2, 4, 8, 8), 1.0)  # at 1 its guidance is off
    told = prior.denoiser(x, sigma, condition=prompts)
    agree(told, wanted, sigma)
    agree(prior.denoiser(x[:1], sigma), told[:1], sigma)
    own = prior.denoiser.encode("a cat")["encoder_hidden_states"].requires_grad_()  # an embedding, as in prompt tuning
    out = prior.denoiser(x[:1], sigma, condition=own)
    agree(out.detach(), told[:1], sigma)
    (grad,) = torch.autograd.grad(out.square().sum(), own)
    assert bool(grad.any())
    for wrong in (torch.tensor([3, 4]), torch.ones(2, 16), [None, "a cat"]):
        with pytest.raises(ValueError, match="is told prompts, one for all .* or their embedding"):
            prior.denoiser(x, sigma, condition=wrong)
    copy = pickle.loads(pickle.dumps(prior))
    torch.testing.assert_close(copy.denoiser(x, sigma, condition=["a dog", ""])[1], told[1], rtol=0, atol=1e-4)


def test_guidance_is_that_of_the_pipeline(tmp_path: Path) -> None:
    pipe = stable_diffusion(tmp_path)
    guided = priors.ClassifierFree(priors.load(f"diffusers:{tmp_path}").denoiser, 7.5)
    prompts = ["a cat", "a dog"]
    x, wanted, sigma = step(pipe, prompts, randn(2, 4, 8, 8), 7.5)
    agree(guided(x, sigma, condition=prompts), wanted, sigma)


def test_each_prompt_is_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stable_diffusion(tmp_path)
    prior = priors.load(f"diffusers:{tmp_path}", prompt="a cat").denoiser
    encode, asked = prior.encode, []
    monkeypatch.setattr(prior, "encode", lambda prompt: asked.append(prompt) or encode(prompt))
    for _ in range(2):
        prior(randn(3, 4, 8, 8), 1.0, condition=["a cat", "a dog", "a dog"])
    assert asked == ["a dog"]


def test_latents_in_solve(tmp_path: Path) -> None:
    stable_diffusion(tmp_path)
    prior = priors.load(f"diffusers:{tmp_path}", prompt="a cat")
    A = operators.Inpainting(operators.random_mask((15, 12), 0.5, seed=0), noise=0.05)
    y = A.measure(torch.full((2, 3, 15, 12), 0.6), seed=0)
    result = solve(y, A, prior, "dps", steps=2, samples=1)
    assert result.x.shape == y.shape and result.nfe == 2
    told = solve(y, A, prior, "dps", steps=2, samples=1, condition=["a cat", "a dog"])
    torch.testing.assert_close(told.x[0], result.x[0], rtol=0, atol=1e-4)
    assert float((told.x[1] - result.x[1]).abs().max()) > 1e-4
    with pytest.raises(TypeError, match="of a LatentPrior, give its .denoiser"):
        priors.ClassifierFree(prior, 3.0)
    prior.denoiser = priors.ClassifierFree(prior.denoiser, 3.0)
    assert solve(y, A, prior, "dps", steps=2, samples=1, condition="a cat").nfe == 4


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_stable_diffusion_3(shift: float, tmp_path: Path) -> None:
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
    assert prior.denoiser(randn(1, 8, 7, 5), 1.0).shape == (1, 8, 7, 5)


@pytest.mark.parametrize("distilled", [True, False])
def test_flux(distilled: bool, tmp_path: Path) -> None:
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
    side, prompts = 8 * pipe.vae_scale_factor, ["a cat", "two dogs"]
    for asked in (0.1, 0.5, 0.9):
        t = shift * asked / (1 + (shift - 1) * asked)
        x_t = randn(2, prior.channels, 8, 8, seed=int(10 * asked))
        packs = hasattr(pipe, "_pack_latents")
        given = pipe._pack_latents(x_t, 2, prior.channels, 8, 8) if packs else x_t
        wanted = pipe(
            prompts, height=side, width=side, sigmas=[asked], latents=given, output_type="latent", **options
        ).images
        if packs:
            wanted = pipe._unpack_latents(wanted, side, side, pipe.vae_scale_factor)
        x, sigma = x_t / (1 - t), t / (1 - t)
        agree(prior.denoiser(x, sigma, condition=prompts), wanted, sigma)
    agree(prior.denoiser(x[:1], sigma), wanted[:1], sigma)  # the prompt it was loaded with
    with pytest.raises(ValueError, match="is told prompts, one for all images or one an image; got"):
        prior.denoiser(x, sigma, condition=torch.ones(2, 12, 16))


def test_other_pipelines_are_refused(tmp_path: Path) -> None:

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


# Use, and what goes wrong


@pytest.fixture
def ddpm(tmp_path: Path) -> tuple[Path, ConvertedPrior]:
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
