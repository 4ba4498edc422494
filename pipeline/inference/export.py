"""Exports a trained network to one file that needs none of this code: an ONNX model or a torch.export program.

    pixels   uint8 (B, H, W, 3), RGB; any B, H and W as in training
    logits   float32 (B, classes)

The file includes the normalization of pixels, the names and ids of the classes, and what was done to images before.
Before it gets its name, it is run on batches of sizes other than the traced one, and must give the network's logits.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_prep.common.errors import UserError
from data_prep.common.files import rename_durably
from data_prep.prepare.spec import MAX_SIDE
from pipeline.runs import paths, trained_model
from pipeline.runs.trained_model import TrainedModel

SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch-export": ()}
"""Packages that a format needs besides PyTorch."""
CLASSES_FILE, IDS_FILE, PREPROCESSING_FILE = "classes.json", "class_ids.json", "preprocessing.json"
"""Extra files in a torch.export file; ONNX files have these metadata keys without the suffix."""
TRACED_BATCH, CHECKED_BATCHES = 2, (1, 3)
TOLERANCE = 1e-4
"""Largest accepted difference between logits, relative to the largest logit if that is above 1."""
LARGEST_ONNX = 2**31 - 1
"""Maximum size of an ONNX file, in bytes."""

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Exported:
    """An exported file."""

    path: Path
    kind: str
    size: int
    """Size in bytes."""
    side: int
    """Height and width of the images, in pixels."""
    classes: int
    difference: float
    """Largest difference between the file's logits and the network's."""


def export(
    source: Path,
    kind: str,
    output: Path | None = None,
    *,
    replace: bool = False,
    on_phase: Callable[[str], None] = lambda phase: None,
) -> Exported:
    """Exports a trained network to one file, and compares the file's logits with the network's.

    Args:
        source: folder of a run, whose latest checkpoint is used, or of one checkpoint.
        kind: onnx or torch-export.
        output: the file; by default named after `source`, in the current folder.
        replace: replace an existing file.
        on_phase: called with what is done next, in a few words.

    Raises:
        UserError: `source` is not a checkpoint, `output` cannot be written, a package is missing, or the logits of the
            file differ from the network's.
    """
    for package in PACKAGES[kind]:
        _needed(package)
    path = output or Path(_name(source) + SUFFIXES[kind])
    if path.suffix != SUFFIXES[kind]:
        name = path.name or path
        raise UserError(f"--output: the name of a file in format {kind} must end in {SUFFIXES[kind]}, not {name}")
    _check_output(path, replace)
    network = trained_model.load(source)
    write, load = {"onnx": (_write_onnx, _load_onnx), "torch-export": (_write_program, _load_program)}[kind]
    try:
        with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as scratch, torch.no_grad():
            partial = Path(scratch) / path.name
            on_phase("tracing the network")
            program = _trace(network)
            on_phase("writing the file")
            write(program, network, partial)
            on_phase("comparing its logits with the network's")
            difference = _compare(load(partial, network.classes), network)
            size = partial.stat().st_size
            rename_durably(partial, path)
    except OSError as error:
        raise UserError(f"--output: {path} cannot be written: {error.strerror}") from None
    return Exported(path, kind, size, network.settings.data.image_size, len(network.classes), difference)


def _check_output(path: Path, replace: bool) -> None:
    """Finds out before the work whether the file can be written.

    Raises:
        UserError: it cannot.
    """
    if path.is_dir():
        raise UserError(f"--output: {path} is a folder: name a file in it")
    if path.exists() and not replace:
        raise UserError(f"--output: {path} exists: name another file, or replace it with --force")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"--output: {path} cannot be written: {error.strerror}; name another file") from None


def summary(written: Exported) -> str:
    """The file, how it was checked, and how to use it, as text."""
    runner = "onnxruntime" if written.kind == "onnx" else "torch.export"
    if written.kind == "onnx":
        usage = f"""\
  session = onnxruntime.InferenceSession("{written.path}")
  (logits,) = session.run(["logits"], {{"pixels": pixels}})  # a NumPy array
  classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])"""
    else:
        usage = f"""\
  program = torch.export.load("{written.path}", extra_files=(files := {{"{CLASSES_FILE}": ""}})).module()
  logits = program(pixels)  # a tensor
  classes = json.loads(files["{CLASSES_FILE}"])"""
    return (
        f"{written.path}: {written.size / 1e6:.1f} MB; pixels, uint8 (batch, {written.side}, {written.side}, 3) → "
        f"logits, float32 (batch, {written.classes})\n"
        f"checked with {runner} on batches of {' and '.join(map(str, CHECKED_BATCHES))} random images: "
        f"logits differ from the network's by {written.difference:.1e} at most\n"
        f"to use it in Python:\n{usage}"
    )


def _name(source: Path) -> str:
    """The name of the run; for a checkpoint, the names of its run and of the checkpoint."""
    source = source.absolute()
    return f"{source.parent.parent.name}-{source.name}" if source.parent.name == paths.CHECKPOINTS else source.name


def _pixels(batch: int, network: TrainedModel) -> Tensor:
    side = network.settings.data.image_size
    generator = torch.Generator().manual_seed(batch)
    return torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8, generator=generator)


def _trace(network: TrainedModel) -> torch.export.ExportedProgram:
    # A traced batch of 1 would become a constant. Without gradients, autograd functions are traced like others.
    batch = torch.export.Dim("batch", min=1)
    # Files store weights in contiguous order.
    module = network.network.to(memory_format=torch.contiguous_format)
    program = torch.export.export(
        module, (_pixels(TRACED_BATCH, network),), dynamic_shapes={"pixels": {0: batch}}, strict=False
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names folders on this machine
    return program


def _extras(network: TrainedModel) -> dict[str, str]:
    """What an image's pixels and a logit mean, as JSON by the name of its file."""
    data = network.settings.data
    preprocessing = {
        "orientation": "upright, by EXIF",
        "color": "RGB, transparency on white",
        "longest_side": MAX_SIDE["jpeg"],
        "longest_side_filter": "triangle, antialiased (Pillow's BILINEAR)",
        "crop": "central square",
        "crop_share_of_shorter_side": data.center_crop,
        "size": data.image_size,
        "size_filter": "area average (Pillow's BOX), linear where it enlarges",
        "type": "uint8",
    }
    return {
        CLASSES_FILE: json.dumps(network.classes),
        IDS_FILE: json.dumps(network.class_ids),
        PREPROCESSING_FILE: json.dumps(preprocessing),
    }


def _write_program(program: torch.export.ExportedProgram, network: TrainedModel, path: Path) -> None:
    torch.export.save(program, path, extra_files=_extras(network))


def _load_program(path: Path, classes: tuple[str, ...]) -> Run:
    files = {CLASSES_FILE: ""}
    program = torch.export.load(path, extra_files=files).module()
    _check_classes(files[CLASSES_FILE], classes)
    return program


def _write_onnx(program: torch.export.ExportedProgram, network: TrainedModel, path: Path) -> None:
    onnx = _needed("onnx")
    written = torch.onnx.export(
        program, (), dynamo=True, input_names=["pixels"], output_names=["logits"], external_data=False, verbose=False
    )
    model = written.model_proto  # type: ignore[union-attr]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.helper.set_model_props(model, {name.removesuffix(".json"): text for name, text in _extras(network).items()})
    if model.ByteSize() > LARGEST_ONNX:
        raise UserError("--format: the network is larger than 2 GiB, the maximum of an ONNX file: use torch-export")
    path.write_bytes(model.SerializeToString())


def _load_onnx(path: Path, classes: tuple[str, ...]) -> Run:
    runtime = _needed("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    _check_classes(session.get_modelmeta().custom_metadata_map["classes"], classes)
    return lambda pixels: torch.from_numpy(session.run(["logits"], {"pixels": pixels.numpy()})[0])


def _needed(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"--format onnx needs the package {package} ({error}): pip install onnx onnxscript onnxruntime, "
            "or pip install 'phasecollapse[export]'"
        ) from None


def _check_classes(stored: str, classes: tuple[str, ...]) -> None:
    if json.loads(stored) != list(classes):
        raise UserError("the exported file has lost the names of the classes, so it was not kept")


def _compare(run: Run, network: TrainedModel) -> float:
    """The largest difference between the logits of an exported file and the network's.

    Raises:
        UserError: it is larger than rounding explains.
    """
    differences = []
    for batch in CHECKED_BATCHES:
        pixels = _pixels(batch, network)
        expected = network.network(pixels)
        difference = (run(pixels) - expected).abs().max()
        if not difference <= TOLERANCE * expected.abs().max().clamp_min(1):
            raise UserError(
                f"the exported file gives other logits than the network (they differ by {difference:.1e}), so it was "
                "not kept: try the other --format"
            )
        differences.append(difference.item())
    return max(differences)
