"""A trained network on a prepared data set: every image of a split, once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from data_prep.common.errors import UserError
from data_prep.common.parallel import cores
from data_prep.format.manifest import ImageClass, Manifest, SplitName, load_manifest
from data_prep.loading.loader import Loader, OnDamage
from data_prep.loading.transforms import CenterCrop
from pipeline.metrics.classification import ClassificationMetrics
from pipeline.metrics.report import Report
from pipeline.runs import trained_model
from pipeline.runtime import malloc
from pipeline.training.dataloader import to_tensors
from pipeline.training.loop import Compute, Precision, forward_pass


@dataclass(frozen=True)
class Options:
    """How to evaluate."""

    split: SplitName = "validation"
    batch_size: int = 100
    threads: int = 1
    flip: bool = False
    """Average the probabilities of each image and of its mirror image."""
    on_damage: OnDamage = "stop"
    device: str = "cpu"
    precision: Precision = "float32"


def evaluate(source: Path, data: Path, options: Options, on_images: Callable[[int], None]) -> Report:
    """Passes every image of a split through the network of a run, or of a checkpoint.

    The data set may lack classes of the network: its labels are found by the ids of the classes.

    Args:
        on_images: told how many images were done since the last time.

    Raises:
        UserError: `source` is no checkpoint, `data` no data set, it has a class that the network does not know, or an
            image is damaged.
    """
    checkpoint = trained_model.find(source)
    network, manifest = trained_model.load(checkpoint), load_manifest(data)
    known = trained_model.describe(checkpoint).classes
    labels = _translation(known, manifest, data)
    compute = Compute(torch.device(options.device), options.precision)
    model = network.network.to(compute.device)
    loader = Loader(
        data,
        options.split,
        batch_size=options.batch_size,
        size=network.settings.data.image_size,
        cropping=CenterCrop(network.settings.data.center_crop),
        threads=options.threads,
        on_damage=options.on_damage,
        manifest=manifest,
    )
    batches = (replace(batch, labels=labels[batch.labels]) for batch in map(to_tensors, loader.epoch(0)))
    metrics = ClassificationMetrics(known, compute.device)
    loss, images, skipped = 0.0, 0, 0
    with torch.inference_mode():
        for batch, pixels, targets, logits in forward_pass(model, batches, compute):
            scores = logits.log_softmax(1)
            if options.flip:
                mirrored = compute.logits(model, pixels.flip(2)).log_softmax(1)
                scores = torch.logaddexp(scores, mirrored) - torch.log(torch.tensor(2.0))
            metrics.update(scores.exp(), targets)
            loss += float(torch.nn.functional.nll_loss(scores, targets, reduction="sum"))
            images += len(targets)
            skipped += batch.skipped
            on_images(batch.size)
    if images == 0:
        raise UserError(f"every image of the {options.split} split of {data} is damaged: see 'phasecollapse verify'")
    return metrics.report(
        checkpoint=str(checkpoint),
        data=str(data),
        data_digest=manifest.digest,
        split=options.split,
        loss=loss / images,
        skipped_images=skipped,
        labels=labels.tolist(),
    )


@contextmanager
def computing(gpu: bool, bfloat16: bool, threads: int | None) -> Iterator[dict[str, Any]]:
    """Where to compute, as fields of Options; torch's threads are as they were afterwards.

    Raises:
        UserError: there is no GPU.
    """
    if gpu and not torch.cuda.is_available():
        raise UserError("--gpu: torch sees no GPU on this machine: leave it out")
    before, threads = torch.get_num_threads(), threads or cores()
    torch.set_num_threads(threads)
    malloc.keep_freed_memory()
    try:
        yield {
            "threads": threads,
            "device": "cuda" if gpu else "cpu",
            "precision": "bfloat16" if bfloat16 else "float32",
        }
    finally:
        torch.set_num_threads(before)


def _translation(known: tuple[ImageClass, ...], manifest: Manifest, data: Path) -> torch.Tensor:
    """The network's index of each class of the data set."""
    indices = {one.id: one.index for one in known}
    missing = [one for one in manifest.classes if one.id not in indices]
    if missing:
        raise UserError(
            f"{data}: the network knows no class {missing[0].id} ({missing[0].name}); it has {len(known)}, from "
            f"{known[0].id} to {known[-1].id}: evaluate it on a data set of its classes, or of some of them"
        )
    return torch.tensor([indices[one.id] for one in manifest.classes])
