"""Settings → a network that maps pixels to logits: a scattering network, or a residual network for comparison.

Suffixes of tensors name their axes: B images of a batch, H W rows and columns of pixels, C colours.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pipeline.config.model_schema import ModelSettings, ResNetSettings, ScatteringSettings
from pipeline.models.resnet import ResNet
from pipeline.models.scattering import BlockConfig, ScatteringNetwork
from pipeline.models.tiling import CPU_TILES, GPU_TILES, Tiles
from pipeline.models.wavelets import Octave, octaves_of_blocks

PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_DEVIATION = (0.229, 0.224, 0.225)
"""Mean and deviation of ImageNet's pixels in 0 … 1, for red, green and blue, as torchvision's models use them."""


class ImageNetwork(nn.Module):
    """Pixels, uint8 (B, H, W, 3) → logits (B, classes), float32: a network that normalizes its input itself."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: ScatteringNetwork | ResNet) -> None:
        super().__init__()
        self.network = network
        # On the CPU even for a network without a device (meta): to multiply there, torch imports for two seconds.
        self.register_buffer("mean", 255 * torch.tensor(PIXEL_MEAN, device="cpu"))
        self.register_buffer("deviation", 255 * torch.tensor(PIXEL_DEVIATION, device="cpu"))
        self._frozen: list[nn.Module] = []

    def forward(self, pixels: Tensor) -> Tensor:  # exported files name their input after it
        """Logits of a batch, which may be empty.

        Raises:
            TypeError: pixels are not integers from 0 to 255 in the order (B, H, W, 3).
        """
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
            raise TypeError(
                f"pixels are {pixels.dtype} of shape {tuple(pixels.shape)}, and must be torch.uint8 of shape (batch, "
                "height, width, 3): the network normalizes them itself"
            )
        if pixels.shape[0] == 0:  # len() would make a constant of it in an exported program
            return self._logits_of_nothing(pixels)
        images_BHWC = (pixels.to(self.mean.dtype) - self.mean) / self.deviation
        return self.network(images_BHWC.permute(0, 3, 1, 2)).float()

    def _logits_of_nothing(self, pixels: Tensor) -> Tensor:
        """Logits (0, classes), of which every parameter has a gradient, zero: a worker whose images are all damaged
        takes part in the communication of the others. Running statistics stay, unless those of all workers are joined,
        where it counts as one black image."""
        training = self.training
        if not any(getattr(part, "synchronized", False) for part in self.modules()):
            self.eval()
        logits = self(pixels.new_zeros((1, *pixels.shape[1:])))[:0]
        self.train(training)
        return logits

    def freeze(self, parts: Iterable[nn.Module]) -> None:
        """Freezes these parts of the network: they get no gradients, and their running statistics are not updated."""
        self._frozen += parts  # a list of modules is not registered: each part stays where it is in the network
        for part in self._frozen:
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> ImageNetwork:
        """Sets training or evaluation mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def enable_activation_checkpointing(self) -> None:
        """Makes each block keep only its input, and be recomputed in the backward pass: less memory, more time."""
        self.network.checkpoint_blocks = True

    def no_decay_names(self) -> set[str]:
        """Names of the parameters without weight decay: those of normalizations and of ρ, and biases."""
        return {name for name, value in self.named_parameters() if value.ndim == 1 or ".operator_" in name}

    def multiply_adds(self) -> int:
        """Real multiply-adds of the forward pass of one image."""
        return self.network.multiply_adds()


def build(model: ModelSettings, classes: int, image_size: int, seed: int = 0, *, gpu: bool = False) -> ImageNetwork:
    """The network of `model` for square images of `image_size` pixels a side; `seed` determines its initial weights.

    A network `gpu` computes the same on any device, and is faster on a GPU.

    Raises:
        UserError: the settings are inconsistent, or the input of a block would be smaller than 3 pixels.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        size = (image_size, image_size)
        if isinstance(model, ResNetSettings):
            return ImageNetwork(_resnet(model, classes, size))
        return ImageNetwork(_scattering(model, classes, size, GPU_TILES if gpu else CPU_TILES))


def _scattering(model: ScatteringSettings, classes: int, size: tuple[int, int], tiles: Tiles) -> ScatteringNetwork:
    octaves = octaves_of_blocks(len(model.widths), model.first_factorized_block)
    return ScatteringNetwork(
        widths=model.channels,
        octaves=octaves if model.octaves is None else [Octave(name) for name in model.octaves],
        angles=model.angles,
        kind=BlockConfig(
            nonlinearity=model.nonlinearity,
            operator_gain=model.operator_gain,
            operator_bias=model.operator_bias,
            operator_learned=model.operator_learned,
            skip=model.skip,
            complex_projection=model.projection == "complex",
            standardize=model.standardize,
            normalize=model.normalize,
            synchronized=model.sync_batch_stats,
        ),
        classes=classes,
        size=size,
        pooled=model.classifier == "pooled",
        normalization=model.classifier_normalization,
        bias=model.classifier_bias,
        tiles=tiles,
    )


def _resnet(model: ResNetSettings, classes: int, size: tuple[int, int]) -> ResNet:
    return ResNet(
        depth=model.depth,
        stem=model.stem,
        nonlinearity=model.nonlinearity,
        biases=model.biases,
        affine=model.affine,
        classifier_bias=model.classifier_bias,
        classes=classes,
        size=size,
        width_multiplier=model.width_multiplier,
        synchronized=model.sync_batch_stats,
    )


def parameters(network: nn.Module) -> int:
    """Number of learned parameters; a complex one, stored as two real ones, counts as two."""
    return sum(value.numel() for value in network.parameters())


def multiply_adds(model: ModelSettings, classes: int, image_size: int) -> int:
    """Multiply-adds of the forward pass of one image, without making the weights.

    Raises:
        UserError: the input of a block would be smaller than 3 pixels.
    """
    with torch.device("meta"):
        return build(model, classes, image_size).multiply_adds()
