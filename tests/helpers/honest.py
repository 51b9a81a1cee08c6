"""Modules for the audit that look like backpropagation and are none.

Each takes and returns (N, 6, 8): six tokens of eight features.
"""

from __future__ import annotations

import math

import torch
from disguised import TOKENS, WIDTH
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(torch.softmax(q @ k.transpose(1, 2) / math.sqrt(WIDTH), -1) @ v)


class FusedAttention(Attention):
    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v))


class BiasedAttention(Attention):
    """A learned bias of each pair of positions."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(TOKENS, TOKENS))

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias * 2))


class RelativeBias(Attention):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(2 * TOKENS - 1))
        steps = torch.arange(TOKENS)
        self.register_buffer("index", steps[:, None] - steps[None] + TOKENS - 1)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(torch.softmax(q @ k.transpose(1, 2) + self.table[self.index], -1) @ v)


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return torch.sigmoid(self.a(x)) * self.b(x)


class SqueezeAndExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Linear(WIDTH, 2), nn.Linear(2, WIDTH)

    def forward(self, x):
        return x * torch.sigmoid(self.up(torch.relu(self.down(x.mean(1, keepdim=True)))))


class LayerNorm(nn.LayerNorm):
    def __init__(self):
        super().__init__((TOKENS, WIDTH))
        nn.init.normal_(self.weight)


class BatchNorm(nn.BatchNorm1d):
    def __init__(self):
        super().__init__(TOKENS)
        nn.init.normal_(self.weight)


class WrittenOutNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.randn(WIDTH)), nn.Parameter(torch.randn(WIDTH))

    def forward(self, x):
        return (x - x.mean(-1, keepdim=True)) * (x.var(-1, keepdim=True) + 1e-5).rsqrt() * self.gain + self.shift


class NormWithEarlyGain(WrittenOutNorm):
    def forward(self, x):
        return x * (self.gain * (x.var(-1, keepdim=True) + 1e-5).rsqrt()) + self.shift


class ImageNormWithEarlyGain(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.randn(TOKENS, WIDTH))

    def forward(self, x):
        return x * (self.gain * (x.var((1, 2), keepdim=True) + 1e-5).rsqrt())


class TwoNorms(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(WIDTH)), nn.Parameter(torch.randn(WIDTH))

    def forward(self, x):
        for gain in (self.first, self.second):
            x = (x - x.mean(-1, keepdim=True)) * (x.var(-1, keepdim=True) + 1e-5).rsqrt() * gain
        return F.normalize(x, dim=-1)


class WrittenOutNormOfImages(nn.Module):
    """A gain of each position and feature."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.randn(TOKENS, WIDTH))

    def forward(self, x):
        return (x - x.mean()) / x.std() * self.gain


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.pos = nn.Parameter(torch.randn(1, TOKENS, WIDTH))

    def forward(self, x):
        return x + self.pos


class MaskedPositions(Positions):
    def forward(self, x):
        return x + self.pos * (x.sum(-1, keepdim=True) > -100).to(x)


class LookedUpPositions(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(TOKENS, WIDTH)

    def forward(self, x):
        return x + self.table(torch.arange(TOKENS))


class Codebook(nn.Module):
    """Vectors of a table that the tokens choose, by indexing."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, WIDTH))

    def forward(self, x):
        return x + self.table[(x[..., 0] > 0).long()]


class ClassToken(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.attention = nn.Parameter(torch.randn(1, 1, WIDTH)), Attention()

    def forward(self, x):
        return self.attention(F.layer_norm(torch.cat([self.token.expand(len(x), -1, -1), x], 1), (WIDTH,)))[:, 1:]


class LayerScale(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.gamma = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.full((WIDTH,), 1e-6))

    def forward(self, x):
        return x + self.gamma * self.inner(x)


class HyperNetwork(nn.Module):
    """Weights that are activations."""

    def __init__(self):
        super().__init__()
        self.hyper = nn.Linear(WIDTH, WIDTH * WIDTH)

    def forward(self, x):
        return x @ self.hyper(x.mean(1)).view(-1, WIDTH, WIDTH)


class ContinuousPositions(Attention):
    """A bias of each pair of positions that a small network makes of constant coordinates, as in Swin 2."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1))
        steps = torch.arange(float(TOKENS))
        self.register_buffer("steps", (steps[:, None] - steps).unsqueeze(-1))

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(torch.softmax(q @ k.transpose(1, 2) + self.net(self.steps).squeeze(-1), -1) @ v)


class PositionsThroughANetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.pos = nn.Parameter(torch.randn(TOKENS, 4))
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, WIDTH))

    def forward(self, x):
        return x + self.net(self.pos)


class FiLM(nn.Module):
    def __init__(self):
        super().__init__()
        self.of = nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x):
        scale, shift = self.of(x.mean(1, keepdim=True)).chunk(2, -1)
        return x * (1 + scale) + shift


class Slopes(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = nn.PReLU(TOKENS)

    def forward(self, x):
        return self.act(x)


class LearnedPower(nn.Module):
    """Generalised-mean pooling beside its input."""

    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.tensor(3.0))

    def forward(self, x):
        return x + x.clamp(min=1e-6).pow(self.p).mean(1, keepdim=True).pow(1 / self.p)


class Temperature(Attention):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(
            torch.softmax(F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(1, 2) * self.scale, -1) @ v
        )


class FixedProjection(nn.Module):
    """A matrix that is no parameter: a cosine transform."""

    def __init__(self):
        super().__init__()
        steps = torch.arange(WIDTH)
        self.register_buffer("basis", torch.cos(math.pi / WIDTH * (steps[:, None] + 0.5) * steps))

    def forward(self, x):
        return x @ self.basis


class GainThenPool(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x):
        return x + (x * self.gain).mean(1, keepdim=True)


class Router(nn.Module):
    """A mixture of experts, each a layer."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(WIDTH, 2)
        self.experts = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(2)])

    def forward(self, x):
        gates = torch.softmax(self.router(x), -1)
        return sum(gates[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts))


class Residuals(nn.Module):
    """Two streams with a gain each, in one parameter."""

    def __init__(self):
        super().__init__()
        self.gains, self.inner = nn.Parameter(torch.tensor([0.7, 1.3])), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.gains[0] * x + self.gains[1] * torch.relu(self.inner(x))


class CheckpointedLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=False)


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH), nn.Conv1d(WIDTH, WIDTH, 1)

    def forward(self, x):
        return self.b(torch.relu(self.a(x.transpose(1, 2)))).transpose(1, 2)


class Dropped(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.drop = nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.inner(self.drop(x)))


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.shift = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.randn(TOKENS, WIDTH))

    def forward(self, x):
        y = self.inner(x)
        y += self.shift
        return y.mul_(2).relu_()


HONEST = {
    kind.__name__: kind
    for kind in list(globals().values())
    if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__ == __name__
}
