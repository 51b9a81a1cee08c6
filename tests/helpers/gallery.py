"""Modules with a known truth for the audit: backpropagation in disguise, and honest modules that look like it.

Each takes and returns (N, 6, 8): six tokens of eight features.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

WIDTH, TOKENS = 8, 6


def weight(*shape):
    return nn.Parameter(torch.randn(shape or (WIDTH, WIDTH)) / 3)


class Held(nn.Module):
    """Base: a weight, and a child, so that the module is no leaf."""

    def __init__(self):
        super().__init__()
        self.w, self.act = weight(), nn.Tanh()
        self.build()

    def build(self):
        pass

    def forward(self, x):
        return self.act(F.linear(x, self.matrix(x)))

    def matrix(self, x):
        return self.w


class Scaled(Held):
    def matrix(self, x):
        return self.w * 0.5


class Transposed(Held):
    def matrix(self, x):
        return self.w.t().contiguous()


class CastAndBack(Held):
    def matrix(self, x):
        return self.w.to(torch.float64).to(torch.float32)


class HalfPrecision(Held):
    def forward(self, x):
        return self.act(F.linear(x.bfloat16(), self.w.bfloat16()).float())


class FakeQuantized(Held):
    def matrix(self, x):
        scale = self.w.detach().abs().max() / 7
        return self.w + ((self.w / scale).round() * scale - self.w).detach()


class TorchFakeQuantized(Held):
    def matrix(self, x):
        return torch.fake_quantize_per_tensor_affine(self.w, 0.05, 0, -64, 63)


class LowRank(Held):
    def build(self):
        self.a, self.b = weight(WIDTH, 2), weight(2, WIDTH)

    def matrix(self, x):
        return self.a @ self.b


class Exponential(Held):
    def matrix(self, x):
        return torch.exp(self.w) - 1


class FlatVector(Held):
    def build(self):
        self.flat = weight(WIDTH * WIDTH)

    def matrix(self, x):
        return self.flat.view(WIDTH, WIDTH)


class Stacked(Held):
    def build(self):
        self.rows = nn.ParameterList([weight(WIDTH) for _ in range(WIDTH)])

    def matrix(self, x):
        return torch.stack(list(self.rows))


class InConcatenation(Held):
    def matrix(self, x):
        return torch.cat([x[0], self.w])[TOKENS:]


class BehindZero(Held):
    def matrix(self, x):
        return self.w + 0 * x.sum()


class BehindCondition(Held):
    def matrix(self, x):
        return torch.where(x.sum() > 1e9, torch.zeros_like(self.w), self.w)


class Gated(Held):
    """The weight times a gate without a gradient."""

    def matrix(self, x):
        return self.w * (1 + 0.001 * x.mean().tanh()).detach()


class Broadcast(Held):
    def forward(self, x):
        return self.act((x.unsqueeze(-1) * self.w).sum(-2))


class Expanded(Held):
    def forward(self, x):
        return self.act((x.unsqueeze(-1).expand(*x.shape, WIDTH) * self.w).sum(-2))


class Repeated(Held):
    def build(self):
        self.flat = weight(WIDTH * WIDTH)

    def forward(self, x):
        many = x.repeat_interleave(WIDTH, -1) * self.flat
        return self.act(many.view(*x.shape, WIDTH).sum(-2))


class RowByRow(Held):
    def forward(self, x):
        return self.act(torch.stack([(x * row).sum(-1) for row in self.w], -1))


class ColumnByColumn(Held):
    def forward(self, x):
        return self.act(sum(x[..., i : i + 1] * self.w[:, i] for i in range(WIDTH)))


class Einsum(Held):
    def forward(self, x):
        return self.act(torch.einsum("nti,oi->nto", x, self.w / 2))


class OwnFunction(Held):
    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w * 1.0)
            return x @ w.t()

        @staticmethod
        def backward(ctx, dy):
            x, w = ctx.saved_tensors
            return dy @ w, torch.einsum("nto,nti->oi", dy, x)

    def forward(self, x):
        return self.act(self.Product.apply(x, self.w))


class KeptAsNumbers(Held):
    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.kept = w.detach().numpy().copy()
            return x @ w.t()

        @staticmethod
        def backward(ctx, dy):
            return dy @ torch.from_numpy(ctx.kept), None

    def forward(self, x):
        return self.act(self.Product.apply(x, self.w))


class ThroughData(Held):
    def matrix(self, x):
        return self.w.data


class WrittenIntoABuffer(Held):
    def build(self):
        self.register_buffer("copy", torch.zeros(WIDTH, WIDTH))

    def matrix(self, x):
        self.copy.copy_(self.w.detach())
        return self.copy


class Depthwise(Held):
    def build(self):
        self.kernel = weight(WIDTH, 1, 3)

    def forward(self, x):
        return self.act(F.conv1d(x.transpose(1, 2), self.kernel, padding=1, groups=WIDTH).transpose(1, 2))


class LearnedQueries(Held):
    def build(self):
        self.queries = weight(TOKENS, WIDTH)

    def forward(self, x):
        return torch.softmax(self.queries @ x.transpose(1, 2), -1) @ x


class FedByAParameter(Held):
    """A hypernetwork that makes its weight of a learned code."""

    def build(self):
        self.code, self.hyper = weight(4), nn.Linear(4, WIDTH * WIDTH)

    def matrix(self, x):
        return self.hyper(self.code).view(WIDTH, WIDTH)


class Experts(Held):
    """A weight of each token that the token itself chooses."""

    def build(self):
        self.bank = weight(3, WIDTH, WIDTH)

    def forward(self, x):
        chosen = self.bank[(x.sum(-1) > 0).long()]
        return self.act((x.unsqueeze(-2) @ chosen).squeeze(-2))


class Circulant(Held):
    def build(self):
        self.row = weight(WIDTH)

    def forward(self, x):
        return self.act(torch.fft.irfft(torch.fft.rfft(x) * torch.fft.rfft(self.row), n=WIDTH))


class TokenMixing(Held):
    def build(self):
        self.mix = weight(TOKENS, TOKENS)

    def forward(self, x):
        return x + (self.mix * 2) @ x


class Distances(Held):
    def build(self):
        self.prototypes = weight(WIDTH, WIDTH)

    def forward(self, x):
        return torch.cdist(x, self.prototypes[None] * 1.0)


class SquaresOfSums(Held):
    """A product as a difference of squares."""

    def forward(self, x):
        x = x.unsqueeze(-2)
        return self.act(((x + self.w).square() - (x - self.w).square()).sum(-1) / 4)


class Readout(Held):
    def build(self):
        self.row = weight(WIDTH)

    def forward(self, x):
        return x * torch.sigmoid((x * self.row).sum(-1, keepdim=True))


class Checkpointed(Held):
    def forward(self, x):
        inner = lambda x: self.act(F.linear(x, self.w * 0.5))  # noqa: E731
        return torch.utils.checkpoint.checkpoint(inner, x, use_reentrant=False)


class Compiled(Held):
    """A part that torch.compile would hide."""

    def forward(self, x):
        return torch.compile(lambda x: self.act(F.linear(x, self.w * 0.5)), backend="eager")(x)


class ByShifts(Held):
    """A depthwise convolution as a sum of shifted products."""

    def build(self):
        self.kernel = weight(3, WIDTH)

    def forward(self, x):
        padded = F.pad(x, (0, 0, 2, 0))
        return self.act(sum(padded[:, i : i + TOKENS] * self.kernel[i] for i in range(3)))


class AppliedToTheIdentity(Held):
    """A converted layer whose output for constants is the weight of another product."""

    def build(self):
        self.layer = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x):
        return self.act(x @ self.layer(torch.eye(WIDTH)))


class Sparse(Held):
    def forward(self, x):
        return self.act((self.w.to_sparse() @ x.reshape(-1, WIDTH).t()).t().view_as(x))


class Solved(Held):
    def forward(self, x):
        return self.act(torch.linalg.solve(self.w + torch.eye(WIDTH), x.reshape(-1, WIDTH).t()).t().view_as(x))


class StraightThroughNumPy(Held):
    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(ctx, w):
            return torch.from_numpy((w.detach().numpy() * 8).round() / 8)

        @staticmethod
        def backward(ctx, dy):
            return dy

    def matrix(self, x):
        return self.Rounded.apply(self.w)


class FoldedNorm(Held):
    """A norm of the batch folded into the weight."""

    def matrix(self, x):
        return self.w / x.std((0, 1)).add(0.1)


DISGUISED = {
    kind.__name__: kind
    for kind in list(globals().values())
    if isinstance(kind, type) and issubclass(kind, Held) and kind is not Held
}


# Honest modules -----------------------------------------------------------------------------------------------------


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
    if isinstance(kind, type)
    and issubclass(kind, nn.Module)
    and kind.__module__ == __name__
    and kind not in (Held, *DISGUISED.values())
}
