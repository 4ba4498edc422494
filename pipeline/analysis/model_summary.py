"""Summary of a network from the settings of a run: its layers, parameters and costs, without training it."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from data_prep.common.errors import UserError, count_of
from data_prep.common.files import format_bytes
from data_prep.format.manifest import MANIFEST_FILE, load_manifest
from pipeline.analysis.layer_costs import Layer, inspect
from pipeline.config.schema import Settings

TOLERANCE = 0.01
"""Relative difference of executed and necessary multiply-adds above which the summary explains it."""
NAMED = 3
"""Layers that a sentence names; further ones are counted."""


@dataclass(frozen=True)
class ModelSummary:
    """The layers of a network, and their totals. Multiply-adds and memory are per image."""

    family: str
    classes: int
    image_size: int
    precision: str
    activation_checkpointing: bool
    worker_batch: int
    """Images per worker and training step."""
    layers: Sequence[Layer]

    @property
    def learned(self) -> int:
        """Number of learned parameters; a complex one counts as two."""
        return sum(layer.learned for layer in self.layers)

    @property
    def learned_in_classifier(self) -> int:
        return sum(layer.learned for layer in self.layers if layer.classifier)

    @property
    def fixed(self) -> int:
        return sum(layer.fixed for layer in self.layers)

    @property
    def necessary(self) -> int:
        return sum(layer.necessary for layer in self.layers)

    @property
    def executed(self) -> int:
        return sum(layer.executed for layer in self.layers)

    @property
    def kept_bytes(self) -> int:
        """Memory, in bytes, that the forward pass keeps for the backward pass."""
        return sum(layer.kept_bytes for layer in self.layers)

    @property
    def held_bytes(self) -> int:
        """Peak of that memory, in bytes: with activation checkpointing, the inputs of all blocks, all of the block that
        keeps most, and all outside of blocks."""
        if not self.activation_checkpointing:
            return self.kept_bytes
        blocks: Counter[str] = Counter()
        inputs = outside = 0
        for before, layer in itertools.pairwise(self.layers):
            if layer.block and layer.block not in blocks:
                inputs += before.output_bytes(self.precision)
            if layer.block:
                blocks[layer.block] += layer.kept_bytes
            else:
                outside += layer.kept_bytes
        return self.layers[0].kept_bytes + inputs + outside + max(blocks.values())

    @property
    def kernels(self) -> dict[str, tuple[int, ...]]:
        """Kernel sizes of the learned spatial filters before the classifier, by parameter name."""
        return {name: sides for layer in self.layers if not layer.classifier for name, sides in layer.kernels.items()}

    @property
    def biases(self) -> dict[str, int]:
        """Numbers of entries of the learned biases before the classifier, by parameter name."""
        return {name: count for layer in self.layers if not layer.classifier for name, count in layer.biases.items()}

    @property
    def overhead(self) -> str | None:
        """Why executed and necessary multiply-adds differ; None if they agree to 1 %."""
        if abs(self.executed - self.necessary) <= TOLERANCE * self.necessary:
            return None
        reasons: dict[str, int] = {}
        for layer in self.layers:
            if layer.executed != layer.necessary:
                reason = layer.overhead or f"{layer.name}, for a reason unknown"
                reasons[reason] = reasons.get(reason, 0) + layer.executed - layer.necessary
        parts = ", ".join(f"{reason} ({_millions(count, '+')})" for reason, count in reasons.items())
        return f"executed: {100 * (self.executed / self.necessary - 1):+.0f} % compared with necessary: {parts}"

    def to_json(self) -> str:
        """Layers and totals as JSON."""
        names = (
            *("learned", "learned_in_classifier", "fixed", "necessary", "executed", "kept_bytes", "held_bytes"),
            *("kernels", "biases", "overhead"),
        )
        content = asdict(self) | {"totals": {name: getattr(self, name) for name in names}}
        return json.dumps(content, indent=1, ensure_ascii=False)


def describe(settings: Settings, classes: int | None = None) -> ModelSummary:
    """The layers and costs of the network of a run.

    Args:
        settings: of the run.
        classes: number of classes; by default that of the settings, or of the data set.

    Raises:
        UserError: the settings are inconsistent, or the number of classes is unknown.
    """
    count = classes or settings.data.classes or _prepared_classes(Path(settings.data.path))
    workers = max(1, settings.cluster.workers)
    return ModelSummary(
        family=settings.model.family,
        classes=count,
        image_size=settings.data.image_size,
        precision=settings.training.precision,
        activation_checkpointing=settings.training.activation_checkpointing,
        worker_batch=-(-settings.training.batch_size // workers),
        layers=inspect(settings.model, count, settings.data.image_size, settings.training.precision),
    )


def _prepared_classes(folder: Path) -> int:
    if not (folder / MANIFEST_FILE).exists():
        raise UserError(
            f"the number of classes is unknown: data.classes is not set and data.path ({folder}) holds no prepared "
            "data set: set data.classes=N or --classes N"
        )
    return len(load_manifest(folder).classes)


def render(summary: ModelSummary) -> list[RenderableType]:
    """The table of layers, the totals and the flags."""
    return [_table(summary), *_totals(summary)]


def _table(summary: ModelSummary) -> Table:
    size = summary.image_size
    title = f"{summary.family}, {size}×{size} pixels → {count_of(summary.classes, 'class')}"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("layer", no_wrap=True)
    for name in ("what it does", "output"):
        table.add_column(name, overflow="fold")
    for name in ("learned", "fixed", "necessary M", "executed M", "kept kB"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("flags", style="yellow")
    for layer in summary.layers:
        costs = (layer.necessary / 1e6, layer.executed / 1e6, layer.kept_bytes / 1e3)
        table.add_row(
            layer.name,
            layer.does,
            _output(layer),
            *(f"{count:,}" if count else "" for count in (layer.learned, layer.fixed)),
            *(f"{cost:,.2f}" if cost else "" for cost in costs),
            _flags(layer),
        )
    return table


def _output(layer: Layer) -> str:
    kinds = [(layer.complex_channels, "ℂ"), (layer.real_channels, "ℝ")]
    channels = " + ".join(f"{count} {kind}" for count, kind in kinds if count)
    return f"{channels}, {_sides(layer.size)}" if layer.size else channels


def _flags(layer: Layer) -> str:
    if layer.classifier:
        return ""
    filters = [f"{_sides(sides)} filters" for sides in layer.kernels.values()]
    return ", ".join([*filters, *(["bias"] if layer.biases else [])])


def _totals(summary: ModelSummary) -> list[Text]:
    learned, inside = summary.learned, summary.learned_in_classifier
    held, again = summary.held_bytes, ", with activation checkpointing" if summary.activation_checkpointing else ""
    lines = [
        f"parameters: {learned:,} learned, {learned - inside:,} before the classifier and {inside:,} in it; "
        f"{summary.fixed:,} constants",
        f"multiply-adds per image: {_millions(summary.necessary)} necessary, {_millions(summary.executed)} executed",
        *([summary.overhead] if summary.overhead else []),
        f"kept for the backward pass in {summary.precision}{again}: {format_bytes(held)} per image, "
        f"{format_bytes(held * summary.worker_batch)} for the {summary.worker_batch} images of a worker",
    ]
    return [*map(Text, lines), _verdict(summary.kernels, summary.biases)]


def _verdict(kernels: dict[str, tuple[int, ...]], biases: dict[str, int]) -> Text:
    """A sentence about learned spatial filters and learned biases before the classifier."""
    if not kernels and not biases:
        return Text("no learned spatial filter, no learned bias before the classifier", "green")
    filters = _listed(
        "learned spatial filter", [f"{name.removesuffix('.weight')} {_sides(kernels[name])}" for name in kernels]
    )
    return Text(f"{filters}; {_listed('learned bias', list(biases))} before the classifier", "yellow")


def _listed(what: str, names: list[str]) -> str:
    """The number of layers, with the first few by name."""
    if not names:
        return f"no {what}"
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{what} in {len(names)} layers ({', '.join(names[:NAMED])}{more})"


def _sides(sides: tuple[int, ...]) -> str:
    return "×".join(map(str, sides))


def _millions(count: int, sign: str = "") -> str:
    return f"{count / 1e6:{sign},.1f} million"
