"""Digests of tensors: equal states, and only they, have equal ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch


def state_hash(state: Mapping[str, torch.Tensor]) -> str:
    """A digest of names, types, shapes and bits of all tensors; equal states, and only they, have equal ones."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
