"""The spectra of the learned matrices: singular values, block by block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pipeline.figures import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROJECTION = ".projection.weight"
"""End of the name of a block's projection: (2, O, I) for a complex matrix, (1, O, I) for a real one."""
MOST_NAMES = 20


def singular_values(weights: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Singular values of each matrix of a network, in falling order, by a name: those of the projections of a
    scattering network, and those of the convolutions of a ResNet, whose rows are output channels."""
    projections = {name: value for name, value in weights.items() if name.endswith(PROJECTION)}
    if projections:
        return {f"block {number}": _of(value) for number, value in enumerate(projections.values(), 1)}
    convolutions = {name: value for name, value in weights.items() if value.ndim == 4 and name.endswith("weight")}
    return {
        name.removeprefix("network.").removesuffix(".weight"): _of(value.flatten(1)[None])
        for name, value in convolutions.items()
    }


def _of(weight_POI: Tensor) -> np.ndarray:
    """Singular values; of a complex matrix, and NaN where an entry is not finite."""
    real = weight_POI.double()
    if not bool(real.isfinite().all()):
        return np.full(min(real.shape[1:]), np.nan)
    matrix = torch.complex(real[0], real[1]) if len(real) == 2 else real[0]
    # Of the smaller Gram matrix: a hundredth of the time of a decomposition of a wide matrix, exact to 1e-8.
    gram = matrix @ matrix.mH if matrix.shape[0] <= matrix.shape[1] else matrix.mH @ matrix
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().flip(0).numpy()


def draw(spectra: Mapping[str, np.ndarray]) -> Figure:
    """One curve for each matrix, from the first block (dark) to the last (bright)."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    figure = style.new_figure(8.4, 4.8)
    axes = figure.subplots()
    shades = colormaps["plasma"]
    last = max(1, len(spectra) - 1)
    for number, (name, values) in enumerate(spectra.items()):
        rank = (np.arange(len(values)) + 0.5) / len(values)
        color, marker = shades(0.85 * number / last), "o" if len(values) <= 12 else None
        shown = f"{name} ({len(values)})" if np.isfinite(values).all() else f"{name} (not finite)"
        axes.plot(rank, values, color=color, marker=marker, markersize=3.5, label=style.name(shown, 30))
    axes.set(
        title="Singular values of the learned matrices",
        xlabel="rank, as a fraction of the number of singular values",
        ylabel="singular value",
        xlim=(0, 1),
    )
    axes.set_ylim(bottom=0)
    style.grid(axes)
    if len(spectra) <= MOST_NAMES:
        axes.legend(
            title="number of values in parentheses",
            title_fontsize=7, fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5),
        )  # fmt: skip
    else:
        scale = ScalarMappable(Normalize(1, len(spectra)), colormaps["plasma"])
        figure.colorbar(scale, ax=axes, label="layer, in the order of the network")
    return figure
