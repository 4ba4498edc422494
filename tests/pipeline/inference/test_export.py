"""Claims about networks written into one file."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from data_prep.common.errors import UserError
from pipeline import models
from pipeline.cli import models as model_commands
from pipeline.config.model_schema import ModelSettings, ResNetSettings, ScatteringSettings
from pipeline.inference import export, prediction
from pipeline.runs import paths
from tests.helpers.checkout import ROOT
from tests.helpers.checkpoints import save_checkpoint

RESNET = ResNetSettings(family="resnet", depth=20, stem="cifar", width_multiplier=0.25)
MODELS = {
    "collapse": ScatteringSettings(widths=(3, 4)),
    "sigmoid-skip": ScatteringSettings(widths=(3,), first_factorized_block=1, nonlinearity="sigmoid", skip=True),
    "resnet": RESNET,
}
HERE = str(Path(export.__file__).parent).encode()
CLASSES = ["name of a", "name of b", "name of c"]


def random_pixels(batch: int, size: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8)


def logits_of(network: models.ImageNetwork, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(pixels)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The checkpoint of a small network."""
    save_checkpoint(tmp_path / "saved", RESNET)  # the quickest to trace
    return tmp_path / "saved"


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_onnx_runtime_computes_the_same_logits_for_any_batch(tmp_path: Path, model: ModelSettings) -> None:
    network = save_checkpoint(tmp_path / "saved", model)
    written = export.export(tmp_path / "saved", "onnx", tmp_path / "network.onnx")
    session = onnxruntime.InferenceSession(str(written.path), providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        pixels = random_pixels(batch)
        (logits,) = session.run(["logits"], {"pixels": pixels.numpy()})
        np.testing.assert_allclose(logits, logits_of(network, pixels).numpy(), rtol=1e-4, atol=1e-4)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == CLASSES
    (pixels_in,), (logits_out,) = session.get_inputs(), session.get_outputs()
    assert (pixels_in.shape, pixels_in.type) == (["batch", 16, 16, 3], "tensor(uint8)")
    assert (logits_out.shape, logits_out.type) == (["batch", 3], "tensor(float)")
    content = written.path.read_bytes()
    assert written.size == len(content)
    assert HERE not in content, "files name no folder of this machine"
    onnx.checker.check_model(str(written.path), full_check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["network.onnx", "saved"], "all is in one file"


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_program_of_torch_export_computes_the_same_logits_for_any_batch(tmp_path: Path, model: ModelSettings) -> None:
    network = save_checkpoint(tmp_path / "saved", model)
    written = export.export(tmp_path / "saved", "torch-export", tmp_path / "network.pt2")
    files = {export.CLASSES_FILE: ""}
    program = torch.export.load(written.path, extra_files=files).module()
    for batch in (1, 2, 5):
        pixels = random_pixels(batch)
        torch.testing.assert_close(program(pixels), logits_of(network, pixels), rtol=1e-4, atol=1e-4)
    assert json.loads(files[export.CLASSES_FILE]) == CLASSES
    assert HERE not in written.path.read_bytes(), "files name no folder of this machine"


def test_images_that_are_filtered_in_tiles_are_exported_too(tmp_path: Path) -> None:
    network = save_checkpoint(tmp_path / "saved", ScatteringSettings(widths=(2,)), size=71)
    written = export.export(tmp_path / "saved", "torch-export", tmp_path / "network.pt2")
    pixels = random_pixels(4, 71)
    program = torch.export.load(written.path, extra_files={export.CLASSES_FILE: ""}).module()
    torch.testing.assert_close(program(pixels), logits_of(network, pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_command_says_what_it_wrote_and_how_to_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path / "run" / paths.CHECKPOINTS / "epoch-00002", RESNET)
    monkeypatch.chdir(tmp_path)
    for source, kind in (("run", "onnx"), ("run/checkpoints/epoch-00002", "torch-export")):
        model_commands.export.main([source, "--format", kind], standalone_mode=False)
    shown = capfd.readouterr()
    assert shown.err == ""
    described = r"^run\.onnx: 0\.\d MB; pixels, uint8 \(batch, 16, 16, 3\) → logits, float32 \(batch, 3\)$"
    assert re.search(described, shown.out, re.MULTILINE)
    assert "checked with onnxruntime on batches of 1 and 3 random images: logits differ" in shown.out
    assert re.search(r"^run-epoch-00002\.pt2: 0\.\d MB;", shown.out, re.MULTILINE)
    # The lines for use work as they stand.
    for file, pixels in (("run.onnx", random_pixels(2).numpy()), ("run-epoch-00002.pt2", random_pixels(2))):
        usage = [line.strip() for line in shown.out.splitlines() if line.startswith("  ")]
        lines = usage[:3] if file == "run.onnx" else usage[3:]
        names = {"onnxruntime": onnxruntime, "torch": torch, "json": json, "pixels": pixels}
        exec("\n".join(lines), names)
        assert tuple(names["logits"].shape) == (2, 3)  # type: ignore[attr-defined]
        assert names["classes"] == CLASSES


@pytest.mark.slow
def test_the_lines_of_the_documentation_predict_what_the_command_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On photograph-like images of many sizes, a gray one and a turned one."""
    save_checkpoint(tmp_path / "saved", ScatteringSettings(widths=(4, 8)), size=64)
    export.export(tmp_path / "saved", "onnx", tmp_path / "NAME.onnx")
    monkeypatch.chdir(tmp_path)
    guide = (ROOT / "docs" / "guides" / "deploy.md").read_text(encoding="utf-8")
    [lines] = [block for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "onnxruntime" in block]
    exif = Image.Exif()
    exif[0x0112] = 6
    generator = np.random.default_rng(0)
    for height, width, turned in (
        (480, 640, False),
        (900, 1300, False),
        (70, 64, False),
        (50, 40, False),
        (90, 70, True),
    ):
        coarse = generator.integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        image.save("photo.jpg", quality=95, **({"exif": exif} if turned else {}))
        names: dict[str, Any] = {"print": lambda *values: None}
        exec(lines, names)
        [one] = prediction.predict(tmp_path / "saved", [Path("photo.jpg")], top=3)
        ours = [{answer.name: answer.probability for answer in one.answers}[name] for name in names["classes"]]
        theirs = torch.from_numpy(names["logits"][0]).softmax(0).tolist()
        assert np.abs(np.subtract(ours, theirs)).max() < 0.03
        ids = json.loads(names["session"].get_modelmeta().custom_metadata_map["class_ids"])
        assert ids == [f"n-{letter}" for letter in "abc"]


def test_a_file_is_replaced_only_when_asked(saved: Path, tmp_path: Path) -> None:
    output = tmp_path / "network.pt2"
    output.write_text("precious")
    with pytest.raises(UserError, match=r"exists: name another file, or replace it with --force"):
        export.export(saved, "torch-export", output)
    assert output.read_text() == "precious"
    arguments = [str(saved), "--format", "torch-export", "--output", str(output)]
    model_commands.export.main([*arguments, "--force"], standalone_mode=False)
    assert output.stat().st_size > 100_000


def test_a_file_that_computes_something_else_is_not_kept(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = torch.export.load

    def wrong(path: Path, **options: Any) -> Any:
        program = load(path, **options).module()
        return SimpleNamespace(module=lambda: lambda pixels: program(pixels) + 0.01)

    monkeypatch.setattr(torch.export, "load", wrong)
    with pytest.raises(UserError, match=r"gives other logits than the network \(they differ by 1\.0e-02\)"):
        export.export(saved, "torch-export", tmp_path / "network.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs the package {package} .*pip install onnx onnxscript onnxruntime"):
        export.export(saved, "onnx", tmp_path / "network.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_what_cannot_be_written_or_read_is_refused_in_a_sentence(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere does not exist"):
        export.export(tmp_path / "nowhere", "onnx")
    with pytest.raises(UserError, match=r"format torch-export must end in \.pt2, not network\.onnx"):
        export.export(saved, "torch-export", tmp_path / "network.onnx")
    (tmp_path / "folder.pt2").mkdir()
    phases: list[str] = []
    for name, message in (("no/network", "cannot be written: No such file or directory"), ("folder", "is a folder")):
        with pytest.raises(UserError, match=message):
            export.export(saved, "torch-export", tmp_path / f"{name}.pt2", replace=True, on_phase=phases.append)
    assert phases == [], "before the work"
