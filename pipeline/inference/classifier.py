"""What a trained network finds in an encoded image: from the bytes of a file to classes and probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from data_prep.codec import convert
from data_prep.codec.decode import JOB, DecodeError, decode_batch
from data_prep.loading.transforms import CenterCrop, Draws, choose_crops
from data_prep.prepare.spec import MAX_SIDE
from pipeline.runs.trained_model import TrainedModel


@dataclass(frozen=True)
class Answer:
    """A class and its probability."""

    id: str
    name: str
    probability: float


def to_pixels(content: bytes, network: TrainedModel) -> np.ndarray:
    """The pixels (H, W, 3) that the network sees of an image file, as in validation of a data set with the default
    encoding: turned upright, converted to RGB, shrunk to at most 512 pixels a side, center-cropped and resized.

    Args:
        content: of the file.
        network: whose settings say how to crop and resize.

    Raises:
        DecodeError: the file is not an image, or a damaged one.
    """
    size, fraction = network.settings.data.image_size, network.settings.data.center_crop
    out = np.zeros((1, size, size, 3), np.uint8)
    stored = convert.to_jpeg(content, MAX_SIDE["jpeg"])
    jpeg = np.frombuffer(stored.content, np.uint8)
    draws = Draws(seed=0, epoch=0, samples=np.zeros(1, np.int64))  # a central crop uses none
    crops = choose_crops([CenterCrop(fraction)], np.array([stored.height]), np.array([stored.width]), draws)
    jobs = np.zeros(1, JOB)
    jobs["address"], jobs["size"] = jpeg.ctypes.data, jpeg.size
    jobs["mode"], jobs["height"], jobs["width"] = stored.mode, stored.height, stored.width
    jobs["top"], jobs["left"], jobs["crop_height"], jobs["crop_width"], jobs["mirrored"] = crops
    for problem in decode_batch(jobs, out):
        raise DecodeError(problem.message, problem.kind)
    return out[0]


def classify(network: TrainedModel, pixels: np.ndarray, top: int) -> list[tuple[Answer, ...]]:
    """The `top` most probable classes of each image, the most probable first, or all if there are fewer.

    Args:
        network: on any device.
        pixels: uint8 (B, H, W, 3), see :func:`to_pixels`; B may be 0.
        top: number of classes per image.
    """
    device = next(network.network.parameters()).device
    with torch.inference_mode():
        probabilities = network.network(torch.from_numpy(pixels).to(device)).softmax(1)
        best = probabilities.topk(min(top, len(network.classes)), dim=1)
    return [
        tuple(Answer(network.class_ids[i], network.classes[i], p) for p, i in zip(values, indices, strict=True))
        for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
