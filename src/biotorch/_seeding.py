"""Randomness of feedback weights: own generators, never the global one.

Every rule must start from the same W and see the same batches under one seed, so drawing B may not
advance the global generator. A draw is determined by (seed, layer, number of the draw) alone.
"""

from __future__ import annotations

import hashlib

import torch


def derive(*parts: object) -> int:
    """A 63-bit seed from any printable parts; equal parts give equal seeds on every machine."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator on `device`."""
    return torch.Generator(device=device).manual_seed(seed)


def global_position() -> int:
    """A seed read off the global generator without advancing it.

    For layers built one by one: each construction draws W and thereby moves the global generator
    on, so equal layers get different B, and `torch.manual_seed` repeats them.
    """
    state = torch.random.get_rng_state().numpy().tobytes()
    return derive(hashlib.blake2b(state).hexdigest())
