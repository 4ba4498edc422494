"""A checkpoint as a model of MLflow: ``mlflow.pyfunc.load_model`` and ``mlflow models serve`` load it by this module.

image    content of an image file, in a format that `predict` reads; base64 in a request
class    name of the most probable class, with its `id` and `probability`
top5     the five most probable classes, or all if there are fewer: a list of `class`, `id`, `probability`

A model holds no code and no pickled object: it names this module, and the checkpoint is loaded and compared with its
hashes like any other.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from data_prep.codec.decode import DecodeError
from pipeline.inference.classifier import Answer, classify, to_pixels
from pipeline.runs import trained_model
from pipeline.runs.trained_model import TrainedModel
from pipeline.tracking.mlflow_store import errors

IMAGE = "image"
DEVICE = "MLFLOW_DEFAULT_PREDICTION_DEVICE"
"""Environment variable: torch device of the network, as in MLflow's own models of PyTorch; by default the CPU."""
BATCH_SIZE, TOP = 64, 5


class ServedModel:
    """Classifies encoded images.

    Args:
        network: to classify with.
    """

    def __init__(self, network: TrainedModel) -> None:
        self._network = network

    def predict(self, images: pandas.DataFrame) -> pandas.DataFrame:
        """The classes of the images in the column `image`, a row for each.

        Raises:
            MlflowException: a row is not an image; the request is answered with status 400.
        """
        contents = list(images[IMAGE])
        rows: list[dict[str, Any]] = []
        for start in range(0, len(contents), BATCH_SIZE):
            pixels = [self._pixels(row, contents[row]) for row in range(start, min(start + BATCH_SIZE, len(contents)))]
            rows += [
                {**_entry(answers[0]), "top5": list(map(_entry, answers))}
                for answers in classify(self._network, np.stack(pixels), TOP)
            ]
        return pandas.DataFrame(rows)

    def _pixels(self, row: int, content: bytes) -> np.ndarray:
        try:
            return to_pixels(_plain(content), self._network)
        except DecodeError as error:
            raise errors.bad_request(f"row {row} of '{IMAGE}' cannot be read as an image: {error}") from None


def _plain(content: bytes) -> bytes:
    """Decodes base64, which MLflow passes on as it is where a request has `inputs` or `instances`. No image file
    consists of its characters alone."""
    try:
        return base64.b64decode(content, validate=True)
    except ValueError:
        return content


def _entry(answer: Answer) -> dict[str, Any]:
    return {"class": answer.name, "id": answer.id, "probability": answer.probability}


def _load_pyfunc(path: str) -> ServedModel:
    """What MLflow calls, with the folder of the model's data.

    Raises:
        UserError: the checkpoint is damaged.
    """
    network = trained_model.load(Path(path))
    network.network.to(os.environ.get(DEVICE, "cpu"))
    return ServedModel(network)
