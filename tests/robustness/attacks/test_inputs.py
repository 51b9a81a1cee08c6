"""What an attack takes from its caller: data in many forms, and networks of half precision or with one logit."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from library_attacks import batch, conv
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from biotorch.robustness import FGSM, PGD, RandomSigns, Square, Transfer, study
from biotorch.robustness.plan import ATTACKS

IMAGES, LABELS = batch(7)
BINARY = (IMAGES, torch.tensor([0, 1, 0, 1, 0, 1, 1]))
FAST = {
    "pgd": {"steps": 3},
    "eot_pgd": {"steps": 2, "samples": 2},
    "tpgd": {"steps": 3},
    "few_pixel": {"steps": 2, "population": 8},
    "square": {"queries": 20},
    "auto_pgd": {"steps": 4},
}
#: AutoAttack has a fixed number of steps, and sees a network as its parts `auto_pgd` and `square` do.
QUICK = sorted(set(ATTACKS) - {"auto_attack"})


def make(name, model, **more):
    if name != "few_pixel":
        more["epsilon"] = 0.1
    return ATTACKS[name](model, **FAST.get(name, {}), **more)


def attacked(*data, model=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return PGD(model or conv(), 0.01, steps=4).run(*data)


LOADER = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=3)


@pytest.mark.parametrize(
    "data",
    [
        (IMAGES.numpy(), LABELS.numpy()),
        (IMAGES.numpy()[::-1][::-1], LABELS.tolist()),
        (IMAGES, LABELS.int()),
        (IMAGES, LABELS.to(torch.uint8)),
        (LOADER,),
        ([(IMAGES[:2], LABELS[:2]), (IMAGES[2:].numpy(), LABELS[2:].tolist())],),
        (IMAGES.clone().requires_grad_(), LABELS),
    ],
)
def test_equal_data_in_other_forms_give_equal_bits(data):
    expected = attacked(IMAGES, LABELS)
    found = attacked(*data)
    assert torch.equal(found.adversarial, expected.adversarial)
    assert torch.equal(found.robust, expected.robust)


def test_a_study_takes_them_too():
    expected, *others = (
        study(conv(), data, attacks=["random_signs", "fgsm"], epsilons=[0.05])
        for data in ((IMAGES, LABELS), (IMAGES.numpy(), LABELS.tolist()), LOADER)
    )
    for found in others:
        assert [each.robust for each in found.measurements] == [each.robust for each in expected.measurements]


def test_float64_images_of_a_float32_network_stay_float64():
    found = attacked(IMAGES.double(), LABELS)
    assert found.adversarial.dtype == torch.float64
    assert 0 < found.robust.sum() < 7
    assert attacked(IMAGES, LABELS, model=conv(dtype=torch.float64)).adversarial.dtype == torch.float32


def test_a_pixel_beyond_one_by_rounding_is_clamped():
    images = IMAGES.clone()
    images[:, 0, 0, 0], images[:, 0, 0, 1] = 1 + 2e-7, -1e-7
    found = attacked(images, LABELS).adversarial
    assert found.max() <= 1
    assert found.min() >= 0
    assert torch.equal(found, attacked(images.clamp(0, 1), LABELS).adversarial)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ((255 * IMAGES).byte(), LABELS, "give images / 255"),
        (255 * IMAGES, LABELS, "Normalised"),
        (IMAGES + 0.2, LABELS, "from 0 to 1"),
        (IMAGES, LABELS.float(), r"whole numbers.*int64.*float32.*labels.long\(\)"),
        (IMAGES, nn.functional.one_hot(LABELS, 4), r"labels.argmax\(1\)"),
        (IMAGES, LABELS - 5, "from 0 on"),
        (IMAGES, ["a"] * 7, "tensor or numbers"),
        (list(IMAGES), LABELS, "not a list"),
        (IMAGES, None, "beside images that are a Tensor"),
        (IMAGES.numpy(), None, "beside images that are a ndarray"),
        (TensorDataset(IMAGES, LABELS), None, "DataLoader"),
        ([IMAGES, LABELS], None, "pair of images and labels"),
        ([], None, "no batch"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(images, labels, message):
    with pytest.raises(ValueError, match=message) as raised:
        PGD(conv())(images, labels)
    assert "\n" not in str(raised.value)


def test_functions_are_refused():
    for use in (PGD, lambda model: study(model, (IMAGES, LABELS))):
        with pytest.raises(ValueError, match=r"nn.Module is needed.*not a method"):
            use(conv().forward)


def test_inference_mode_is_refused_and_no_grad_is_not():
    with torch.inference_mode():
        made = IMAGES.clone()
        for use in (PGD(conv()), Square(conv()), PGD(conv()).run, lambda *data: study(conv(), data)):
            with pytest.raises(RuntimeError, match="inference_mode"):
                use(IMAGES, LABELS)
    expected = attacked(IMAGES, LABELS).adversarial
    with torch.no_grad():
        assert torch.equal(attacked(IMAGES, LABELS).adversarial, expected)
    assert torch.equal(attacked(made, LABELS).adversarial, expected)


# Arguments ----------------------------------------------------------------------------------------------


def test_numbers_of_numpy_and_torch():
    attack = PGD(conv(), np.float32(0.25), steps=np.int64(3), step_size=torch.tensor(0.5), abstain=np.int64(3))
    assert attack.settings == PGD(conv(), 0.25, steps=3, step_size=0.5, abstain=3).settings
    assert {type(attack.settings[name]) for name in ("epsilon", "step_size")} == {float}
    assert {type(attack.settings[name]) for name in ("steps", "abstain")} == {int}


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        (FGSM, "eps", "Did you mean 'epsilon'"),
        (RandomSigns, "eps", "Did you mean 'epsilon'"),
        (PGD, "alpha", "Did you mean 'step_size'"),
        (PGD, "nb_iter", "Did you mean 'steps'"),
        (PGD, "step_sise", "Did you mean 'step_size'"),
        (Square, "n_queries", "Did you mean 'queries'"),
        (PGD, "targeted", "targets=classes"),
        (ATTACKS["few_pixel"], "eps", "number of pixels"),
        (ATTACKS["few_pixel"], "norm", "counts pixels"),
        (ATTACKS["tpgd"], "random_start", "near the image"),
    ],
)
def test_names_of_other_libraries(kind, name, message):
    with pytest.raises(TypeError, match=message):
        kind(conv(), **{name: 1})


@pytest.mark.parametrize("epsilon", [8, 255, 1.001])
def test_an_epsilon_above_one_is_refused_in_linf_alone(epsilon):
    with pytest.raises(ValueError, match="such as 8/255"):
        PGD(conv(), epsilon)
    assert PGD(conv(), epsilon, norm="l2").epsilon == epsilon


# Networks -----------------------------------------------------------------------------------------------


class OneLogit(nn.Module):
    """A binary network with one logit, shape (n, 1) or (n,), or with the two logits (0, z)."""

    def __init__(self, form):
        super().__init__()
        self.form, self.net = form, conv(2)

    def forward(self, images):
        outputs = self.net(images)
        logit = outputs[:, 1] - outputs[:, 0]
        forms = {"(n,)": logit, "(n, 1)": logit[:, None], "two": torch.stack([torch.zeros_like(logit), logit], 1)}
        return forms[self.form]


@pytest.mark.parametrize("name", QUICK)
def test_one_logit_is_two(name):
    images, _ = BINARY
    labels = OneLogit("two").eval()(images).argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        two, *ones = (make(name, OneLogit(form)).run(images, labels) for form in ("two", "(n, 1)", "(n,)"))
    assert two.clean.all()
    for one in ones:
        assert torch.equal(one.adversarial, two.adversarial)
        assert torch.equal(one.robust, two.robust)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", QUICK)
def test_half_precision(name, dtype):
    """The network gets its own type and the attack works in float32, as strong as on the network in float32."""
    images, labels = batch(40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        full = make(name, conv()).run(images, labels).robust.sum()
        own, mixed = make(name, conv(dtype=dtype)), make(name, conv())
        found = own.run(images, labels)
        with torch.autocast("cpu", dtype):
            cast = mixed.run(images, labels)
    assert found.adversarial.dtype == cast.adversarial.dtype == torch.float32
    # FAB goes just across the boundary, which the outputs of half precision show no closer than to a hundredth.
    near = 6 if name == "fab" else 3
    assert abs(found.robust.sum() - full) <= near
    assert abs(cast.robust.sum() - full) <= near
    given = own(images.to(dtype), labels)
    assert given.dtype == torch.float32


def test_half_precision_of_a_source():
    images, labels = batch(20)
    found = Transfer(conv(), 0.1, source=conv(dtype=torch.float16), steps=5).run(images, labels)
    assert found.robust.sum() < 10
