"""Random generators of the feedback weights, separate from the global one.

Under one seed every rule must start from the same W and see the same batches, so drawing B must not
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
    """A new generator on `device`, seeded with `seed`."""
    return torch.Generator(device=device).manual_seed(seed)


def global_position() -> int:
    """A seed derived from the state of the global generator, which is not advanced.

    It is for layers that are built one by one. Each construction draws W and so advances the global generator.
    Equal layers therefore get different B, and `torch.manual_seed` repeats them.
    """
    state = torch.random.get_rng_state().numpy().tobytes()
    return derive(hashlib.blake2b(state).hexdigest())
