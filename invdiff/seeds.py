"""Seeds: whole numbers from 0 to 2^32 - 1, each with random numbers of its own."""

from __future__ import annotations

from numbers import Integral

import numpy as np
import torch

SEEDS = 2**32  # torch's CPU generator looks at 32 bits: a seed from here on would repeat a smaller one


def check_seed(seed: int) -> None:
    """``ValueError`` unless ``seed`` is a whole number from 0 to 2^32 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed < SEEDS:
        raise ValueError(f"seed must be at least 0, under 2^32 and a whole number, got {seed!r}")


def seeded(seed: int, *part: int) -> torch.Generator:
    """The CPU generator of a seed, or of a numbered part of it, such as (image,); ``ValueError`` as :func:`check_seed`."""
    check_seed(seed)
    state = np.random.SeedSequence((seed, *part)).generate_state(1)[0] if part else seed
    return torch.Generator().manual_seed(int(state))
