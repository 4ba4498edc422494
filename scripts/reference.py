"""Writes the reference pages of the documentation from the code: ``python scripts/reference.py [--check]``.

    docs/reference/settings.md   every setting of a run and of a search
    docs/reference/cli.md        every command with its options
    docs/reference/metrics.md    every metric, with its unit

With --check nothing is written, and the exit status is 1 where a page differs from the code.
"""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import get_origin

import click

from pipeline.cli.main import GROUP
from pipeline.config.schema import Settings
from pipeline.config.section import Section
from pipeline.config.settings_io import annotated, choices, may_change, sections
from tuning.config import MAY_ENLARGE, SearchSettings

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
NOTE = "<!-- Written by scripts/reference.py from the code. -->\n\n"

METRICS = (
    ("train/loss", "nats", "mean cross-entropy of the epoch's training images, with label smoothing"),
    ("train/top1", "fraction", "training images whose class had the highest score when they were trained on"),
    ("train/images_per_second", "images/s", "training images of all ranks"),
    ("train/seconds", "s", "duration of the epoch's training steps"),
    ("train/waiting_for_data", "fraction", "of that time: without a batch to train on, mean over ranks"),
    ("train/gradient_norm", "", "norm of the gradient before clipping, mean over steps"),
    ("train/skipped_images", "images", "damaged training images that were left out"),
    ("train/waiting_for_gradients", "fraction", "of a step: communication beyond the backward pass"),
    ("train/saving", "fraction", "of the epoch's training: writing checkpoints within the epoch"),
    ("learning_rate", "", "of the last step"),
    ("SUBSET/loss", "nats", "mean cross-entropy, without label smoothing"),
    ("SUBSET/top1, SUBSET/top5", "fraction", "images whose class is the best, or among the five best"),
    ("SUBSET/skipped_images", "images", "damaged images that were left out"),
    ("SUBSET/NAME", "", "mean over images of a metric registered in `pipeline.metrics.epoch.METRICS`"),
    ("epoch", "epochs", "counted from 1"),
    ("workers", "ranks", "number of workers that trained the epoch"),
)
STEP_METRICS = (
    ("step/loss", "nats", "mean over rank 0's images"),
    ("step/gradient_norm", "", "mean over the steps"),
    ("step/learning_rate", "", "of the last step"),
    ("step/images_per_second", "images/s", "of all ranks"),
    ("step/waiting_for_data", "fraction", "of the time, on rank 0"),
)

DERIVED_METRICS = (
    ("best/SUBSET/…", "", "the metrics of the epoch with the best top-1 so far; `best/epoch` is its number"),
    ("network/parameters", "numbers", "learned parameters of the network, complex ones as two"),
    ("network/multiply_adds", "operations", "multiply-adds of the network for one image"),
)

SYSTEM_METRICS = (
    ("system/HOST/cpu_utilization_percentage", "%", "mean of all cores since the point before"),
    ("system/HOST/system_memory_usage_megabytes", "MB", "memory in use; also as `…_percentage`"),
    ("system/HOST/network_receive_megabytes", "MB", "received since training began; also `network_transmit_megabytes`"),
    ("system/HOST/gpu_N_utilization_percentage", "%", "time in which GPU N computed"),
    ("system/HOST/gpu_N_memory_usage_megabytes", "MB", "memory of GPU N in use; also as `…_percentage`"),
    ("system/HOST/gpu_N_power_usage_watts", "W", "power that GPU N takes"),
)


def main() -> int:
    """Writes or checks the pages; the exit status."""
    stale = []
    for name, text in {"settings": settings_page(), "cli": cli_page(), "metrics": metrics_page()}.items():
        page = REFERENCE / f"{name}.md"
        if "--check" not in sys.argv:
            page.write_text(text, encoding="utf-8")
        elif not page.exists() or page.read_text(encoding="utf-8") != text:
            stale.append(page.name)
    if stale:
        print(f"{', '.join(stale)}: not as the code says; run python scripts/reference.py")
    return 1 if stale else 0


def settings_page() -> str:
    """Every setting, its default and its meaning."""
    return (
        f"# Settings\n\n{NOTE}Settings are YAML with these sections; the command line overrides one as "
        "`section.field=value`. A setting marked *may change* can differ when a run is resumed; the others decide "
        "results and must stay.\n\n## A run\n"
        + _section(Settings, "", may_change(Settings))
        + "\n## A search\n\nThe section `train` holds the settings of a run, which all trials share. What may change "
        "also enlarges a search.\n" + _section(SearchSettings, "", _may_differ(), skip=("train",))
    )


def _may_differ() -> frozenset[str]:
    return may_change(SearchSettings) | annotated(SearchSettings, MAY_ENLARGE)


def _section(tree: type[Section], prefix: str, changeable: frozenset[str], skip: tuple[str, ...] = ()) -> str:
    """The tables of a section and of those below it."""
    rows, below = [], []
    for name, field in tree.model_fields.items():
        path = f"{prefix}{name}"
        if families := sections(field.annotation):
            if name not in skip:
                for family, section in families.items():
                    title = f"`{path}`" + (f" ({family})" if family else "")
                    text = " ".join((section.__doc__ or "").split())
                    below.append(f"\n### {title}\n\n{text}\n\n{_section(section, f'{path}.', changeable)}")
            continue
        default = "required" if field.is_required() else f"`{json.dumps(field.default)}`"
        words = " ".join((field.description or "").split())
        if names := choices(field):
            several = "Any" if get_origin(field.annotation) is tuple else "One"
            words += f" {several} of: {', '.join(f'`{each}`' for each in names)}."
        words += " *May change.*" if path in changeable else ""
        rows.append(f"| `{path}` | {_cell(default)} | {_cell(words)} |\n")
    table = "| setting | default | meaning |\n| --- | --- | --- |\n" + "".join(rows) if rows else ""
    return table + "".join(below)


def cli_page() -> str:
    """Every command as its --help shows it."""
    parts = [f"# Command line\n\n{NOTE}`phasecollapse COMMAND --help` prints the same.\n"]
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        parts.append(_command(point.load(), point.name, "##"))
    return "".join(parts)


def _command(command: click.Command, name: str, heading: str) -> str:
    """A command, followed by its sub-commands."""
    context = click.Context(command, info_name=f"phasecollapse {name}", max_content_width=100)
    below = command.commands.items() if isinstance(command, click.Group) else ()
    parts = [_command(inner, f"{name} {part}", f"{heading}#") for part, inner in below]
    return f"\n{heading} {name}\n\n```\n{command.get_help(context)}\n```\n" + "".join(parts)


def metrics_page() -> str:
    """Every metric with its unit."""
    header = "| metric | unit | meaning |\n| --- | --- | --- |\n"

    def table(rows: tuple[tuple[str, str, str], ...]) -> str:
        return header + "".join(f"| `{name}` | {unit} | {meaning} |\n" for name, unit, meaning in rows)

    return (
        f"# Metrics\n\n{NOTE}SUBSET is `validation` or `holdout` (`data.evaluate_on`). Fractions are from 0 to 1.\n\n"
        "## Of an epoch\n\nIn `history.json`. In MLflow all curves are over training steps, counted from the start "
        f"of the run; those of epochs have a point at the last step of each.\n\n{table(METRICS)}\n"
        "## Of some steps\n\nIn `steps.jsonl` and in MLflow, over steps counted from the start of the run: means over "
        f"`tracking.every_steps` steps.\n\n{table(STEP_METRICS)}\n"
        "## Of a machine\n\nIn `system/HOST.jsonl` and in MLflow's tab of system metrics: the load of each machine "
        "that trains, with its other programs, every `tracking.system_seconds` seconds, over training steps.\n\n"
        f"{table(SYSTEM_METRICS)}\n"
        "## In MLflow alone\n\nThe value that MLflow's table shows of a metric is the last one of its curve. A search "
        f"has the metrics of its best trial, over the training steps of all trials.\n\n{table(DERIVED_METRICS)}"
    )


def _cell(text: str) -> str:
    """Text that a table's cell can hold."""
    return re.sub(r"(?<!\\)\|", r"\\|", text)


if __name__ == "__main__":
    sys.exit(main())
