"""The card of a run: what was trained, on what data, how well, on what hardware, how long, and how to repeat it.

Everything comes from the run's folder; what is missing or damaged there is left out.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.common.errors import UserError, count_of, first_line, printable
from data_prep.common.progress import format_duration
from pipeline.config.model_schema import ResNetSettings
from pipeline.config.schema import Settings
from pipeline.metrics.report import EVERYTHING, TABLE
from pipeline.runs import history, paths, run_folder
from pipeline.runs.history import EpochRecord
from pipeline.runs.run_folder import RunIdentity

ARTIFACTS = {
    f"{paths.PICTURES}/{paths.CURVES}": "learning curves",
    f"{paths.PICTURES}/{paths.CONFUSION}": "confusion matrix",
    f"{paths.PICTURES}/{paths.MISTAKES}": "worst mistakes",
    f"{paths.PICTURES}/{paths.SAMPLES}": "what the network was fed",
    f"{paths.PICTURES}/{paths.FILTERS}": "filters",
    f"{paths.PICTURES}/{paths.SPECTRA}": "spectra of the learned matrices",
    f"{paths.REPORT}/{TABLE}": "accuracy by class",
    f"{paths.REPORT}/{EVERYTHING}": "all numbers of the last evaluation",
}
"""Files of a run that its card names."""
ARTIFACT = "artifact:"
"""Begins the address of an artifact's page in a card, before the run in the store is known."""
MOST_TRIALS = 60
"""Rows of the table of a search in its card."""


@dataclass(frozen=True)
class RunFacts:
    """What the folder of a run says of it."""

    folder: Path
    identity: RunIdentity | None
    """None where run.yaml is damaged and no checkpoint has a copy."""
    epochs: Sequence[EpochRecord]
    network: Mapping[str, int]
    """`parameters` and `multiply_adds`; empty before a worker has begun."""
    environment: Mapping[str, str]
    """Hardware and versions; empty before a worker has begun."""
    tracking: Mapping[str, Any]
    problems: Sequence[str] = field(default_factory=list)
    """What cannot be read, in sentences."""

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.folder.name

    @property
    def settings(self) -> Settings | None:
        """Settings that the run was started with, if they are known."""
        return self.identity.settings if self.identity else None

    @property
    def evaluated_on(self) -> str:
        """Subset on which accuracy is measured: validation or holdout."""
        return self.settings.data.evaluate_on if self.settings else "validation"

    @property
    def best(self) -> EpochRecord | None:
        """The epoch with the highest top-1; the first of several."""
        measured = [one for one in self.epochs if f"{self.evaluated_on}/top1" in one.metrics]
        return max(measured, key=lambda one: one.metrics[f"{self.evaluated_on}/top1"], default=None)

    @property
    def seconds(self) -> float:
        """Of training steps, over all epochs."""
        return sum(one.metrics.get("train/seconds", 0.0) for one in self.epochs)

    def what(self) -> str:
        """The network, in a few words."""
        if self.settings is None:
            return "a network whose settings are lost"
        model = self.settings.model
        if isinstance(model, ResNetSettings):
            words = f"ResNet-{model.depth} with {model.nonlinearity}"
        else:
            words = f"scattering network with {model.nonlinearity}{' and skip connections' if model.skip else ''}"
            words += f", widths {'-'.join(map(str, model.channels))}"
        if self.network:
            words += f", {count(self.network['parameters'])} parameters, "
            words += f"{count(self.network['multiply_adds'])} multiply-adds per image"
        return words

    def data(self) -> str:
        """The data set, in a few words."""
        known = self.tracking.get("dataset") or {}
        counts = known.get("contents") or {}
        name = known.get("name") or (Path(self.settings.data.path).name if self.settings else "")
        words = [name or "a data set"]
        words += [f"{number:,} {what} images" for what, number in counts.items() if what != "classes"]
        words += [count_of(counts["classes"], "class")] if "classes" in counts else []
        if self.identity:
            words.append(f"digest {self.identity.data_digest[:12]}")
            words.append(f"{self.identity.settings.data.image_size} pixels a side")
        return ", ".join(words)

    def hardware(self) -> str:
        """The hardware, in a few words; empty if it is not known."""
        there = self.environment
        if not there:
            return ""
        workers = round(self.epochs[-1].metrics.get("workers", 1)) if self.epochs else 1
        gpus = there.get("hardware.gpus", "none")
        device = gpus if gpus != "none" and self.settings and self.settings.cluster.gpu else there.get("hardware.cpu")
        host = f"{there.get('hardware.host')}, {there.get('hardware.cores')} cores"
        return f"{count_of(workers, 'worker')}, {device} ({host}, {there.get('hardware.memory_gib')} GiB)"

    def duration(self) -> str:
        """How long it was trained, in a few words; empty before the first epoch is finished."""
        if not self.epochs:
            return ""
        speed = self.epochs[-1].metrics.get("train/images_per_second", 0.0)
        return f"{format_duration(self.seconds)} of training steps, {speed:,.0f} images/s in the last epoch"

    def progress(self) -> str:
        """Epochs that are done, in a few words."""
        wanted = self.settings.training.epochs if self.settings else 0
        done = len(self.epochs)
        return count_of(done, "epoch") if done and done >= wanted else f"{done} of {wanted or '?'} epochs"

    def repeat(self) -> list[str]:
        """The commands that train the same again."""
        tags = self.tracking.get("tags") or {}
        commit = tags.get("mlflow.source.git.commit")
        changed = "  # and changes that were not committed" if tags.get("git.changed") == "yes" else ""
        lines = [f"git checkout {commit}{changed}"] if commit else []
        again = shlex.quote(f"run.name={self.name}-again")
        return [*lines, f"phasecollapse train settings.yaml {again}"]


def read(folder: Path) -> RunFacts:
    """The facts about the run in a folder.

    Raises:
        UserError: the folder is not that of a run.
    """
    problems: list[str] = []
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: name the folder of a run")
    identity, epochs = None, []
    try:
        identity = run_folder.read_identity(folder)
        if identity is None:
            raise _not_a_run(folder)
    except UserError as error:
        if not (folder / paths.IDENTITY).exists():
            raise
        problems.append(str(error).partition(": choose another")[0])
    try:
        epochs = history.read(folder)
    except (OSError, ValueError) as error:
        problems.append(f"{folder / paths.HISTORY} cannot be read ({first_line(error)})")
    return RunFacts(
        folder,
        identity,
        epochs,
        _json(folder / paths.NETWORK, problems),
        _json(folder / paths.ENVIRONMENT, problems),
        _json(folder / paths.TRACKING, problems),
        problems,
    )


def _not_a_run(folder: Path) -> UserError:
    if (folder / paths.MODEL).exists():
        return UserError(f"{folder} is a checkpoint: name the folder of its run, {folder.absolute().parent.parent}")
    inside = sorted(one.parent for one in folder.glob(f"*/{paths.IDENTITY}"))
    hint = f"it holds runs, such as {inside[0]}" if inside else f"it has no {paths.IDENTITY}"
    return UserError(f"{folder} is not a run: {hint}")


def _json(file: Path, problems: list[str]) -> dict[str, Any]:
    """The content of a file; empty where it is missing, or damaged, which is a problem."""
    try:
        content = json.loads(file.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("not a mapping")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        problems.append(f"{file} cannot be read ({first_line(error)})")
        return {}
    return content


def results(facts: RunFacts) -> list[tuple[str, EpochRecord]]:
    """The last and the best epoch, with their headings; one of them if they are the same."""
    if not facts.epochs or facts.best is None:
        return []
    last, best = facts.epochs[-1], facts.best
    if last.epoch == best.epoch:
        return [(f"last and best, epoch {last.epoch}", last)]
    return [(f"last, epoch {last.epoch}", last), (f"best, epoch {best.epoch}", best)]


def markdown(facts: RunFacts, linked: bool = False) -> str:
    """The card as Markdown, for a page that shows the run and its artifacts.

    Args:
        facts: of the run.
        linked: whether artifacts are links to ``artifact:NAME``, which `Tracker.log_tags` makes addresses, or names.
    """
    what = plain(facts.what())
    lines = [f"{what[:1].upper()}{what[1:]}; {facts.progress()}.", ""]
    files = [(file, what) for file, what in ARTIFACTS.items() if (facts.folder / file).exists()]
    if linked and files:
        lines += [" · ".join(f"[{what}]({ARTIFACT}{file})" for file, what in files), ""]
    measured = results(facts)
    if measured:
        head = f"| {facts.evaluated_on} | {' | '.join(name for name, _ in measured)} |"
        lines += [_spaced(head) if linked else head, "| --- |" + " ---: |" * len(measured)]
        for name, unit, factor in (("top1", "%", 100), ("top5", "%", 100), ("loss", "", 1)):
            values = (one.metrics.get(f"{facts.evaluated_on}/{name}") for _, one in measured)
            shown = " | ".join("" if value is None else f"{factor * value:.4g} {unit}".strip() for value in values)
            lines.append(f"| {name.replace('top', 'top-')} | {shown} |")
        lines.append("")
    lines += [f"- **Data**: {plain(facts.data())}"]
    lines += [f"- **{name}**: {plain(text)}" for name, text in rows(facts)]
    lines += ["", "To repeat it, with the artifact `settings.yaml`:", "```", *facts.repeat(), "```"]
    if files and not linked:
        lines += ["", f"Artifacts: {', '.join(f'`{file}` ({what})' for file, what in files)}."]
    return "\n".join(lines) + "\n"


_SEARCH_LINKS = {
    "error against cost": paths.SEARCH_PICTURE,
    "learning curves": paths.SEARCH_CURVES,
    "settings and error": paths.SEARCH_COORDINATES,
    "findings": paths.SEARCH_FINDINGS,
    "table": paths.SEARCH_NUMBERS,
}


def search_markdown(folder: Path) -> str:
    """The card of a search as Markdown, with links and its table; empty before its end."""
    try:
        head, rule, *trials = (folder / paths.SEARCH_TABLE).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return ""
    lines = [
        " · ".join(f"[{what}]({ARTIFACT}{name})" for what, name in _SEARCH_LINKS.items()),
        "",
        *(_spaced(head), rule, *map(_spaced, trials[:MOST_TRIALS])),
        "",
        "\\* on the frontier: no other trial is better in both cost and error.",
    ]
    if len(trials) > MOST_TRIALS:
        lines.append(f"The {len(trials) - MOST_TRIALS} further trials are in the table.")
    return "\n".join(lines) + "\n"


def _spaced(row: str) -> str:
    """A row of a table with space between its cells, which MLflow's pages leave out."""
    return row.replace(" |", "&nbsp;&nbsp; |")


def rows(facts: RunFacts) -> list[tuple[str, str]]:
    """What is known of hardware, duration, versions and the command: name and text."""
    versions = {name: facts.environment.get(f"version.{name}") for name in ("phasecollapse", "torch", "python")}
    found = {
        "Hardware": facts.hardware(),
        "Time": facts.duration(),
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "Command": str((facts.tracking.get("tags") or {}).get("command", "")),
    }
    return [(name, text) for name, text in found.items() if text]


def plain(text: str) -> str:
    """Text from outside, such as the name of a data set, so that Markdown shows it as it is."""
    return re.sub(r"([\\`*_\[\]<>|#~$])", r"\\\1", " ".join(printable(text).split()))


def count(number: int) -> str:
    """A number in three digits, such as 12.8 thousand or 64.9 million."""
    for name, size in (("billion", 1e9), ("million", 1e6), ("thousand", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {name}"
    return str(number)
