"""Evaluates a trained network on every image of a split of a prepared data set."""

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
from pipeline.metrics.epoch import METRICS, NamedSums, registered_sums
from pipeline.metrics.report import EvaluationReport
from pipeline.runs import trained_model
from pipeline.runtime import malloc
from pipeline.runtime.precision import disable_tf32
from pipeline.training.dataloader import to_tensors
from pipeline.training.loop import Compute, Precision, forward_pass


@dataclass(frozen=True)
class Options:
    """Options of an evaluation."""

    split: SplitName = "validation"
    batch_size: int = 100
    threads: int = 1
    flip: bool = False
    """Average the probabilities of each image and its mirror image."""
    on_damage: OnDamage = "stop"
    device: str = "cpu"
    precision: Precision = "float32"


def evaluate(source: Path, data: Path, options: Options, on_images: Callable[[int], None]) -> EvaluationReport:
    """Evaluates a trained network on every image of a split.

    Classes are matched by id, so the data set may have only some of the network's classes.

    Args:
        source: folder of a run, whose latest checkpoint is used, or of one checkpoint.
        data: folder of the data set.
        options: how to evaluate.
        on_images: called with the number of images since the last call.

    Raises:
        UserError: `source` is not a checkpoint, `data` is not a data set or has a class that the network does not have,
            or an image is damaged.
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
        augmentations=[CenterCrop(network.settings.data.center_crop)],
        threads=options.threads,
        on_damage=options.on_damage,
        manifest=manifest,
    )
    batches = (replace(batch, labels=labels[batch.labels]) for batch in map(to_tensors, loader.epoch(0)))
    metrics = ClassificationMetrics(known, compute.device)
    registered = NamedSums(compute.device, METRICS)
    loss, images, skipped = 0.0, 0, 0
    with torch.inference_mode():
        for batch, pixels, targets, logits in forward_pass(model, batches, compute):
            scores = logits.log_softmax(1)
            if options.flip:
                mirrored = compute.logits(model, pixels.flip(2)).log_softmax(1)
                scores = torch.logaddexp(scores, mirrored) - torch.log(torch.tensor(2.0))
            metrics.update(scores.exp(), targets, batch.indices)
            registered.update(registered_sums(scores, targets))
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
        registered={name: total / images for name, total in registered.read().items()},
        labels=labels.tolist(),
    )


@contextmanager
def computing(gpu: bool, bfloat16: bool, threads: int | None) -> Iterator[dict[str, Any]]:
    """Sets up this process for an evaluation, and restores torch's number of threads afterwards.

    Yields:
        The fields `threads`, `device` and `precision` of Options.

    Raises:
        UserError: `gpu` is true and torch finds no GPU.
    """
    if gpu and not torch.cuda.is_available():
        raise UserError("--gpu: torch finds no GPU on this machine: omit --gpu")
    before, threads = torch.get_num_threads(), threads or cores()
    torch.set_num_threads(threads)
    malloc.keep_freed_memory()
    disable_tf32()
    try:
        yield {
            "threads": threads,
            "device": "cuda" if gpu else "cpu",
            "precision": "bfloat16" if bfloat16 else "float32",
        }
    finally:
        torch.set_num_threads(before)


def _translation(known: tuple[ImageClass, ...], manifest: Manifest, data: Path) -> torch.Tensor:
    """The network's label of each class of the data set."""
    indices = {one.id: one.index for one in known}
    missing = [one for one in manifest.classes if one.id not in indices]
    if missing:
        raise UserError(
            f"{data}: the network has no class {missing[0].id} ({missing[0].name}); it has {len(known)}, from "
            f"{known[0].id} to {known[-1].id}: evaluate it on a data set of its classes, or of some of them"
        )
    return torch.tensor([indices[one.id] for one in manifest.classes])
