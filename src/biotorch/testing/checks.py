"""Checks that need one process."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from biotorch import models, rules
from biotorch.auditing import audit
from biotorch.auditing.verdicts import LEAK
from biotorch.conversion.convert import convert
from biotorch.conversion.revert import revert
from biotorch.kernel import teaching
from biotorch.layers import true_gradients
from biotorch.testing.network import (
    Net,
    assert_all_learn,
    assert_close,
    assert_identical,
    collect,
    gradients,
    images,
    loss_of,
    net,
)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum and weight decay, which some rules need."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(trained, lr=0.002, momentum=0.9, weight_decay=0.01)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
    """Make one update per seed, with random targets for the rules that need them."""
    with teaching.given(teaching.RandomTargets(scale=1.0)):
        for seed in seeds:
            optimizer.zero_grad()
            loss_of(model(images(seed=seed))).backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def told_gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Gradients as from `gradients`, with random targets for the rules that need them."""
    with teaching.given(teaching.RandomTargets(scale=1.0)):
        return gradients(model, x)


def check_outputs(rule: str, **options: Any) -> None:
    """Check that conversion changes no output, and does not advance the global random state.

    Examples:
        >>> biotorch.testing.check_outputs("fa")
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        plain = Net()
        before = torch.get_rng_state()
        model = convert(copy.deepcopy(plain), rule, seed=3, **options)
        assert torch.equal(torch.get_rng_state(), before), "the global random state has advanced"
    torch.testing.assert_close(model(images()), plain(images()))


def check_learning(rule: str, **options: Any) -> None:
    """Check that every trained parameter gets a finite, non-zero gradient, with in-place activations and without.

    Examples:
        >>> biotorch.testing.check_learning("usf")
    """
    for inplace in (False, True):
        model = net(rule, inplace, **options)
        assert_all_learn(told_gradients(model, images()), model)


def check_repeating(rule: str, **options: Any) -> None:
    """Check that two networks of one seed are bitwise equal after some updates, without global randomness.

    Examples:
        >>> biotorch.testing.check_repeating("brsf")
    """
    states = []
    for _ in range(2):
        model = net(rule, **options)
        before = torch.get_rng_state()
        train(model, optimizer_of(model), range(4))
        assert torch.equal(torch.get_rng_state(), before), "training has advanced the global random state"
        states.append(model.state_dict())
    assert_identical(states[0], states[1])


def check_adding_up(rule: str, **options: Any) -> None:
    """Check that the gradients of two halves of a batch add up to the gradient of the whole batch.

    The option `noise` is left out, because it distorts B in another way at each use.

    Examples:
        >>> biotorch.testing.check_adding_up("dfa")
    """
    model = net(rule, **{name: value for name, value in options.items() if name != "noise"})
    whole = told_gradients(model, images(6))
    with teaching.given(teaching.RandomTargets(scale=1.0)):
        for half in (images(6)[:3], images(6)[3:]):
            loss_of(model(half)).backward()  # type: ignore[no-untyped-call]
    assert_close(collect(model), whole, rtol=1e-4, atol=1e-5)


def check_looking(rule: str, **options: Any) -> None:
    """Check that forward passes, backward passes and evaluation change no state without an optimizer step.

    The option `noise` is left out, because it counts the uses of B.

    Examples:
        >>> biotorch.testing.check_looking("wm")
    """
    model = net(rule, **{name: value for name, value in options.items() if name != "noise"})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model.eval()(images())
    told_gradients(model, images())
    told_gradients(model.train(), images())
    assert_identical(model.state_dict(), before)


def check_copies(rule: str, **options: Any) -> None:
    """Check that deep and pickled copies train like the original, and do not change it.

    Examples:
        >>> biotorch.testing.check_copies("fa")
    """
    for pickled in (False, True):
        model = net(rule, **options)
        twin: Net = pickle.loads(pickle.dumps(model)) if pickled else copy.deepcopy(model)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        train(twin, optimizer_of(twin), range(3))
        assert_identical(model.state_dict(), before)
        train(model, optimizer_of(model), range(3))
        assert_identical(twin.state_dict(), model.state_dict())


def check_resuming(rule: str, **options: Any) -> None:
    """Check that a state_dict is complete: a network that loads it continues with the same bits.

    Examples:
        >>> biotorch.testing.check_resuming("kp")
    """
    model = net(rule, **options)
    optimizer = optimizer_of(model)
    train(model, optimizer, range(3))
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    resumed = convert(net("fa"), rule, seed=99, **options)
    other = optimizer_of(resumed)
    weights, momenta = torch.load(file, weights_only=True)
    resumed.load_state_dict(weights)
    other.load_state_dict(momenta)
    train(model, optimizer, range(3, 6))
    train(resumed, other, range(3, 6))
    assert_identical(resumed.state_dict(), model.state_dict())


def check_precision(rule: str, **options: Any) -> None:
    """Check that gradients under bf16 autocast are close to fp32's, and that a float64 network works.

    Examples:
        >>> biotorch.testing.check_precision("fa")
    """
    model = net(rule, **options)
    expected = told_gradients(model, images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = told_gradients(model, images())
    for name, gradient in expected.items():
        cosine = F.cosine_similarity(found[name].flatten(), gradient.flatten(), 0).item()
        assert cosine > 0.95, f"{name}: cosine {cosine:.3f} between bf16 and fp32"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        train(model, optimizer_of(model), range(3))
    for name, value in model.state_dict().items():
        assert value.isfinite().all(), f"{name}: not finite after updates under bf16"
        assert value.dtype != torch.bfloat16, f"{name}: has become bf16"
    double = net(rule, **options).double()
    assert_close(
        told_gradients(double, images().double()), {n: g.double() for n, g in expected.items()}, rtol=1e-3, atol=1e-4
    )


def check_true_gradients(rule: str, **options: Any) -> None:
    """Check that gradients inside `true_gradients` and after `revert` equal backpropagation's.

    Examples:
        >>> biotorch.testing.check_true_gradients("dfa")
    """
    model = net(rule, **options)
    plain = net("backpropagation")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    expected = {name: g for name, g in gradients(plain, images()).items() if name in trained}
    with true_gradients(model):
        assert_close(told_gradients(model, images()), expected, rtol=1e-4, atol=1e-5)
    assert_close(gradients(revert(model), images()), gradients(plain, images()), rtol=1e-4, atol=1e-5)


def check_compiling(rule: str, **options: Any) -> None:
    """Check that torch.compile changes neither gradients nor updates.

    Examples:
        >>> biotorch.testing.check_compiling("fa")
    """
    model, plain = net(rule, **options), net(rule, **options)
    compiled: Any = torch.compile(model, backend="aot_eager")
    with teaching.given(teaching.RandomTargets(scale=1.0)):
        loss_of(compiled(images())).backward()  # type: ignore[no-untyped-call]
    assert_close(collect(model), told_gradients(plain, images()), rtol=1e-4, atol=1e-5)
    train(compiled, optimizer_of(model), range(3))
    train(plain, optimizer_of(plain), range(3))
    assert_close(model.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-5)


def check_transport(rule: str, **options: Any) -> None:
    """Check that the audit confirms the weight transport that the rule declares in its registration.

    Examples:
        >>> biotorch.testing.check_transport("usf")
    """
    found = audit(net(rule, **options), images())
    verdict = max(found.layers.values(), key=LEAK.__getitem__)
    declared = rules.get(rule).transports
    assert verdict == declared, f"the rule declares the transport {declared}, the audit finds {verdict}:\n{found}"


def check_zoo(rule: str, **options: Any) -> None:
    """Check that every trained matrix of a ResNet-18 and a vision transformer learns, and that updates are finite.

    Examples:
        >>> biotorch.testing.check_zoo("fa")
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        transformer = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5)
        head = transformer.get_submodule("heads.head")
        nn.init.normal_(head.get_parameter("weight"))  # torchvision initialises it to zero
        resnet = models.build("resnet18", num_classes=5)
    for model in (resnet, transformer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            convert(model, rule, seed=0, **options)
            optimizer = optimizer_of(model)
            with teaching.given(teaching.RandomTargets(scale=1.0)):
                loss_of(model(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.dim() > 1 and "class_token" not in name:
                assert parameter.grad is not None, f"{type(model).__name__}: no gradient for {name}"
                assert parameter.grad.abs().sum() > 0, f"{type(model).__name__}: {name}: its gradient is zero"
        for name, value in model.state_dict().items():
            assert value.isfinite().all(), f"{type(model).__name__}: {name} is not finite"
