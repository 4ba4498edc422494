"""Compares what stock FFCV reads of a prepared data set with what this package reads: labels and pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_prep.codec.decode import DecodeError, decode
from data_prep.common.errors import UserError, first_line
from data_prep.format.beton import RAW, Sample, Shard
from data_prep.format.manifest import read_manifest
from data_prep.loading.ffcv_reader import FfcvFile, import_ffcv
from data_prep.maintain.verification_report import VerificationReport


def compare_with_ffcv(folder: Path, advance: Callable[[int], None] = lambda count: None) -> VerificationReport:
    """Opens every file with stock FFCV, and compares each sample with this package's reader and decoder.

    Args:
        folder: of the data set.
        advance: called with numbers of images.

    Raises:
        UserError: the package ffcv is not installed, or the manifest is missing or damaged.
    """
    import_ffcv()
    report = VerificationReport(read_manifest(folder))
    for split in report.manifest.splits.values():
        for file in split.files:
            try:
                theirs, ours = FfcvFile(folder / file.file), Shard(folder / file.file)
            except (UserError, ValueError) as error:
                report.add(file.file, None, str(error))
                continue
            if len(theirs) != file.samples:
                report.add(file.file, None, f"FFCV finds {len(theirs)} samples, the manifest has {file.samples}")
                continue
            for number in range(file.samples):
                _compare(file.file, number, theirs, ours, report)
                advance(1)
            report.files += 1
    report.sort()
    return report


def _compare(file: str, number: int, theirs: FfcvFile, ours: Shard, report: VerificationReport) -> None:
    try:
        sample = ours.read(number)
        expected = _pixels(sample)
    except (DecodeError, UserError) as error:
        report.add(file, number, f"it cannot be decoded: {error}")
        return
    try:
        found = theirs[number]
    except Exception as error:  # whatever FFCV raises
        report.add(file, number, f"FFCV cannot read it ({type(error).__name__}: {first_line(error)})")
        return
    if found.label != sample.label:
        report.add(file, number, f"FFCV reads the label {found.label}, this package {sample.label}")
    elif found.pixels.shape != expected.shape:
        report.add(file, number, f"FFCV reads {found.pixels.shape} pixels, this package {expected.shape}")
    elif different := int((found.pixels != expected).any(axis=2).sum()):
        report.add(file, number, f"{different} of {expected.shape[0] * expected.shape[1]} pixels differ from FFCV's")
    else:
        report.count(1)


def _pixels(sample: Sample) -> np.ndarray:
    """The whole image, (H, W, 3) uint8."""
    if sample.mode == RAW:
        return np.frombuffer(sample.content, np.uint8).reshape(sample.height, sample.width, 3)
    pixels = np.empty((sample.height, sample.width, 3), np.uint8)
    decode(sample.content, sample.height, sample.width, pixels)
    return pixels
