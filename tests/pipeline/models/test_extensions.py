"""Claims about the networks' seam: a module outside the package adds a non-linearity to each family."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.runs import final_weights, write_configuration

MODULE = """
import torch
from pipeline.models import nonlinearities, resnet
from pipeline.models.nonlinearities import EPSILON, Nonlinearity
from pipeline.models.resnet import RealNonlinearity


def root(z, gain):
    r = nonlinearities.modulus(z)
    return gain * torch.sqrt(r + EPSILON)


def turned(z, angle):
    cos, sin, (re, im) = torch.cos(angle), torch.sin(angle), z.unbind(1)
    return torch.stack([cos * re - sin * im, sin * re + cos * im], dim=1)


def leaky(x, slope):
    return torch.where(x > 0, x, slope * x)


nonlinearities.NONLINEARITIES.register("root", Nonlinearity(root, {"gain": 2.0}, real=True))
nonlinearities.NONLINEARITIES.register("turned", Nonlinearity(turned, {"angle": 0.5}))
resnet.NONLINEARITIES.register("leaky", RealNonlinearity(leaky, {"slope": 0.25}))
"""
ROOT, TURNED = "model.nonlinearity=root", "model.nonlinearity=turned"
LEAKY = "model={family: resnet, depth: 20, stem: cifar, width_multiplier: 0.25, nonlinearity: leaky}"


def command(folder: Path, *arguments: str) -> str:
    """Standard output of the command, which finds the module in `folder`."""
    (folder / "mine.py").write_text(MODULE, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli.main", *arguments],
        env={**os.environ, "PHASECOLLAPSE_EXTENSIONS": "mine", "PYTHONPATH": f"{folder}:{Path.cwd()}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def layers(description: str) -> dict[str, Any]:
    """Layers of a network by name, from the JSON of ``describe``."""
    return {layer["name"]: layer for layer in json.loads(description)["layers"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "name", "start"),
    [(ROOT, "blocks.0.operator_gain", 2.0), (LEAKY, "layer1.0.rho1.slope", 0.25)],
    ids=["scattering", "resnet"],
)
def test_a_run_learns_the_parameters_of_a_nonlinearity_from_outside(
    change: str, name: str, start: float, textures: Path, tmp_path: Path
) -> None:
    common = ["cluster.workers=0", "run.name=one", "training.epochs=1", "training.batch_size=120"]
    command(tmp_path, "train", str(write_configuration(tmp_path, textures, *common)), change)
    weights = final_weights(tmp_path / "runs" / "one")
    learned = [value for key, value in weights.items() if key.endswith(name)]
    assert len(learned) == 1
    assert 0 < (learned[0] - start).abs().max() < 0.5


@pytest.mark.slow
def test_the_settings_and_the_summary_name_it(textures: Path, tmp_path: Path) -> None:
    listed = " ".join(command(tmp_path, "train", "--settings").split())
    assert "identity, root, turned" in listed.replace("'", "").replace(" | ", ", ")
    assert "rational, leaky" in listed.replace("'", "").replace(" | ", ", ")
    file = str(write_configuration(tmp_path, textures))
    turned, leaky = (layers(command(tmp_path, "describe", file, change, "--json")) for change in (TURNED, LEAKY))
    assert turned["blocks.1.operator"]["does"] == "ρ: turned"
    assert turned["blocks.1.operator"]["complex_channels"] == 4 * 5
    assert turned["blocks.1.operator"]["biases"] == {"blocks.1.operator_angle": 4 * 4}
    assert leaky["layer1.0.rho1"]["does"] == "ρ: leaky"
    assert leaky["layer1.0.rho1"]["learned"] == 4


def test_an_unknown_name_is_refused_with_those_there_are(textures: Path, tmp_path: Path) -> None:
    file = write_configuration(tmp_path, textures, "cluster.workers=0", "model.nonlinearity=relu")
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli.main", "train", str(file), "--dry-run"], capture_output=True, text=True
    )
    names = "'collapse', 'threshold', 'sigmoid', 'tanh', 'unit_modulus', 'power' or 'identity'"
    assert done.returncode == 2
    expected = f"setting 'model.nonlinearity' is 'relu': must be {names}, or what an installed package or a module in "
    assert done.stderr.startswith(f"error: {file}: {expected}")
