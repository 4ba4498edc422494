"""The command `phasecollapse prepare`."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from data_prep.common.errors import UserError, count_of, printable
from data_prep.sources.registry import SOURCES, ImageSource, open_source

if TYPE_CHECKING:
    from data_prep.common.parallel import Advance, Executor
    from data_prep.format.manifest import Manifest
    from data_prep.prepare.dataset_writer import Estimate, PrepareResult
    from data_prep.prepare.spec import PrepareSpec
    from data_prep.sources.image_index import ImageIndex

DEFAULT_SOURCE = "textures"
FOR_IMAGES = ("max_side", "class_names", "kind", "classes", "limit_per_class", "validation_limit_per_class")
"""Options that a generated source does not take."""
FOR_GENERATED = ("train_per_class", "validation_per_class")
"""Options of generated sources alone."""
THREADS_A_SHARD = 4
"""Number of threads of this process that work on the same shard."""


class KindChoice(click.ParamType):
    """One of the registered sources that read a location, looked up when the command runs."""

    name = "kind"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The value, or click's complaint that lists the registered names."""
        return str(self._choice().convert(value, param, ctx))

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        """The names, for the help text."""
        return self._choice().get_metavar(param, ctx)

    @staticmethod
    def _choice() -> click.Choice:
        return click.Choice([kind for kind, source in SOURCES.items() if not source.generated])


class CountOrShare(click.ParamType):
    """A number of images, such as 10, or a share of them, such as 1%; converted to both, one of them 0."""

    name = "count or share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, float]:
        """(count, share), or click's complaint."""
        if isinstance(value, tuple):
            return value
        text = str(value).strip()
        try:
            if text.endswith("%") and 0 <= (percent := float(text[:-1])) <= 100:
                return 0, percent / 100
            if (count := int(text)) >= 0:
                return count, 0.0
        except ValueError:
            pass
        raise click.BadParameter(f"{value!r} is neither a number of images, such as 10, nor a share, such as 1%")


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="[SOURCE] OUTPUT")
@click.option(
    "--kind",
    type=KindChoice(),
    help="Kind of SOURCE  [default: recognized by its files]",
)
@click.option("--classes", metavar="A,B,…", help="Only these classes, by id or name  [default: all]")
@click.option("--limit-per-class", type=click.IntRange(min=1), help="Largest number of training images of each class.")
@click.option(
    "--validation-limit-per-class",
    type=click.IntRange(min=1),
    help="Largest number of validation images of each class.",
)
@click.option(
    "--encoding",
    type=click.Choice(["jpeg", "raw", "mixed"]),
    default="jpeg",
    show_default=True,
    help="Store JPEG files, raw pixels (ten times the disk space, a tenth of the loading time), or a mix of both.",
)
@click.option(
    "--raw-share",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Fraction of images stored as pixels, for mixed  [default: 0.5]",
)
@click.option(
    "--max-side", type=click.IntRange(8, 65535), help="Longest side stored, in pixels  [default: 512; raw: 256]"
)
@click.option("--quality", type=click.IntRange(1, 100), help="JPEG quality of re-encoded images  [default: 95]")
@click.option(
    "--shard-samples", type=click.IntRange(min=1), help="Number of images in a file of the output  [default: 4096]"
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of the order of images, and of generated textures.",
)
@click.option(
    "--class-names",
    metavar="FILE",
    help="Text file with a line 'id name' for each class  [default: LOC_synset_mapping.txt or classes.txt in SOURCE, "
    "and ImageNet's names for its ids]",
)
@click.option(
    "--allow-damaged",
    type=CountOrShare(),
    default="0",
    show_default=True,
    metavar="N|P%",
    help="Leave out up to N images, or P percent of all, that cannot be decoded, and list them in the manifest.",
)
@click.option("--check", is_flag=True, help="Write nothing: decode every image of SOURCE, and list the damaged ones.")
@click.option(
    "--cluster",
    metavar="ADDRESS",
    help="Write on a Ray cluster whose nodes all access SOURCE and OUTPUT: its address, auto, or local to start one on "
    "this machine  [default: threads of this process]",
)
@click.option("--workers", type=click.IntRange(min=1), help="Number of threads, or of Ray tasks  [default: all CPUs]")
@click.option("--restart", is_flag=True, help="Discard the work of an interrupted command instead of resuming it.")
@click.option(
    "--train-per-class", type=click.IntRange(min=1), help="Training images of each class of textures  [default: 400]"
)
@click.option(
    "--validation-per-class",
    type=click.IntRange(min=1),
    help="Validation images of each class of textures  [default: 100]",
)
def prepare(
    paths: tuple[str, ...], cluster: str | None, workers: int | None, restart: bool, check: bool, **options: Any
) -> None:
    """Convert images to a data set for training: the new folder OUTPUT, with FFCV files and a manifest.json.

    SOURCE is on a disk or at an address such as s3://bucket/images: folders {train,val}/CLASS/* of image files in any
    format (val may also be called valid, validation or test), or a tar or zip archive of them; the ILSVRC2012 archives
    as downloaded; Parquet files or WebDataset shards named after their split; CIFAR-10 in torchvision's layout. The
    word textures, which is also the default, stands for a data set of ten classes that is generated in seconds.

    JPEG files of at most --max-side pixels keep their bytes; all other images are turned upright, converted to RGB,
    shrunk and encoded. Every image is checked by decoding it. Disk space is estimated from a few images, after SOURCE
    is indexed (and unpacked, where it must be) and before the first FFCV file is written. After an interruption, rerun
    the same command to resume: complete files are kept.

    \b
    Examples:
      phasecollapse prepare textures datasets/textures
      phasecollapse prepare ~/imagenette2-160.tar.xz datasets/imagenette
      phasecollapse prepare /data/imagenet --check
      phasecollapse prepare /data/imagenet datasets/imagenet --allow-damaged 0.1% --cluster auto
      phasecollapse prepare /data/imagenet datasets/dogs --classes beagle,basset,n02099601 --limit-per-class 100
      phasecollapse prepare s3://bucket/photos datasets/photos --encoding raw --max-side 256
    """
    if check and len(paths) == 1:
        paths = (*paths, "checked")
        if cluster:
            raise UserError("--check: name an OUTPUT, too: what SOURCE unpacks must be where all nodes see it")
    if "" in paths:
        raise UserError(f"{'OUTPUT' if paths[-1] == '' else 'SOURCE'} is empty: name a path")
    *given, output = paths
    if len(given) > 1:
        raise UserError(f"prepare takes a SOURCE and an OUTPUT, but got {len(paths)} arguments: {' '.join(paths)}")
    if "://" in output:
        raise UserError(f"OUTPUT: {output} is an address: prepare into a folder on this machine, and copy it there")
    name = given[0] if given else DEFAULT_SOURCE
    if not given and Path(output, "train").is_dir():
        raise UserError(
            f"{output} looks like a source of images: name an output too, 'phasecollapse prepare {output} OUTPUT'"
        )
    source = _select(_open_source(name, options), options)
    options["allow_damaged"], options["allow_damaged_share"] = options["allow_damaged"]
    spec = _make_spec(source, options)
    with _executor(cluster, workers) as (executor, threads, progress):
        if check:
            _check(source, Path(output), spec, executor, threads, progress)
            return
        prepared = _write(source, Path(output), spec, executor, threads, restart, progress)
    for sentence in _without_images(prepared.manifest):
        click.echo(f"warning: {sentence}", err=True)
    click.echo(_summarize(prepared, Path(output)))


def _open_source(name: str, options: dict[str, Any]) -> ImageSource:
    per_class = {key: options.pop(key) for key in FOR_GENERATED}
    if name in SOURCES and SOURCES[name].generated:
        _refuse({key: options[key] for key in FOR_IMAGES}, f"images of your own, not for {name}")
        del options["kind"], options["class_names"]
        seed = {"seed": options["seed"]} if "seed" in SOURCES[name].options else {}
        return open_source(name, kind=name, **seed, **per_class)
    _refuse(per_class, f"{DEFAULT_SOURCE}, not for {name}")
    return open_source(name, options.pop("class_names"), options.pop("kind"))


def _select(source: ImageSource, options: dict[str, Any]) -> ImageSource:
    given = csv.reader([options.pop("classes") or ""], skipinitialspace=True)  # a name with a comma stands in quotes
    classes = tuple(name.strip() for row in given for name in row if name.strip())
    limit, validation_limit = options.pop("limit_per_class"), options.pop("validation_limit_per_class")
    if not classes and limit is None and validation_limit is None:
        return source
    from data_prep.prepare.selection import Selection

    return Selection(source, classes, limit, validation_limit, options["seed"])


def _make_spec(source: ImageSource, options: dict[str, Any]) -> PrepareSpec:
    from data_prep.prepare.spec import PrepareSpec

    encoding = options["encoding"]
    if options["raw_share"] is not None and encoding != "mixed":
        raise UserError(f"--raw-share is for --encoding mixed, not for {encoding}: leave it out")
    return PrepareSpec.of(source, **{key: value for key, value in options.items() if value is not None})


def _refuse(options: Mapping[str, object], message: str) -> None:
    for name, value in options.items():
        if value is not None:
            raise UserError(f"--{name.replace('_', '-')} is for {message}: leave it out")


@contextmanager
def _executor(cluster: str | None, count: int | None) -> Iterator[tuple[Executor, int, _Progress]]:
    """The executor of shard tasks, the number of threads of each task, and the progress that they report to."""
    from data_prep.common.parallel import RayExecutor, ThreadExecutor, cores

    progress = _Progress()
    if cluster is None:
        threads = count or cores()
        shards = max(2, threads // THREADS_A_SHARD)  # while one is flushed to disk, another uses the CPUs
        yield ThreadExecutor(shards, progress.advance), min(threads, THREADS_A_SHARD), progress
        return
    from data_prep.common.ray_cluster import connect

    with connect(None if cluster == "local" else cluster):
        yield RayExecutor(count, progress.advance), 1, progress


class _Progress:
    """Progress of writing, which is shown once the number of images is known."""

    def __init__(self) -> None:
        self.advance: Advance = lambda units: self._advance(units)
        self._advance: Advance = lambda units: None

    @contextmanager
    def shown(self, total: int) -> Iterator[None]:
        """Shows progress towards `total` images while the body runs."""
        from data_prep.common.progress import image_progress

        with image_progress(total) as self._advance:
            yield
        self._advance = lambda units: None


def _warn_of_passed_over(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        click.echo(f"warning: {sentence}", err=True)


def _write(
    source: ImageSource,
    output: Path,
    spec: PrepareSpec,
    executor: Executor,
    threads: int,
    restart: bool,
    progress: _Progress,
) -> PrepareResult:
    from data_prep.common.progress import growth_shown
    from data_prep.prepare.dataset_writer import prepare

    with ExitStack() as bar:

        def on_estimate(estimate: Estimate) -> None:
            _warn_of_passed_over(estimate.passed_over)
            click.echo(_format_estimate(estimate), err=True)
            bar.enter_context(progress.shown(estimate.images))

        return prepare(
            source,
            output,
            spec,
            executor,
            threads=threads,
            restart=restart,
            while_listing=lambda folder: growth_shown(f"listing {source.location}", folder),
            on_estimate=on_estimate,
        )


def _check(
    source: ImageSource, output: Path, spec: PrepareSpec, executor: Executor, threads: int, progress: _Progress
) -> None:
    """Prints the damaged images; ends with status 1 if there are any."""
    from data_prep.common.progress import growth_shown
    from data_prep.prepare.survey import survey

    with ExitStack() as bar:

        def on_index(index: ImageIndex) -> None:
            _warn_of_passed_over(index.passed_over)
            bar.enter_context(progress.shown(index.samples()))

        found = survey(
            source,
            spec,
            executor,
            output.parent,
            threads=threads,
            while_listing=lambda folder: growth_shown(f"listing {source.location}", folder),
            on_index=on_index,
        )
    for each in found.damaged:
        click.echo(printable(f"{each.image}: {each.reason}"))
    click.echo(
        f"{found.images} images of {spec.location}, {len(found.damaged)} of them damaged", err=bool(found.damaged)
    )
    if found.damaged:
        sys.exit(1)


def _format_estimate(estimate: Estimate) -> str:
    from data_prep.common.progress import format_duration

    return (
        f"{estimate.images} images to write: about {estimate.bytes / 1e9:.2f} GB ({estimate.free_bytes / 1e9:.0f} GB "
        f"free) and {format_duration(estimate.seconds)}"
    )


def _without_images(manifest: Manifest) -> list[str]:
    """A sentence for each split in which classes have no images, which no network can learn or be measured on."""
    sentences = []
    for name, split in manifest.splits.items():
        empty = [each.id for each, count in zip(manifest.classes, split.samples_per_class, strict=True) if count == 0]
        if empty:
            named = printable(", ".join(empty[:3])) + (f" and {len(empty) - 3} more" if len(empty) > 3 else "")
            folders = {folder for each in split.left_out for folder in each.image.split("/")[:-1]}
            why = ", as all of them are damaged and left out" if folders.issuperset(empty) else ""
            sentences.append(
                f"{count_of(len(empty), 'class')} without images in the {name} split{why}: {named}; add images, or "
                "name the others by --classes"
            )
    return sentences


def _summarize(prepared: PrepareResult, output: Path) -> str:
    manifest = prepared.manifest
    counts = " and ".join(f"{split.samples} {name}" for name, split in manifest.splits.items())
    megabytes = sum(file.bytes for split in manifest.splits.values() for file in split.files) / 1e6
    state = "was already prepared" if prepared.already_there else "is prepared"
    sides = " to ".join(str(side) for side in sorted({manifest.min_side, manifest.max_side}))
    untouched = sum(split.untouched for split in manifest.splits.values())
    samples = sum(split.samples for split in manifest.splits.values())
    left_out = sum(len(split.left_out) for split in manifest.splits.values())
    damaged = f", {count_of(left_out, 'damaged image')} left out" if left_out else ""
    return (
        f"{output} {state}: {counts} images of {count_of(len(manifest.classes), 'class')}, sides of {sides} "
        f"pixels, {megabytes:.1f} MB, {100 * untouched / samples:.0f} % of the images unchanged"
        f"{damaged}, digest {manifest.digest[:12]}"
    )
