"""The checks of one process."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from biotorch import models, rules, teaching
from biotorch.module import audit, convert, revert, true_gradients
from biotorch.module.verdicts import LEAK
from biotorch.testing.subjects import (
    Net,
    assert_all_learn,
    assert_close,
    assert_identical,
    collect,
    gradients,
    images,
    loss_of,
    net,
    optimizer_of,
    told_gradients,
    train,
)


def check_outputs(rule: str, **options: Any) -> None:
    """Conversion changes no output, and neither does it read or advance the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        plain = Net()
        before = torch.get_rng_state()
        model = convert(copy.deepcopy(plain), rule, seed=3, **options)
        assert torch.equal(torch.get_rng_state(), before), "the global random state has advanced"
    torch.testing.assert_close(model(images()), plain(images()))


def check_learning(rule: str, **options: Any) -> None:
    """Every parameter that is to be trained has a finite gradient that is not zero, in place and not."""
    for inplace in (False, True):
        model = net(rule, inplace, **options)
        assert_all_learn(told_gradients(model, images()), model)


def check_repeating(rule: str, **options: Any) -> None:
    """Two networks of one seed are one network after some updates, to the bit; randomness is the layers' own."""
    states = []
    for _ in range(2):
        model = net(rule, **options)
        before = torch.get_rng_state()
        train(model, optimizer_of(model), range(4))
        assert torch.equal(torch.get_rng_state(), before), "training has advanced the global random state"
        states.append(model.state_dict())
    assert_identical(states[0], states[1])


def check_adding_up(rule: str, **options: Any) -> None:
    """The gradients of two halves of a batch add up to that of the whole."""
    model = net(rule, **options)
    whole = told_gradients(model, images(6))
    with teaching.given(teaching.RandomTargets(scale=1.0)):
        for half in (images(6)[:3], images(6)[3:]):
            loss_of(model(half)).backward()  # type: ignore[no-untyped-call]
    assert_close(collect(model), whole, rtol=1e-4, atol=1e-5)


def check_looking(rule: str, **options: Any) -> None:
    """Without an optimizer's step nothing changes: forwards, backwards, evaluation."""
    model = net(rule, **options)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model.eval()(images())
    told_gradients(model, images())
    told_gradients(model.train(), images())
    assert_identical(model.state_dict(), before)


def check_copies(rule: str, **options: Any) -> None:
    """A deep copy and a pickled one train as the original does, and leave it alone."""
    for pickled in (False, True):
        model = net(rule, **options)
        twin: Net = pickle.loads(pickle.dumps(model)) if pickled else copy.deepcopy(model)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        train(twin, optimizer_of(twin), range(3))
        assert_identical(model.state_dict(), before)
        train(model, optimizer_of(model), range(3))
        assert_identical(twin.state_dict(), model.state_dict())


def check_resuming(rule: str, **options: Any) -> None:
    """A state_dict holds all there is: a network that loads it goes on with the same bits."""
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
    """Under bf16 autocast the gradients are nearly those of fp32; a network of doubles runs, too."""
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
    """Inside `true_gradients`, and after `revert`, gradients are backpropagation's."""
    model = net(rule, **options)
    plain = net("backpropagation")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    expected = {name: g for name, g in gradients(plain, images()).items() if name in trained}
    with true_gradients(model):
        assert_close(told_gradients(model, images()), expected, rtol=1e-4, atol=1e-5)
    assert_close(gradients(revert(model), images()), gradients(plain, images()), rtol=1e-4, atol=1e-5)


def check_compiling(rule: str, **options: Any) -> None:
    """Traced by torch.compile, gradients and updates are the same."""
    model, plain = net(rule, **options), net(rule, **options)
    compiled: Any = torch.compile(model, backend="aot_eager")
    with teaching.given(teaching.RandomTargets(scale=1.0)):
        loss_of(compiled(images())).backward()  # type: ignore[no-untyped-call]
    assert_close(collect(model), told_gradients(plain, images()), rtol=1e-4, atol=1e-5)
    train(compiled, optimizer_of(model), range(3))
    train(plain, optimizer_of(plain), range(3))
    assert_close(model.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-5)


def check_transport(rule: str, **options: Any) -> None:
    """The audit finds of W in the backward pass, and in B, what the rule is registered with."""
    found = audit(net(rule, **options), images())
    verdict = max(found.layers.values(), key=LEAK.__getitem__)
    declared = rules.get(rule).transports
    assert verdict == declared, f"registered as transporting {declared}, the audit says {verdict}:\n{found}"


def check_zoo(rule: str, **options: Any) -> None:
    """A ResNet-18 and a vision transformer take an update, and every trained matrix learns."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        transformer = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5)
        head = transformer.get_submodule("heads.head")
        nn.init.normal_(head.get_parameter("weight"))  # torchvision has it start at zero
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
