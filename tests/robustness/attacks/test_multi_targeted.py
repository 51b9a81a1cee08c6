"""Multi-targeted PGD tries every class that is a label before it tries any other output."""

import torch
from studies import network
from torch import nn

from biotorch.robustness import MultiTargeted


class Decoys(nn.Module):
    """Five more outputs, which come second everywhere and are the answer for one image."""

    def __init__(self):
        super().__init__()
        self.network = network()

    def forward(self, images):
        outputs = self.network(images)
        decoys = outputs.amax(1, keepdim=True).expand(-1, 5) - 0.01
        return torch.cat([outputs, decoys + (images.flatten(1).sum(1, keepdim=True) > 11)], dim=1)


def test_labels_come_before_decoys():
    images = torch.rand(80, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    images = images[images.flatten(1).sum(1) < 10]
    with torch.no_grad():
        labels = network()(images).argmax(1)
    settings = {"epsilon": 0.1, "steps": 20, "classes": 2}
    plain = MultiTargeted(network(), **settings).run(images, labels).robust
    assert 0 < plain.sum() < len(labels)
    assert torch.equal(MultiTargeted(Decoys().eval(), **settings).run(images, labels).robust, plain)
    fooled = MultiTargeted(Decoys().eval(), **settings, first=[3, 4]).run(images, labels).robust
    assert fooled.sum() > plain.sum()
