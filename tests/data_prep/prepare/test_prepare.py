"""The command `prepare`: every image is stored once, what is refused, and that nothing half-written stays."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from filelock import FileLock

from data_prep.cli import prepare as command
from data_prep.common.errors import UserError
from data_prep.common.files import MADE_HERE
from data_prep.common.parallel import ThreadExecutor
from data_prep.format.beton import Shard
from data_prep.format.manifest import load_manifest
from data_prep.prepare import shard_writer, spec
from data_prep.prepare.dataset_writer import prepare
from data_prep.prepare.spec import PrepareSpec
from data_prep.sources.folders import ClassFolders
from data_prep.sources.image_index import ImageIndex
from data_prep.sources.registry import open_source
from data_prep.sources.textures import Textures
from tests.helpers.disks import small_disk
from tests.helpers.images import encode, picture


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes, three training and two validation images of each, all different."""
    root = tmp_path / "photos"
    for split, count in (("train", 3), ("val", 2)):
        for number, name in enumerate(("n01", "n02")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i}.JPEG").write_bytes(encode(picture(30 + number, 40 + 2 * i + len(split))))
    return root


def run(*arguments: object) -> str:
    """Calls the command, as the phasecollapse program does; returns what it prints."""
    result = CliRunner().invoke(command.prepare, [str(argument) for argument in arguments])
    if result.exception:
        raise result.exception
    return result.output


def listed(root: Path, names: Path | None = None) -> ImageIndex:
    """What class folders hold; they need neither scratch nor workers."""
    return ClassFolders(root, names).list(root, ThreadExecutor(1))


# Whole data sets


def test_every_image_is_stored_once_under_its_class(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(photos, output, "--shard-samples", 4)
    manifest = load_manifest(output)
    assert [file.samples for file in manifest.splits["train"].files] == [4, 2]
    assert manifest.splits["train"].samples_per_class == [3, 3]
    assert manifest.splits["validation"].samples == 4
    assert (manifest.min_side, manifest.max_side) == (30, 49)
    assert [(each.index, each.id) for each in manifest.classes] == [(0, "n01"), (1, "n02")]
    for split, folder in (("train", "train"), ("validation", "val")):
        shards = [Shard(output / file.file) for file in manifest.splits[split].files]  # type: ignore[index]
        samples = [shard.read(number) for shard in shards for number in range(shard.samples)]
        stored = Counter((sample.label, bytes(sample.content)) for sample in samples)
        files = Counter((int(path.parent.name[1:]) - 1, path.read_bytes()) for path in photos.glob(f"{folder}/*/*"))
        assert stored == files
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos"]


def test_images_are_shuffled_by_the_seed_and_written_reproducibly(tmp_path: Path) -> None:
    source = Textures(0, 20, 2)
    digests = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        asked = PrepareSpec.of(source, seed=seed)
        digests[name] = prepare(source, tmp_path / name, asked, ThreadExecutor(1)).manifest.digest
    labels = {
        name: Shard(tmp_path / name / "train-00000.beton").locate(np.arange(200)).label.tolist() for name in digests
    }
    assert digests["a"] == digests["b"] != digests["c"]
    assert labels["a"] == labels["b"] != labels["c"] and sorted(labels["a"]) == sorted(labels["c"])
    assert labels["a"] != sorted(labels["a"])


def test_hashes_in_the_manifest_are_those_of_the_files(textures: Path) -> None:
    for split in load_manifest(textures).splits.values():
        for shard in split.files:
            printed = subprocess.run(
                ["sha256sum", str(textures / shard.file)], capture_output=True, text=True, check=True
            )
            assert printed.stdout.split()[0] == shard.sha256


def test_classes_get_their_human_names(photos: Path, tmp_path: Path) -> None:
    assert [each.name for each in listed(photos).classes] == ["n01", "n02"]
    (photos / "LOC_synset_mapping.txt").write_text("n01 tench, Tinca tinca\nn07 cock\n")
    assert [each.name for each in listed(photos).classes] == ["tench", "n02"]
    names = tmp_path / "names.txt"
    names.write_text("n01\tgreat fish\nn02 bird\n")
    assert [each.name for each in listed(photos, names).classes] == ["great fish", "bird"]


def test_validation_folder_may_have_other_names_and_hidden_files_are_ignored(photos: Path) -> None:
    (photos / "train" / "n01" / ".DS_Store").write_bytes(b"x")
    (photos / "train" / "README.txt").write_text("about")
    for name in ("valid", "validation", "test"):
        next(path for path in photos.iterdir() if path.name != "train").rename(photos / name)
        assert len(listed(photos).labels("validation")) == 4
        assert len(listed(photos).labels("train")) == 6


def test_textures_are_the_default(tmp_path: Path) -> None:
    printed = run(tmp_path / "out", "--train-per-class", 2, "--validation-per-class", 1)
    assert "20 train and 10 validation images of 10 classes" in printed
    assert load_manifest(tmp_path / "out").source.kind == "textures"


# Again, interrupted, at once


def test_the_same_request_again_changes_nothing_and_another_is_refused(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert "is prepared" in run(photos, output)
    before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    assert "was already prepared" in run(photos, output)
    for asked in ((photos, output, "--seed", 1), (photos, output, "--max-side", 20), ("textures", output)):
        with pytest.raises(UserError, match="already holds another data set"):
            run(*asked)
    (photos / "train" / "n01" / "new.jpg").write_bytes(encode(picture()))
    with pytest.raises(UserError, match="already holds another data set"):
        run(photos, output)
    assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == before
    (output / "train-00000.beton").unlink()
    with pytest.raises(UserError, match="out already exists, but is incomplete: delete it first"):
        run(photos, output)


def test_an_output_that_is_something_else_is_left_alone(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="is not a prepared data set"):
        run(photos, output)
    with pytest.raises(UserError, match="name an output too"):
        run(photos)
    assert (output / "thesis.txt").read_text() == "precious"


PREPARE = """
import os, signal, sys
from pathlib import Path
from data_prep.sources.textures import Textures
from data_prep.common.parallel import ThreadExecutor
from data_prep.prepare.spec import PrepareSpec
from data_prep.prepare.dataset_writer import prepare
done = []
def advance(images):
    done.append(images)
    if len(sys.argv) > 2 and len(done) == 60:
        os.kill(os.getpid(), signal.Signals[sys.argv[2]])
source = Textures(0, 50, 1)
prepare(source, Path(sys.argv[1]), PrepareSpec.of(source, shard_samples=10), ThreadExecutor(1, advance), threads=2)
print(len(done))
"""


@pytest.mark.slow
@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_interrupted_preparing_resumes_where_it_stopped(tmp_path: Path, signal: str) -> None:
    command = [sys.executable, "-c", PREPARE, str(tmp_path / "out")]
    assert subprocess.run([*command, signal], stderr=subprocess.DEVNULL).returncode != 0
    assert [path.name for path in tmp_path.iterdir()] == [".out.preparing"]
    shards = {path: path.stat().st_ino for path in (tmp_path / ".out.preparing").glob("train-*.beton")}
    assert 5 <= len(shards) <= 7, "one more may have been under way"
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(again.stdout) == 510 - 10 * len(shards), "images of finished shards were written again"
    assert {(tmp_path / "out" / path.name).stat().st_ino for path in shards} == set(shards.values())
    source = Textures(0, 50, 1)
    whole = prepare(source, tmp_path / "whole", PrepareSpec.of(source, shard_samples=10), ThreadExecutor(2), threads=1)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "whole"}
    for path in (tmp_path / "whole").iterdir():
        if path.suffix == ".beton":
            assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    assert load_manifest(tmp_path / "out").digest == whole.manifest.digest


def test_what_was_begun_by_another_request_is_not_mixed_in(tmp_path: Path) -> None:
    program = [sys.executable, "-c", PREPARE, str(tmp_path / "out"), "SIGKILL"]
    subprocess.run(program, stderr=subprocess.DEVNULL)
    source = Textures(0, 50, 1)
    other = PrepareSpec.of(source, shard_samples=20)
    with pytest.raises(UserError, match=r"was interrupted with other settings \(shard_samples 10 instead of 20\)"):
        prepare(source, tmp_path / "out", other, ThreadExecutor(1))
    prepare(source, tmp_path / "out", other, ThreadExecutor(1), restart=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_commands_cannot_write_the_same_output(photos: Path, tmp_path: Path) -> None:
    partial = tmp_path / ".out.preparing"
    partial.mkdir()
    (partial / MADE_HERE).touch()
    with FileLock(partial / ".lock"), pytest.raises(UserError, match="is being prepared by another command"):
        run(photos, tmp_path / "out")
    run(photos, tmp_path / "out")


# Bad input


def test_missing_folders_are_named(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        run(tmp_path / "nowhere", tmp_path / "out")
    (photos / "val").rename(photos / "other")
    with pytest.raises(UserError, match="has no folder val or valid or validation or test"):
        run(photos, tmp_path / "out")
    (photos / "train").rename(photos / "val")
    with pytest.raises(UserError, match="has no folder train"):
        run(photos, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_classes_must_be_those_of_both_splits(photos: Path, tmp_path: Path) -> None:
    (photos / "val" / "n02").rename(photos / "val" / "n03")
    with pytest.raises(UserError, match=r"train images of .* have classes that its validation images lack: n02"):
        run(photos, tmp_path / "out")
    (photos / "val" / "n03").rename(photos / "val" / "n02")
    (photos / "val" / "n04").mkdir()
    (photos / "val" / "n04" / "a.jpg").write_bytes(encode(picture()))
    with pytest.raises(UserError, match=r"validation images of .* have classes that its train images lack: n04"):
        run(photos, tmp_path / "out")


def test_an_empty_class_or_split_is_an_error(photos: Path, tmp_path: Path) -> None:
    for path in (photos / "val" / "n02").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="val/n02 has no images"):
        run(photos, tmp_path / "out")
    (tmp_path / "empty" / "train").mkdir(parents=True)
    (tmp_path / "empty" / "val").mkdir()
    with pytest.raises(UserError, match="has no folder train with images"):
        run(tmp_path / "empty", tmp_path / "out")
    (photos / "val" / "n02" / "deeper").mkdir()
    with pytest.raises(UserError, match="holds another folder, deeper"):
        run(photos, tmp_path / "out")


@pytest.mark.parametrize("content", [b"no image at all", encode(picture(80, 80))[:-300], b""])
def test_an_undecodable_image_stops_with_its_name(photos: Path, tmp_path: Path, content: bytes) -> None:
    bad = photos / "train" / "n02" / "bad.jpg"
    bad.write_bytes(content)
    with pytest.raises(UserError, match=r"train/n02/bad\.jpg cannot be decoded"):
        run(photos, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    printed = run(photos, tmp_path / "out", "--allow-damaged", 1)
    manifest = load_manifest(tmp_path / "out")
    assert "1 damaged image left out" in printed and manifest.splits["train"].samples == 6
    assert [each.image for each in manifest.splits["train"].left_out] == ["train/n02/bad.jpg"]


def test_more_damaged_images_than_allowed_stop(photos: Path, tmp_path: Path) -> None:
    for number in range(3):
        (photos / "train" / "n02" / f"bad{number}.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"more than the allowed 2 images are damaged, among them train/n02/bad"):
        run(photos, tmp_path / "out", "--allow-damaged", 2, "--shard-samples", 2)
    run(photos, tmp_path / "out", "--allow-damaged", 3, "--shard-samples", 1, "--restart")  # some shards stay empty
    manifest = load_manifest(tmp_path / "out").splits["train"]
    assert (manifest.samples, len(manifest.files), len(manifest.parts), len(manifest.left_out)) == (6, 6, 6, 3)


def test_a_share_of_the_images_may_be_damaged(photos: Path, tmp_path: Path) -> None:
    (photos / "train" / "n02" / "bad.jpg").write_bytes(b"no image")
    images = sum(path.is_file() for path in photos.rglob("*.*"))
    with pytest.raises(UserError, match="cannot be decoded"):
        run(photos, tmp_path / "out", "--allow-damaged", f"{100 / (images + 1)}%")
    assert "1 damaged image left out" in run(photos, tmp_path / "out", "--allow-damaged", f"{100 / (images - 1)}%")


def test_a_class_that_has_lost_all_its_images_is_named(photos: Path, tmp_path: Path) -> None:
    classes = sorted(path.name for path in (photos / "train").iterdir())
    for path in (photos / "train" / classes[0]).iterdir():
        path.write_bytes(b"no image")
    done = CliRunner().invoke(command.prepare, [str(photos), str(tmp_path / "out"), "--allow-damaged", "90%"])
    assert done.exit_code == 0, done.output
    assert "warning: 1 class without images in the train split, as all of them are damaged" in done.stderr
    assert f" and left out: {classes[0]}; add images, or name the others by --classes" in done.stderr
    others = CliRunner().invoke(command.prepare, [str(photos), str(tmp_path / "two"), "--classes", classes[1]])
    assert others.exit_code == 0 and "without images" not in others.stderr, others.output


@pytest.mark.parametrize("value", ["-1", "101%", "1.5", "many", "%", "nan%"])
def test_what_is_neither_a_number_nor_a_share_is_refused(photos: Path, tmp_path: Path, value: str) -> None:
    done = CliRunner().invoke(command.prepare, [str(photos), str(tmp_path / "out"), "--allow-damaged", value])
    assert done.exit_code == 2 and "is neither a number of images, such as 10, nor a share" in done.output


def test_an_image_that_is_repaired_costs_no_other(photos: Path, tmp_path: Path) -> None:
    bad = [photos / "train" / "n02" / f"bad{number}.jpg" for number in range(2)]
    for path in bad:
        path.write_bytes(b"no image")
    for allowed in (0, 1):
        with pytest.raises(UserError, match=r"rerun the same command, which keeps what is written"):
            run(photos, tmp_path / "out", "--shard-samples", 1, "--workers", 1, "--allow-damaged", allowed)
    work = tmp_path / ".out.preparing"
    kept = {path.name: path.stat().st_ino for path in work.glob("*.beton")}
    assert kept
    for path in bad:
        path.write_bytes(encode(picture(80, 80)))  # of another size
    assert "left out" not in run(photos, tmp_path / "out", "--shard-samples", 1, "--workers", 1)
    assert {name: (tmp_path / "out" / name).stat().st_ino for name in kept} == kept
    assert "was already prepared" in run(photos, tmp_path / "out", "--shard-samples", 1)
    run(photos, tmp_path / "fresh", "--shard-samples", 1)
    found, expected = (load_manifest(tmp_path / name) for name in ("out", "fresh"))
    assert (found.digest, found.source.digest) == (expected.digest, expected.source.digest)


def test_an_image_that_is_gone_counts_as_damaged(photos: Path, tmp_path: Path) -> None:
    gone = photos / "train" / "n02" / "gone.jpg"
    gone.write_bytes(encode(picture(80, 80)))
    source = open_source(str(photos))
    spec = PrepareSpec.of(source, allow_damaged=1)
    done = prepare(source, tmp_path / "out", spec, ThreadExecutor(1), on_estimate=lambda estimate: gone.unlink())
    [left_out] = done.manifest.splits["train"].left_out
    assert (left_out.image, left_out.reason) == ("train/n02/gone.jpg", "cannot be read: No such file or directory")


def test_memory_that_is_too_small_stops_with_a_sentence_and_is_no_damage(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*arguments: object) -> None:
        raise MemoryError

    (photos / "train" / "n01" / "large.png").write_bytes(encode(picture(80, 80), "PNG"))
    monkeypatch.setattr(shard_writer, "to_jpeg", exhausted)
    with pytest.raises(UserError, match=r"^memory is too small to decode train/n01/large\.png: lower --workers"):
        run(photos, tmp_path / "out", "--allow-damaged", 5)


def test_work_from_before_files_were_counted_is_resumed(photos: Path, tmp_path: Path) -> None:
    def stop(estimate: object) -> None:
        raise KeyboardInterrupt

    source = open_source(str(photos))
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "out", PrepareSpec.of(source), ThreadExecutor(1), on_estimate=stop)
    (tmp_path / ".out.preparing" / "listing" / "passed-over.json").unlink()
    run(photos, tmp_path / "out")


def test_a_survey_lists_every_damaged_image_and_writes_nothing(photos: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    command = [sys.executable, "-m", "pipeline.cli.main", "prepare", str(photos), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and ", 0 of them damaged" in done.stdout
    (photos / "train" / "n02" / "bad.jpg").write_bytes(b"no image")
    (photos / "val" / "n01" / "bad.jpg").write_bytes(b"")
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and ", 2 of them damaged" in done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["train/n02/bad.jpg", "val/n01/bad.jpg"]
    assert sorted(tmp_path.iterdir()) == before


def test_an_output_among_the_images_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train/out lies among the images of .*: choose an output outside of it"):
        run(photos, photos / "train" / "out")
    assert sorted(path.name for path in (photos / "train").iterdir()) == ["n01", "n02"]
    run(photos, photos / "prepared")  # beside the splits, where nothing is listed


def test_classes_may_have_commas_in_their_names(photos: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (photos / split / "n02").rename(photos / split / "one, two")
    run(photos, tmp_path / "out", "--classes", 'n01, "one, two"')
    assert [each.id for each in load_manifest(tmp_path / "out").classes] == ["n01", "one, two"]


def test_a_source_whose_path_is_not_in_utf8_is_named(photos: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    photos.rename(odd)
    with pytest.raises(UserError, match="is not in UTF-8: rename it, or lead to it by a link"):
        run(os.fsdecode(os.fsencode(odd)), tmp_path / "out")


def test_class_names_must_cover_every_class(photos: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("n01 tench\n")
    with pytest.raises(UserError, match=r"names\.txt has no line for n02"):
        run(photos, tmp_path / "out", "--class-names", names)
    with pytest.raises(UserError, match=r"gone\.txt cannot be read"):
        run(photos, tmp_path / "out", "--class-names", tmp_path / "gone.txt")


def test_options_of_the_other_source_are_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--train-per-class is for textures, not for"):
        run(photos, tmp_path / "out", "--train-per-class", 3)
    with pytest.raises(UserError, match="--max-side is for images of your own, not for textures"):
        run("textures", tmp_path / "out", "--max-side", 32)
    with pytest.raises(UserError, match="got 3 arguments"):
        run(photos, tmp_path / "out", "more")


def test_an_output_below_a_file_is_named(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.* cannot be read or written \(Not a directory\)"):
        run(photos, tmp_path / "file" / "out")


def test_an_output_that_cannot_be_replaced_is_found_out_before_an_image_is_written(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        with pytest.raises(
            UserError, match="disk is the mount point of a disk, which cannot be replaced: name a folder"
        ):
            run(photos, disk)
        assert list(disk.iterdir()) == []
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match="is the current folder, which cannot be replaced"):
        run(photos, ".")
    with pytest.raises(UserError, match=r"OUTPUT: s3://bucket/x is an address"):
        run(photos, "s3://me:secret@bucket/x")
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "disk", "here"}


def test_an_output_that_is_a_link_is_what_it_leads_to(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "large")
    run(photos, tmp_path / "out")
    assert (tmp_path / "out").is_symlink() and load_manifest(tmp_path / "large").digest


def test_finished_shards_outlive_an_output_that_could_not_be_renamed_to(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def busy(path: Path, target: Path) -> Path:
        if target.name == "out":
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", busy)

        with pytest.raises(UserError, match="busy"):
            run(photos, tmp_path / "out")
    before = {path.name: path.stat().st_ino for path in (tmp_path / ".out.preparing").glob("*.beton")}
    assert before
    run(photos, tmp_path / "out")
    assert {path.name: path.stat().st_ino for path in (tmp_path / "out").glob("*.beton")} == before
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".beton", ".json"}


def test_work_is_not_continued_behind_a_link(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis").touch()
    (tmp_path / ".out.preparing").symlink_to(tmp_path / "home")
    with pytest.raises(UserError, match="is a link or a file, and not the folder of an interrupted command: remove it"):
        run(photos, tmp_path / "out")
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["thesis"]


def test_damaged_data_sets_are_refused(textures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_manifest(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        load_manifest(tmp_path)
    content = json.loads((textures / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"train-00000\.beton is missing"):
        load_manifest(tmp_path)
    for path in textures.glob("*.beton"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert load_manifest(tmp_path).digest == load_manifest(textures).digest
    with (tmp_path / "train-00001.beton").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=r"train-00001\.beton has \d+ bytes instead of"):
        load_manifest(tmp_path)
    for damaged in ('{"format_version": 1}', json.dumps({**content, "colour": 1}), "{"):
        (tmp_path / "manifest.json").write_text(damaged)
        with pytest.raises(UserError, match="is damaged"):
            load_manifest(tmp_path)


# The command


def test_help_states_the_defaults_and_answers_at_once() -> None:
    text = " ".join(run("--help").split())
    per_class = Textures(0).options
    for number in (
        spec.SHARD_SAMPLES,
        per_class["train_per_class"],
        per_class["validation_per_class"],
    ):
        assert f"[default: {number}]" in text
    slow = "('numpy', 'pydantic', 'PIL', 'rich')"
    program = f"import sys, data_prep.cli.prepare; print([m for m in {slow} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "[]"
