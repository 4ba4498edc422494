"""The pictures of ``docs/concepts/networks.md``, drawn from the filters and blocks of the code.

    python scripts/model_pictures.py docs/concepts/images

Writes block.png (an image through one block) and filters_4.png and filters_8.png (the filters of each kind of block for
4 and 8 angles, and where they stand in the Fourier plane). Nothing is downloaded, and nothing drawn is random.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from numpy.typing import NDArray
from torch import Tensor

from pipeline.models.scattering import Block, BlockConfig
from pipeline.models.wavelet_transform import WaveletTransform
from pipeline.models.wavelets import Octave, angle, filter_bank

SIGNED, POSITIVE, GRAY = "RdBu_r", "viridis", "gray"
GRID, REACH = 128, 4
"""Side of the periodic grid that filters are drawn from, and pixels that are shown around their origin."""
SIDE, CHIRP, ANGLES = 64, 0.65 * np.pi / 64, 4
"""Side of the image, rate at which its rings get narrower, and number of angles of the block."""
OCTAVES = {
    Octave.FULL: "full octave",
    Octave.FIRST_HALF: "first half octave",
    Octave.SECOND_HALF: "second half octave",
}


def picture(shift: int = 0) -> NDArray[np.float64]:
    """Rings that fade out, `shift` pixels further right: (SIDE, SIDE), −1 … 1.

    At r pixels from the center the frequency is 2·CHIRP·r, so that each angle and many frequencies have their place.
    """
    row, column = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    squared = row**2 + (column - shift) ** 2
    return np.cos(CHIRP * squared) * np.exp(-((squared / (0.45 * SIDE) ** 2) ** 3))


def filtered(pixels: NDArray[np.float64]) -> tuple[NDArray[np.complex128], NDArray[np.float64]]:
    """Of a block without subsampling: φ*x and ψ_θ*x, (1 + L, SIDE, SIDE), and φ*x and |ψ_θ*x|, likewise."""
    wavelets = WaveletTransform(SIDE, SIDE, Octave.FIRST_HALF, ANGLES, parts=1)
    block = Block((1, 1), 1, wavelets, BlockConfig())
    x = torch.from_numpy(pixels).float()[:, None, :, None, None]  # (H, parts, W, B, C)
    z = block.wavelets(x)  # (S, 2, T, 1 + L, M, N, B, C)
    features = block.act(z)  # (M, S, N, T, B, 1 + L, C)
    real, imaginary = (by_position(part) for part in z.unbind(1))
    collapsed = features.flatten(0, 1).flatten(1, 2)[:, :, 0, :, 0].permute(2, 0, 1).numpy()
    return real + 1j * imaginary, collapsed


def by_position(z: Tensor) -> NDArray[np.float64]:
    """(S, T, K, M, N, B, C) → (K, H, W) of the first image and channel."""
    return z[..., 0, 0].permute(2, 3, 0, 4, 1).flatten(3, 4).flatten(1, 2).numpy()


def degrees(k: int, angles: int) -> str:
    return f"θ = {np.degrees(angle(k, angles)):g}°".replace("-", "−")


def image(axes: Axes, values: NDArray, title: str, colors: str, largest: float | None = None) -> None:
    """A panel without ticks; signed values have white at 0."""
    largest = largest or float(np.abs(values).max())
    smallest = {SIGNED: -largest, POSITIVE: 0.0}.get(colors)
    axes.imshow(values, cmap=colors, vmin=smallest, vmax=None if smallest is None else largest)
    axes.set_title(title, fontsize=12)
    axes.set_xticks([])
    axes.set_yticks([])


def draw_block(path: Path) -> None:
    pixels = picture()
    z, collapsed = filtered(pixels)
    shifted, shifted_collapsed = filtered(picture(shift=1))
    largest = float(np.abs(z[1:]).max())
    figure = plt.figure(figsize=(12.5, 7.6), layout="constrained")
    above, below = np.asarray(figure.subfigures(2, 1, height_ratios=[2, 0.9]))
    panels = above.subplots(2, 1 + ANGLES)
    image(panels[0, 0], pixels, "input x", GRAY)
    image(panels[1, 0], np.abs(z[0]), "|φ∗x|", POSITIVE)
    for k in range(ANGLES):
        image(panels[0, 1 + k], z[1 + k].real, f"Re ψ∗x, {degrees(k, ANGLES)}", SIGNED, largest)
        image(panels[1, 1 + k], collapsed[1 + k], f"|ψ∗x|, {degrees(k, ANGLES)}", POSITIVE, largest)
    k, row = ANGLES - 1, SIDE // 2
    lines = [
        (f"Re ψ∗x, {degrees(k, ANGLES)}, along row {row}", z[1 + k, row].real, shifted[1 + k, row].real),
        (f"|ψ∗x|, {degrees(k, ANGLES)}, along row {row}", collapsed[1 + k, row], shifted_collapsed[1 + k, row]),
    ]
    for axes, (title, of_image, of_shifted) in zip(below.subplots(1, 2, sharey=True), lines, strict=True):
        axes.plot(of_image, color="C0", linewidth=2, label="x")
        axes.plot(of_shifted, color="C1", linewidth=1.2, label="x moved right by one pixel")
        axes.set_title(title, fontsize=12)
        axes.set_xlabel("column, in pixels")
        axes.set_xlim(0, SIDE - 1)
        axes.grid(alpha=0.3)
    axes.legend(loc="lower center", ncols=2)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def spectrum(kernel: NDArray) -> NDArray[np.float64]:
    """|Fourier transform| at GRID × GRID frequencies (row, column) of −π … π; its largest value is 1."""
    result = np.abs(np.fft.fftshift(np.fft.fft2(kernel)))
    return result / result.max()


def draw_filters(angles: int, path: Path) -> None:
    figure, panels = plt.subplots(
        3,
        angles + 2,
        figsize=(1.5 * (angles + 2.9), 5.4),
        layout="constrained",
        width_ratios=[1] * (angles + 1) + [1.5],
    )
    colors = hsv_to_rgb([[k / angles, 0.85, 0.8] for k in range(angles)])
    axis = np.linspace(-np.pi, np.pi, GRID, endpoint=False)
    for (octave, name), row in zip(OCTAVES.items(), panels, strict=True):
        bank = filter_bank(octave, angles, GRID, GRID)
        for number, kernel in enumerate([bank.phi, *bank.psi]):
            title = "φ" if number == 0 else f"Re ψ, {degrees(number - 1, angles)}"
            centered = np.fft.fftshift(kernel.real)[GRID // 2 - REACH :, GRID // 2 - REACH :]
            image(row[number], centered[: 2 * REACH + 1, : 2 * REACH + 1], title, SIGNED)
            if number > 0:
                row[number].title.set_color(colors[number - 1])
        row[0].set_ylabel(name, fontsize=12)
        plane = row[-1]
        plane.contour(axis, axis, spectrum(bank.phi), levels=[0.5, 0.8], colors="black", linewidths=[2, 0.8])
        for color, psi in zip(colors, bank.psi, strict=True):
            plane.contour(axis, axis, spectrum(psi), levels=[0.5, 0.8], colors=[color], linewidths=[2, 0.8])
        plane.set_aspect("equal")
        plane.set_xlim(-np.pi, np.pi)
        plane.set_ylim(np.pi, -np.pi)
        plane.set_xticks([-np.pi, 0, np.pi], ["−π", "0", "π"])
        plane.set_yticks([-np.pi, 0, np.pi], ["−π", "0", "π"])
    panels[0][-1].set_title("Fourier plane", fontsize=12)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder of the pictures, such as docs/concepts/images")
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    draw_block(folder / "block.png")
    for angles in (4, 8):
        draw_filters(angles, folder / f"filters_{angles}.png")


if __name__ == "__main__":
    main()
