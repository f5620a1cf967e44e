"""Low-rank adapters: they begin as the prior, go on after a stop, are small, and are merged with the right weights only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from invdiff import priors
from invdiff.priors import DenoisingUNet, Recipe, cards, data, lora
from invdiff.priors.cards import header
from invdiff.priors.training import train
from invdiff.priors.weights_io import save_weights

TINY = Recipe("tiny", widths=(8, 8), blocks=1, crop=16, batch=2, steps=3, holdout=1)


def network(seed: int) -> DenoisingUNet:
    net = DenoisingUNet(TINY.network()).requires_grad_(False)
    g = torch.Generator().manual_seed(seed)
    for p in net.parameters():  # a file in fp16 holds them exactly
        p.copy_((torch.randn(p.shape, generator=g) / (2 * p[0].numel() if p.ndim > 1 else 4) ** 0.5).half())
    return net


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save_weights(network(0), tmp_path / "base.safetensors")
    return tmp_path / "base.safetensors"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        array = np.random.default_rng(i).integers(0, 255, (20, 24, 3), np.uint8)
        Image.fromarray(array).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def adapter(base: Path, photos: Path, tmp_path: Path) -> Path:
    return train(TINY, photos, tmp_path / "run", start=base, lora=2, device="cpu")


def weights(net: Any) -> dict[str, Tensor]:
    return dict(net.state_dict())


def test_it_begins_as_the_prior_and_moves_by_low_rank(base: Path) -> None:
    net, x = priors.load(base), torch.rand(2, 3, 16, 16)
    before, start = net(x, 0.3), weights(priors.load(base))
    lora.adapt(net, 2)
    assert torch.equal(net(x, 0.3), before)
    learned = {name: p for name, p in net.named_parameters() if p.requires_grad}
    assert learned and all(".parametrizations.weight.0." in name for name in learned)
    for p in learned.values():
        torch.nn.init.normal_(p)
    for layer, name in ((net.stem, "stem"), (net.down[0], "down.0"), (net.up[0], "up.0"), (net.embed[0], "embed.0")):
        change = (layer.weight - start[f"{name}.weight"]).detach().flatten(1)
        update = layer.parametrizations.weight[0]
        torch.testing.assert_close(change, lora.ALPHA / 2 * update.B @ update.A, rtol=1e-4, atol=1e-5)
        assert int(torch.linalg.matrix_rank(change, rtol=1e-4)) == 2
    with pytest.raises(ValueError, match="1 or more, got 0"):
        lora.adapt(net, 0)


def test_the_file_is_small_names_its_prior_and_is_merged(adapter: Path, base: Path) -> None:
    assert adapter.name == "tiny-lora.safetensors"
    with safe_open(adapter, "pt") as f:
        assert f.metadata()["base"] == str(base) and f.metadata()["rank"] == "2"
    alone, given, start = priors.load(adapter), priors.load(base, adapter=adapter), priors.load(base)
    assert weights(alone).keys() == weights(start).keys()
    assert all(torch.equal(a, b) for a, b in zip(weights(alone).values(), weights(given).values()))
    moved = [name for name, tensor in weights(alone).items() if not torch.equal(tensor, weights(start)[name])]
    assert "head.weight" in moved and not any(name.endswith("bias") for name in moved)
    assert not alone.training and not any(p.requires_grad for p in alone.parameters())
    text = adapter.with_suffix(".md").read_text()
    assert f"as adapters of rank 2 (LoRA), from the weights of {base}" in text and header(adapter)["psnr"]


def test_rank_8_of_the_prior_that_ships_is_well_under_a_megabyte(tmp_path: Path) -> None:
    net = DenoisingUNet(Recipe.load("natural").network())
    lora.adapt(net, 8)
    lora.save_adapter(net, tmp_path / "a.safetensors", "natural", "0", 8)
    assert (tmp_path / "a.safetensors").stat().st_size < 0.7e6


def test_what_is_trained_is_what_is_loaded(adapter: Path) -> None:
    """The average of the run with its adapters beside the weights, and the merged network that load gives."""
    state = load_file(adapter.with_name("checkpoint.safetensors"))
    net = network(0)
    lora.adapt(net, 2)
    net.load_state_dict({k.removeprefix("ema."): v for k, v in state.items() if k.startswith("ema.")})
    net.requires_grad_(False)
    merged, start = weights(priors.load(adapter)), weights(network(0))
    for name, layer in net.named_modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            change = (layer.weight - start[f"{name}.weight"]).norm()
            error = (merged[f"{name}.weight"] - layer.weight).norm()
            assert float(error) < 0.01 * float(change) + 1e-3 * float(layer.weight.norm()), name
    moved = sum((merged[name] - start[name]).norm() for name in start)
    assert float(moved) > 20 * float(sum((merged[f"{n}.weight"] - m.weight).norm() for n, m in net.named_modules() if hasattr(m, "parametrizations")))


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
    adapter: Path, base: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = data.Crops.batch

    def stop(self: Any, step: int) -> Any:
        if step == 2:
            raise KeyboardInterrupt
        return batch(self, step)

    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(data.Crops, "batch", stop)
        with pytest.raises(KeyboardInterrupt):
            train(TINY, photos, out, start=base, lora=2, device="cpu")
    resumed = load_file(train(TINY, photos, out, start=base, lora=2, device="cpu"))
    assert all(torch.equal(resumed[k], v) for k, v in load_file(adapter).items())
    longer = replace(TINY, steps=5)
    for wrong in (3, None):
        with pytest.raises(ValueError, match="was begun with --lora 2 on weights"):
            train(longer, photos, out, start=base, lora=wrong, device="cpu")
    save_weights(network(1), base)
    with pytest.raises(ValueError, match="was begun with --lora 2 on weights"):
        train(longer, photos, out, start=base, lora=2, device="cpu")


def test_adapters_of_adapters(adapter: Path, photos: Path, tmp_path: Path) -> None:
    again = train(TINY, photos, tmp_path / "again", start=adapter, lora=1, device="cpu")
    assert not torch.equal(priors.load(again).head.weight, priors.load(adapter).head.weight)


def test_the_card_of_a_fine_tuned_prior_has_the_terms_it_began_with(base: Path, photos: Path, tmp_path: Path) -> None:
    base.with_suffix(".md").write_text("---\nterms: public domain\n---\n")
    tuned = train(TINY, photos, tmp_path / "tuned", start=base, device="cpu")
    known = cards.header(tuned)
    assert known["terms"] == f"of {base}: public domain; of the images trained on since: not stated"
    assert known["about"].startswith("fine-tuned: ") and f"\n# {TINY.name}, fine-tuned\n" in cards.read(tuned)


def test_adapters_need_a_prior(photos: Path, adapter: Path) -> None:
    for start in (None, adapter):  # the second would be written over its own prior
        with pytest.raises(ValueError, match="--start natural, and keep it out of the --out folder"):
            train(TINY, photos, adapter.parent, start=start, lora=2, device="cpu")
    with pytest.raises(TypeError, match="not of adm:x.pt"):
        priors.load("adm:x.pt", adapter=adapter)


def test_other_weights_are_refused(adapter: Path, base: Path, tmp_path: Path) -> None:
    save_weights(network(1), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="the weights it belongs to"):
        priors.load(tmp_path / "other.safetensors", adapter=adapter)
    with pytest.raises(ValueError, match="holds no adapters"):
        priors.load(base, adapter=base)
    moved = base.rename(tmp_path / "moved.safetensors")
    with pytest.raises(ValueError, match=r"base.safetensors.*no such file.*load\(PRIOR, adapter="):
        priors.load(adapter)
    priors.load(moved, adapter=adapter)


def test_adapters_that_name_each_other(tmp_path: Path) -> None:
    net, files = network(0), [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    lora.adapt(net, 2)
    for file, base in ((files[0], files[1]), (files[1], files[0]), (tmp_path / "c.safetensors", tmp_path / "c.safetensors")):
        lora.save_adapter(net, file, str(base), "0" * 64, 2)
    for file in (*files, tmp_path / "c.safetensors"):
        with pytest.raises(ValueError, match="names the file itself"):
            priors.load(file)


def test_damaged_adapters(adapter: Path, base: Path) -> None:
    whole, tensors = adapter.read_bytes(), load_file(adapter)
    with safe_open(adapter, "pt") as f:
        notes = f.metadata()
    name = next(iter(tensors))
    cases = {
        "do not fit.*missing in the file": ({k: v for k, v in tensors.items() if k != name}, notes),
        r"do not fit.*\(5, 5\) in the file": (tensors | {name: torch.zeros(5, 5)}, notes),
        "more is no adapter": (tensors | {"more": torch.zeros(1)}, notes),
        "not finite": (tensors | {name: torch.full_like(tensors[name], float("nan"))}, notes),
        "do not fit": (tensors, notes | {"rank": "1"}),
        "its header": (tensors, {k: v for k, v in notes.items() if k != "sha256"}),
        "its header lacks": (tensors, notes | {"rank": "two"}),
    }
    for words, (state, given) in cases.items():
        save_file(state, adapter, given)
        with pytest.raises(ValueError, match=f"{adapter}.*{words}"):
            priors.load(base, adapter=adapter)
    adapter.write_bytes(whole[:-50])
    for call in (lambda: priors.load(adapter), lambda: priors.load(base, adapter=adapter)):
        with pytest.raises(ValueError, match="not a readable safetensors file"):
            call()
