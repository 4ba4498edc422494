"""Textures: a generated data set whose classes differ in oriented structure alone.

An image is a stationary random field: white noise given the power spectrum

    P(ω) = ring(|ω|) · (bump(∠ω − θ) + CLUTTER) + GRAIN,

an oriented part of angle θ, and isotropic clutter in the same band of frequencies and fine grain that hide it. The ten
classes are ten angles θ, 18° apart; frequency and angle vary a little from image to image. Phases are noise, and every
field is as likely as its negative: the average image of every class is flat gray, so that no linear function of the
pixels separates the classes. The energy in a direction does, which is what a phase collapse keeps.

Nothing else distinguishes classes. Each image has the same mean in every channel and the same contrast; its color, a
random direction of RGB, does not depend on the class; every file has the same size, padded with a JPEG comment.
A mirrored image belongs to another class, so training must not flip.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from data_prep.common.parallel import Executor
from data_prep.format.manifest import SPLITS, ImageClass, SplitName
from data_prep.sources.image_index import IMAGES, ImageIndex

SIDE = 64
"""Height and width, in pixels."""
CLASSES = 10
FREQUENCY = 0.16
"""Center of the ring, in cycles per pixel: half an octave below a quarter."""
FREQUENCY_WIDTH = 0.035
"""Standard deviation of the ring's profile, in cycles per pixel."""
FREQUENCY_JITTER = 0.1
"""Standard deviation of the logarithm of an image's frequency."""
ANGLE_WIDTH = np.radians(9)
"""Standard deviation of the bump's profile."""
ANGLE_JITTER = np.radians(3)
"""Standard deviation of an image's angle."""
CLUTTER = 0.6
"""Energy of the isotropic part of the ring, relative to the oriented part's."""
GRAIN = 0.15
"""Energy of the white noise, relative to the oriented part's."""
CONTRAST = 45.0
"""Standard deviation of a texture, in gray levels, averaged (in the square) over channels."""
MIDDLE = 127.5
"""Mean of every channel of every texture, before rounding."""
QUALITY = 90
FILE_BYTES = 6144
"""Size of every JPEG file, in bytes; before padding they have 3,000 to 4,700 bytes."""

_VERTICAL = np.fft.fftfreq(SIDE)[:, None]
_HORIZONTAL = np.fft.rfftfreq(SIDE)[None, :]
_RADIUS = np.hypot(_VERTICAL, _HORIZONTAL)
_ANGLE = np.arctan2(_VERTICAL, _HORIZONTAL)
# A real field's spectrum is symmetric: all columns but the first and the last stand for two of the full spectrum.
_MULTIPLICITY = np.where((_HORIZONTAL == 0) | (_HORIZONTAL == 0.5), 1, 2)


def open_source(location: str, seed: int = 0, **per_class: int) -> Textures:
    """The generated data set; `location` is its name."""
    return Textures(seed, **per_class)


class Textures:
    """The generated data set as a source of images: each image is a function of seed and number."""

    kind = "textures"
    location = "generated"

    def __init__(self, seed: int, train_per_class: int = 400, validation_per_class: int = 100) -> None:
        self._seed = seed
        self._per_class: dict[SplitName, int] = {"train": train_per_class, "validation": validation_per_class}
        self.options: dict[str, int | float | str] = {
            "texture_seed": seed,
            **{f"{split}_per_class": count for split, count in self._per_class.items()},
        }
        angles = [180 * index // CLASSES for index in range(CLASSES)]
        self.classes = [ImageClass(index=i, id=f"{a:03d}", name=f"{a} degrees") for i, a in enumerate(angles)]

    def list(self, scratch: Path, executor: Executor) -> ImageIndex:
        """Generates all images, into one file for each split."""
        tables = {split: self._unpack(scratch / f"{split}.images", split) for split in SPLITS}
        return ImageIndex(self.classes, tables)

    def _unpack(self, path: Path, split: SplitName) -> pa.Table:
        count = CLASSES * self._per_class[split]
        with path.open("wb") as file:
            for index in range(count):
                file.write(self.read(split, index))
        numbers = np.arange(count)
        arrays = [
            pa.array(numbers // self._per_class[split], pa.int32()),
            pa.array([f"texture {index} of {split}" for index in range(count)], pa.string()),
            pa.array([str(path)] * count, pa.string()),
            pa.array(numbers * FILE_BYTES, pa.int64()),
            pa.array(np.full(count, FILE_BYTES), pa.int64()),
        ]
        return pa.table(arrays, schema=IMAGES)

    def read(self, split: SplitName, index: int) -> bytes:
        """The JPEG file of an image: its bytes depend on the seed and on its number alone."""
        label, number = divmod(index, self._per_class[split])
        random = np.random.default_rng((self._seed, SPLITS.index(split), label, number))
        return to_jpeg(to_rgb(make_field(label, random), random))


def make_field(label: int, random: np.random.Generator) -> np.ndarray:
    """A texture of a class: (SIDE, SIDE) float64 of mean 0 and variance 1."""
    angle = np.pi * label / CLASSES + ANGLE_JITTER * random.standard_normal()
    frequency = FREQUENCY * np.exp(FREQUENCY_JITTER * random.standard_normal())
    turn = (_ANGLE - angle + np.pi / 2) % np.pi - np.pi / 2  # angles are those of lines: half a turn changes nothing
    ring = np.exp(-((_RADIUS - frequency) ** 2) / (2 * FREQUENCY_WIDTH**2))
    oriented = ring * np.exp(-(turn**2) / (2 * ANGLE_WIDTH**2))
    power = _normalize(oriented) + CLUTTER * _normalize(ring) + GRAIN
    noise = random.standard_normal((SIDE, SIDE))
    field = np.fft.irfft2(np.fft.rfft2(noise) * np.sqrt(power), s=(SIDE, SIDE))
    return (field - field.mean()) / field.std()


def to_rgb(field: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Paints a field (H, W) of mean 0 and variance 1 in a random color: (H, W, 3) uint8."""
    color = random.uniform(0.4, 1, 3)
    color /= np.sqrt(np.mean(color**2))
    return np.clip(np.rint(MIDDLE + CONTRAST * color * field[..., None]), 0, 255).astype(np.uint8)


def to_jpeg(pixels: np.ndarray) -> bytes:
    """A JPEG file of FILE_BYTES bytes, padded with a comment."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY, subsampling=0)  # color in full detail
    jpeg = buffer.getvalue()
    length = FILE_BYTES - len(jpeg) - 2  # a comment is its marker, its length (which counts itself) and its text
    if length < 2:
        raise ValueError(f"a texture of {len(jpeg)} bytes, which leaves no room for a comment in {FILE_BYTES}")
    comment = b"\xff\xfe" + length.to_bytes(2, "big") + bytes(length - 2)
    return jpeg[:2] + comment + jpeg[2:]


def _normalize(power: np.ndarray) -> np.ndarray:
    """Scales a power spectrum (SIDE, SIDE // 2 + 1) so that its mean, the variance of a field, is 1."""
    return power / ((power * _MULTIPLICITY).sum() / SIDE**2)
