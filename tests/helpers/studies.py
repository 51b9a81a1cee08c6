"""Small studies, an attack of one's own, and a display that counts."""

import torch
from torch import nn

from biotorch.robustness import study

N = 40
FAST = ("random_signs", "fgsm", {"type": "pgd", "steps": 4})
EPSILONS = (0.02, 0.05, 0.1)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3)).eval()


def quick(model, data, **settings):
    return study(model, data, **{"attacks": FAST, "epsilons": EPSILONS, **settings})
