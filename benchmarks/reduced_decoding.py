"""How decoding at reduced size changes a trained network's accuracy: it is evaluated with and without.

    python -m benchmarks.reduced_decoding runs/imagenette-64 datasets/imagenette

Every validation image is decoded twice: as training does, at 1/2, 1/4 or 1/8 of its size where the crop stays at least
as large as the network's input, and in full. The network is one that was trained on reduced images. Of images whose
answers differ, as many are expected to become right as wrong: the standard error of the difference is √(n₊ + n₋)/n. The
last line is JSON, of percentages.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.options import count
from data_prep.loading.loader import Loader
from data_prep.loading.transforms import CenterCrop
from pipeline.runs import trained_model


def answers(
    network: trained_model.TrainedModel, data: Path, reduce: bool, threads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Whether each validation image's class has the highest score; the scores; the pixels' sum for each image."""
    settings = network.settings.data
    loader = Loader(
        data,
        "validation",
        batch_size=100,
        size=settings.image_size,
        augmentations=[CenterCrop(settings.center_crop)],
        threads=threads,
        reduce=reduce,
    )
    right, scores, pixels = [], [], []
    with torch.inference_mode():
        for batch in loader.epoch(0):
            images = torch.from_numpy(batch.images)
            logits = network.network(images)
            scores.append(logits.softmax(1))
            right.append(logits.argmax(1) == torch.from_numpy(batch.labels))
            pixels.append(images.float().mean((1, 2, 3)))
    return torch.cat(right), torch.cat(scores), torch.cat(pixels)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a trained run, or of a checkpoint")
    parser.add_argument("data", type=Path, help="folder of the prepared data set")
    parser.add_argument("--threads", type=count, default=2, help="of torch and of the decoder [%(default)s]")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    network = trained_model.load(chosen.run)
    reduced, full = (answers(network, chosen.data, reduce, chosen.threads) for reduce in (True, False))
    images = len(full[0])
    gained, lost = int((reduced[0] & ~full[0]).sum()), int((~reduced[0] & full[0]).sum())
    result = {
        "images": images,
        "image_size": network.settings.data.image_size,
        "images_whose_pixels_differ": round(100 * float((reduced[2] != full[2]).float().mean()), 1),
        "top1_full": round(100 * float(full[0].float().mean()), 2),
        "top1_reduced": round(100 * float(reduced[0].float().mean()), 2),
        "difference": round(100 * (gained - lost) / images, 2),
        "standard_error": round(100 * math.sqrt(gained + lost) / images, 2),
        "mean_change_of_a_probability": round(100 * float((reduced[1] - full[1]).abs().mean()), 3),
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
