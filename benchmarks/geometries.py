"""The paper's two networks, as far as speed depends on them."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.models.scattering import BlockConfig, ScatteringNetwork
from pipeline.models.tiling import CPU_TILES, Tiles
from pipeline.models.wavelets import octaves_of_blocks


@dataclass(frozen=True)
class Geometry:
    """Depth, widths and input of a network, and the batch in which it is measured."""

    widths: tuple[int, ...]
    angles: int
    first_factorized_block: int
    size: int
    """Side of the images, in pixels."""
    classes: int
    batch: int

    def network(self, skip: bool, tiles: Tiles = CPU_TILES) -> ScatteringNetwork:
        """The phase-collapse network, for normalized images (B, 3, size, size)."""
        return ScatteringNetwork(
            widths=self.widths,
            angles=self.angles,
            octaves=octaves_of_blocks(len(self.widths), self.first_factorized_block),
            kind=BlockConfig(skip=skip),
            classes=self.classes,
            size=(self.size, self.size),
            tiles=tiles,
        )


GEOMETRIES = {
    "cifar": Geometry((64, 128, 256, *[512] * 5), 4, 0, 32, 10, 64),
    "imagenet": Geometry((32, 64, 64, 128, 256, *[512] * 5, 256), 8, 1, 224, 1000, 4),
}
