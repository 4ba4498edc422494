"""Verifies a prepared data set: hashes, counts and labels agree with the manifest, and every image decodes.

All problems are reported, not only the first; :mod:`data_prep.maintain.split_check` reads the files.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_prep.common.files import hash_file
from data_prep.common.parallel import cores
from data_prep.format.manifest import MANIFEST_FILE, File, Manifest, contradictions, read_manifest
from data_prep.maintain.merge import MERGED_NOTE
from data_prep.maintain.split_check import Advance, SplitCheck
from data_prep.maintain.verification_report import VerificationReport


def verify(
    folder: Path, *, hashes_only: bool = False, threads: int | None = None, advance: Advance = lambda count: None
) -> VerificationReport:
    """Checks a prepared data set.

    Args:
        folder: of the data set.
        hashes_only: compare the files with their hashes, and decode nothing.
        threads: number of threads that decode; by default one for each CPU.
        advance: called, from one thread at a time, with numbers of images or, with `hashes_only`, of bytes.

    Raises:
        UserError: the manifest is missing or damaged.
    """
    report = VerificationReport(read_manifest(folder))
    for found in contradictions(report.manifest):
        report.add(MANIFEST_FILE, None, found)
    _find_unnamed_files(folder, report)
    threads = threads or cores()
    with ThreadPoolExecutor(threads) as pool:
        if hashes_only:
            files = [file for split in report.manifest.splits.values() for file in split.files]
            hashes = pool.map(lambda file: _hash(folder, file, report), files)
            for file, _ in zip(files, hashes, strict=True):
                advance(file.bytes)
        else:
            checks = [SplitCheck(folder, name, report, threads) for name in report.manifest.splits]
            for check in checks:
                check.run(pool, advance)
            _check_sides(checks, report)
    report.sort()
    return report


def _find_unnamed_files(folder: Path, report: VerificationReport) -> None:
    named = {folder / file.file for split in report.manifest.splits.values() for file in split.files}
    for path in sorted(set(folder.rglob("*.beton")) - named):
        report.add(str(path.relative_to(folder)), None, "the manifest does not name it: remove it")
    for path in sorted({*folder.rglob(".*.partial"), *folder.glob(MERGED_NOTE)}):
        report.add(str(path.relative_to(folder)), None, "a command was interrupted: rerun it, or remove this file")


def _hash(folder: Path, file: File, report: VerificationReport) -> None:
    try:
        size = (folder / file.file).stat().st_size
        if size != file.bytes:
            report.add(file.file, None, f"it has {size} bytes instead of {file.bytes}")
        elif hash_file(folder / file.file) != file.sha256:
            report.add(file.file, None, "its bytes changed, its SHA-256 is not the manifest's")
        report.files += 1
    except FileNotFoundError:
        report.add(file.file, None, "it is missing")
    except OSError as error:
        report.add(file.file, None, f"it cannot be read: {error.strerror}")


def _check_sides(checks: list[SplitCheck], report: VerificationReport) -> None:
    """Checks the manifest's smallest and largest side, if all images were read."""
    if not checks or not all(check.complete for check in checks):
        return
    manifest: Manifest = report.manifest
    smallest, largest = min(check.min_side for check in checks), max(check.max_side for check in checks)
    if (smallest, largest) != (manifest.min_side, manifest.max_side):
        stated = f"{manifest.min_side} to {manifest.max_side}"
        report.add(MANIFEST_FILE, None, f"sides are {smallest} to {largest} pixels, not {stated}")
