"""Modules for the audit that are backpropagation in disguise.

Each takes and returns (N, 6, 8): six tokens of eight features.
"""

from __future__ import annotations

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
