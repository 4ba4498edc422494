"""The network as one would write it down first: complex tensors, a Fourier transform in every block, no care for speed.

It stands for what our own network is compared with, and shares only filters and sizes with it. Phase collapse only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.geometries import Geometry
from pipeline.models.tiling import padded_size
from pipeline.models.wavelet_transform import output_size
from pipeline.models.wavelets import Octave, filter_bank, octaves_of_blocks


class FourierBlock(nn.Module):
    """(B, C, H, W) complex → (B, C', H', W') complex: the five steps of a block, one after the other."""

    spectra: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, width: int, size: int, octave: Octave, angles: int, skip: bool) -> None:
        super().__init__()
        period = padded_size(size)
        bank = filter_bank(octave, angles, period, period)
        kernels = torch.cat([torch.as_tensor(bank.phi)[None].to(torch.complex128), torch.as_tensor(bank.psi)])
        self.register_buffer("spectra", torch.fft.fft2(kernels).to(torch.complex64), persistent=False)
        self.octave, self.skip = octave, skip
        self.before = (period - size) // 2
        self.after = period - size - self.before
        self.in_channels = channels * (1 + angles) * (2 if skip else 1)
        deviation = self.in_channels**-0.5
        self.weight = nn.Parameter(deviation * torch.randn(width, self.in_channels, dtype=torch.complex64))
        self.register_buffer("running_mean", torch.zeros(self.in_channels, dtype=torch.complex64))
        self.register_buffer("running_var", torch.ones(self.in_channels))

    def forward(self, x: Tensor) -> Tensor:
        low, band = self._filter(x)
        if self.skip:
            both = torch.cat([low, band], dim=1)
            features = torch.cat([both, both.abs().to(both.dtype)], dim=1)
        else:
            features = torch.cat([low, band.abs().to(low.dtype)], dim=1)
        mean = features.mean((0, 2, 3))
        centered = features - mean[:, None, None]
        variance = centered.abs().square().mean((0, 2, 3))
        self.running_mean.lerp_(mean.detach(), 0.1)
        self.running_var.lerp_(variance.detach(), 0.1)
        standardized = centered / torch.sqrt(variance + 1e-5)[:, None, None]
        y = nn.functional.conv2d(standardized, self.weight[:, :, None, None])
        return y / y.abs().square().sum(1, keepdim=True).sqrt()

    def _filter(self, x: Tensor) -> tuple[Tensor, Tensor]:
        sides = (self.before, self.after, self.before, self.after)
        parts = [nn.functional.pad(part, sides, mode="reflect") for part in (x.real, x.imag)]
        spectrum = torch.fft.fft2(torch.complex(*parts))
        filtered = torch.fft.ifft2(spectrum[:, :, None] * self.spectra)  # (B, C, 1 + L, P, P)
        kept = filtered[..., ::2, ::2][..., 1:-1, 1:-1] if self.octave.subsampling == 2 else filtered[..., 2:-2, 2:-2]
        return kept[:, :, 0], kept[:, :, 1:].flatten(1, 2)


class FourierNetwork(nn.Module):
    """Normalized images (B, 3, H, W) → logits (B, classes), in float32 and complex64."""

    def __init__(self, geometry: Geometry, skip: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        channels, size = 3, geometry.size
        octaves = octaves_of_blocks(len(geometry.widths), geometry.first_factorized_block)
        for width, octave in zip(geometry.widths, octaves, strict=True):
            self.blocks.append(FourierBlock(channels, width, size, octave, geometry.angles, skip))
            channels, size = width, output_size(size, octave)
        self.normalization = nn.BatchNorm2d(2 * channels)
        self.linear = nn.Linear(2 * channels * size * size, geometry.classes)

    def forward(self, images: Tensor) -> Tensor:
        x = images.to(torch.complex64)
        for block in self.blocks:
            x = block(x)
        parts = torch.cat([x.real, x.imag], dim=1)
        return self.linear(self.normalization(parts).flatten(1))
