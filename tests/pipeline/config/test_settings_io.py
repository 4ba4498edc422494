"""Claims about the settings tree: what is allowed, and what a user reads when something is not."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from data_prep.common.errors import UserError
from data_prep.common.registry import Registry
from pipeline.config import settings_io
from pipeline.config.model_schema import ScatteringSettings
from pipeline.config.registered import Registered
from pipeline.config.schema import ClusterSettings, Settings
from pipeline.config.section import Section
from pipeline.config.settings_io import flatten, resolve, sections
from tuning import config as search_config


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


MINIMAL = "data: {path: datasets/x}\n"


def test_overrides_are_read_as_yaml_and_win_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "model: {widths: [8, 8]}\ntraining: {epochs: 3}\n")
    settings = settings_io.load(path, ["training.epochs=5", "model.widths=[4, 5, 6]", "data.flip=false", "run.name=a"])
    assert settings.training.epochs == 5
    assert settings.model.widths == (4, 5, 6)
    assert settings.data.flip is False
    assert settings.run.name == "a"
    assert settings.training.batch_size == 128, "settings that are not given have their defaults"


@pytest.mark.parametrize(
    "text", ["20240101", "1_2", "on", "1e3", "0123456789", "2024-01-01", "1.5", "0x1f", "2024-13-45"]
)
def test_what_a_field_of_text_is_given_stays_as_it_was_written(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, MINIMAL)
    settings = settings_io.load(path, [f"run.name={text}", f"tracking.experiment={text}"])
    assert (settings.run.name, settings.tracking.experiment) == (text, text)
    assert settings_io.load(path, ["data.digest=0123456789"]).data.digest == "0123456789"
    assert settings_io.load(path, ["run.name=null", "run.name='12'"]).run.name == "12"
    assert settings_io.load(path, ["run.name=null"]).run.name is None
    search = write(tmp_path, "train: {data: {path: x}}\nsearch: {space: {depth: [2], width: [4]}}\n")
    assert search_config.load(search, [f"search.name={text}"]).search.name == text


def test_a_number_in_a_file_where_text_belongs_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'run\.name' is 20240101: it is text: put it into quotes"):
        settings_io.load(write(tmp_path, MINIMAL + "run: {name: 20240101}\n"))


def test_the_resolved_tree_reads_back_equal(tmp_path: Path) -> None:
    settings = settings_io.load(write(tmp_path, MINIMAL), ["data.crop_scale=[0.1, 0.9]", "data.classes=7"])
    assert settings_io.load(write(tmp_path, settings_io.to_yaml(settings))) == settings


def test_settings_cannot_be_changed() -> None:
    settings = settings_io.resolve(Settings, {"data": {"path": "x"}}, "test")
    with pytest.raises(ValidationError):
        settings.training.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (
            "training.epoch=3",
            r"^override 'training\.epoch=3': unknown .* 'training\.epoch': did you mean 'training\.epochs'\?",
        ),
        ("training.xyz=3", r"unknown setting 'training\.xyz'; allowed here: epochs, batch_size"),
        ("trainig.epochs=3", r"unknown setting 'trainig': did you mean 'training'\?"),
        ("training.learning_rate=3", r"'training\.learning_rate': did you mean 'optimizer\.learning_rate'\?"),
        (
            "training.epochs=1.5",
            r"^override 'training\.epochs=1\.5': setting .* must be a whole number$",
        ),
        ("training.epochs=0", r"setting 'training\.epochs' is 0: must be at least 1"),
        ("training.epochs=many", r"setting 'training\.epochs' is 'many': must be a whole number$"),
        ("model.nonlinearity=relu", r"setting 'model\.nonlinearity' is 'relu': .*'collapse'"),
        ("model.angles=5", r"setting 'model\.angles' is 5: .*multiple of 2"),
        ("model.widths=[]", r"setting 'model\.widths' is \[\]"),
        ("run.name=a/b", r"setting 'run\.name' is 'a/b': must consist of letters, digits, dots"),
        (f"run.name={'x' * 256}", r"'run\.name' is 'x+': must have at most 255 characters"),
        ("data.digest=xyz", r"'data\.digest' is 'xyz': must consist of 8 to 64 of the digits"),
        ("data.crop_scale=[0.9, 0.1]", r"data: crop_scale must satisfy"),
        ("training.batch_size=3", r"training\.batch_size \(3\) must be at least twice cluster\.workers \(2\)"),
        ("optimizer.warmup_epochs=99", r"optimizer\.warmup_epochs must not exceed training\.epochs"),
        ("optimizer.momentum=0", r"nesterov needs momentum above 0"),
        ("data.path.x=1", r"'path' is a value, not a section"),
        ("training.epochs", r"override 'training\.epochs' is not of the form section\.field=value"),
        ("training.epochs=[", r"the value is not valid YAML"),
        ("training.epochs=2024-13-45", r"the value is not valid YAML"),
        ("training.epochs=" + "9" * 5000, r"the value is not valid YAML"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_what_is_allowed(
    tmp_path: Path, assignment: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        settings_io.load(write(tmp_path, MINIMAL), [assignment])
    assert "\n" not in str(caught.value), "one sentence"


WRONG = (None, "x/", "x" * 300, 1.5, -1, 10**30, float("inf"), [], [0], ["x/", -1.5], [1, 2, 3], {"x": 1}, True, "a.b")


@pytest.mark.parametrize("tree", [Settings, search_config.SearchSettings])
def test_no_setting_is_refused_in_the_words_of_a_library(tree: type[Section]) -> None:
    """Every setting of both trees, with values of every kind."""
    complete: dict[str, Any] = {"data": {"path": "x"}}
    if tree is not Settings:
        complete = {"train": complete, "search": {"name": "s", "space": {"depth": [1], "width": [2]}}}
    refused = 0
    for path, value in itertools.product(settings_io.paths(tree), WRONG):
        content = settings_io.override(complete, [f"{path}={json.dumps(value)}"])
        try:
            resolve(tree, content, "f.yaml")
        except UserError as error:
            refused += 1
            for raw in ("Input", "should", "valid ", "unable", "Value error", "tagged", "regex"):
                assert raw not in str(error), (path, value, str(error))
    assert refused > 300


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {epochs: 3}\n", r"run\.yaml: setting 'data' is missing"),
        ("data: {}\n", r"run\.yaml: setting 'data\.path' is missing"),
        ("- a\n- b\n", r"run\.yaml must hold sections such as 'data:', not a list"),
        ("data: {path: x\n", r"run\.yaml is not valid YAML: .*line 2"),
        ("data: !!python/object/apply:os.system ['true']\n", r"run\.yaml is not valid YAML"),
        ("data: {path: \x00}\n", r"run\.yaml"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings_io.load(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: " + "x" * 2**20, "it has more than 1,048,576 bytes"),
        (
            "a: &a [x, x]\n"
            + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(20)),
            "aliases",
        ),
        ("a: &a [*a]\n", "aliases written out"),
        ("a: " + "[" * 500_000, "more than 100 lists and mappings inside each other"),
        ("- " * 500_000, "more than 100 lists and mappings inside each other"),
        ("data: {path: x}\nmodel: {}\ndata: {path: y}\n", "it has data twice, in line 3 again"),
        ("data: {path: x, flip: true, flip: false}\n", "it has flip twice, in line 1 again"),
    ],
)
def test_settings_that_multiply_themselves_are_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError, match=rf"run\.yaml cannot be read: .*{says}"):
        settings_io.load(write(tmp_path, text))


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml does not exist"):
        settings_io.load(tmp_path / "nowhere.yaml")
    (tmp_path / "image.yaml").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(UserError, match=r"image\.yaml cannot be read"):
        settings_io.load(tmp_path / "image.yaml")
    with pytest.raises(UserError, match=r"is a folder: name a file, such as its run\.yaml"):
        settings_io.load(tmp_path)


def test_the_configuration_of_a_search_is_distinguished_from_that_of_a_run(tmp_path: Path) -> None:
    run, search = write(tmp_path, MINIMAL), tmp_path / "search.yaml"
    search.write_text("train: {data: {path: x}}\nsearch: {name: a}\n", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"search\.yaml describes a search, not a run: phasecollapse tune .*search\.yaml"
    ):
        settings_io.load(search)
    with pytest.raises(UserError, match=r"run\.yaml describes a run, not a search: phasecollapse train .*run\.yaml"):
        search_config.load(run)


def test_differences_name_old_and_new_value() -> None:
    before = settings_io.resolve(Settings, {"data": {"path": "x"}}, "test")
    after = settings_io.resolve(Settings, {"data": {"path": "x"}, "training": {"epochs": 4, "seed": 2}}, "test")
    assert settings_io.differences(before, after) == ["training.epochs: 30 → 4", "training.seed: 0 → 2"]
    assert settings_io.differences(before, after, ignored={"training.epochs"}) == ["training.seed: 0 → 2"]
    assert settings_io.differences(before, before) == []


def test_every_field_that_needs_words_has_them() -> None:
    def fields(section: type[BaseModel]) -> list[tuple[str, str | None]]:
        return [
            (f"{section.__name__}.{name}", field.description)
            for name, field in section.model_fields.items()
            if not sections(field.annotation)
        ]

    every = [section for field in Settings.model_fields.values() for section in sections(field.annotation).values()]
    described = [pair for section in every for pair in fields(section)]
    speak_for_themselves = {"momentum", "nesterov", "step_epochs", "step_factor", "epochs", "label_smoothing"}
    speak_for_themselves |= {"experiment"}
    silent = [name for name, text in described if not text and name.split(".")[1] not in speak_for_themselves]
    assert silent == []


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({"family": "vit"}, "f.yaml: setting 'model.family' is 'vit': must be 'scattering' or 'resnet'"),
        ({"family": "resnet", "depth": 19}, "f.yaml: setting 'model.depth' is 19: must be 18, 20, 34 or 50"),
        ({"family": "resnet", "widths": [1]}, "f.yaml: unknown setting 'model.widths'; allowed here: family, depth, "),
        ({"depth": 18}, "f.yaml: unknown setting 'model.depth'; allowed here: family, widths, "),
        ({"widths": [4, 0]}, "f.yaml: setting 'model.widths.1' is 0: must be at least 1"),
        ({"octaves": ["full"]}, "f.yaml: model: octaves names 1 blocks, and widths 4"),
        (3, "f.yaml: setting 'model' is 3: must be a section, with settings of its own"),
    ],
)
def test_wrong_networks_are_named_by_their_field(model: object, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(Settings, {"data": {"path": "x"}, "model": model}, "f.yaml")
    assert str(caught.value).startswith(sentence)


def test_a_network_is_of_the_family_it_names() -> None:
    models = [{}, {"family": "scattering", "widths": [3]}, {"family": "resnet", "depth": 50}]
    runs = [resolve(Settings, {"data": {"path": "x"}, "model": model}, "f") for model in models]
    assert [run.model.family for run in runs] == ["scattering", "scattering", "resnet"]
    assert flatten(runs[2])["model.depth"] == 50


def test_a_search_is_of_scattering_networks(tmp_path: Path) -> None:
    text = "train: {data: {path: x}, model: {family: resnet}}\nsearch: {name: s, space: {depth: [1], width: [2]}}\n"
    with pytest.raises(UserError, match=r"train\.model\.family must be scattering, not resnet"):
        search_config.load(write(tmp_path, text))


def test_widths_are_multiplied_and_rounded() -> None:
    assert ScatteringSettings(widths=(3, 4, 1), width_multiplier=0.4).channels == (1, 2, 1)


def test_a_worker_has_one_thread_and_training_without_a_cluster_all_there_are() -> None:
    assert ClusterSettings().threads == 1
    assert ClusterSettings(workers=0).threads == len(os.sched_getaffinity(0))
    assert ClusterSettings(workers=0, cpus_per_worker=7).threads == 7


def test_where_a_process_cannot_be_bound_to_cores_it_has_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert ClusterSettings(workers=0).threads == os.cpu_count()


EMPTY: Registry[int] = Registry("kind")


def test_momentum_is_checked_for_the_optimizer_that_has_it(tmp_path: Path) -> None:
    changes = ["optimizer.momentum=0", "optimizer.kind=adamw"]
    assert settings_io.load(write(tmp_path, MINIMAL), changes).optimizer.momentum == 0


def test_the_names_of_lists_and_of_single_choices_are_explained() -> None:
    shown = " ".join(settings_io.explain(search_config.SearchSettings).split())
    assert "Any of: grayscale, random_erasing." in shown and "One of: grid, random, optuna." in shown


def test_a_name_is_refused_where_none_is_registered() -> None:
    with pytest.raises(
        ValueError, match=r"must be what an installed package or .*_EXTENSIONS registers, and none does"
    ):
        TypeAdapter(Annotated[str, Registered(f"{__name__}:EMPTY")]).validate_python("mine")


@pytest.mark.parametrize(
    "override, says",
    [
        ("data.image_size=65536", "data.image_size"),
        ("model.widths=[100000]", "widths times width_multiplier must be at most 8192"),
        ("model.width_multiplier=99", "widths times width_multiplier must be at most 8192"),
    ],
)
def test_sizes_that_no_machine_holds_are_refused(tmp_path: Path, override: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        settings_io.load(write(tmp_path, MINIMAL), ["model.widths=[128]", override])
