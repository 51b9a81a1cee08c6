"""Layers under symmetric alignment."""

from biotorch.layers.methods import layers_of

Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d, Linear = layers_of("sa")
