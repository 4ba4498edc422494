"""Claims about files that are no images: the same rule for folders and archives, and each is counted and said."""

from __future__ import annotations

import io
import os
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest

from data_prep.common.errors import UserError
from data_prep.common.parallel import ThreadExecutor
from data_prep.sources.image_index import HIDDEN_OR_CLUTTER, ImageIndex, PassedOver
from data_prep.sources.labelled import MOST_CLASSES, files_of_splits
from data_prep.sources.registry import open_source, recognize
from data_prep.sources.webdataset import WebDataset
from tests.helpers.images import encode, picture

IMAGE = encode(picture())
CLUTTER = [
    "train/.ipynb_checkpoints/0.jpg",
    "train/a/.ipynb_checkpoints/0.jpg",
    "train/a/.DS_Store",
    "train/a/._0.jpg",
    "train/a/Thumbs.db",
    "train/a/desktop.ini",
    "train/@eaDir/0.jpg",
    "train/a/@eaDir/0.jpg@SynoEAStream",
    "train/lost+found/x",
    "__MACOSX/train/a/0.jpg",
]


def listed(location: Path, scratch: Path) -> ImageIndex:
    scratch.mkdir()
    return open_source(str(location)).list(scratch, ThreadExecutor(2))


def folder(root: Path, names: list[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(IMAGE)
    return root


def images(split: str = "train") -> list[str]:
    return [f"{split}/{name}/{number}.jpg" for name in "ab" for number in range(2)]


def archive(path: Path, members: list[tuple[str, bytes | str]]) -> Path:
    """A tar archive; text stands for a symbolic link, and text after ``=`` for a hard one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
            else:
                member.type = tarfile.LNKTYPE if content.startswith("=") else tarfile.SYMTYPE
                member.linkname = content.removeprefix("=")
                file.addfile(member)
    return path


@pytest.mark.parametrize("clutter", CLUTTER)
def test_clutter_is_passed_over_and_counted_wherever_it_lies(clutter: str, tmp_path: Path) -> None:
    names = [*images("train"), *images("val")]
    plain = listed(folder(tmp_path / "plain", names), tmp_path / "a")
    cluttered = folder(tmp_path / "cluttered", [*names, clutter])
    with tarfile.open(tmp_path / "packed.tar", "w") as file:
        file.add(cluttered, arcname="top")
    found = listed(cluttered, tmp_path / "b")
    packed = listed(tmp_path / "packed.tar", tmp_path / "c")
    assert plain.digest() == found.digest() == packed.digest() and not plain.passed_over
    [sentence] = packed.passed_over
    assert sentence.startswith("1 passed over (hidden files and known clutter), such as ")
    if not clutter.startswith("__MACOSX"):  # folders beside the splits are not walked
        assert len(found.passed_over) == 1


def test_pipes_and_links_that_lead_nowhere_are_passed_over_and_never_opened(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", [*images("train"), *images("val")])
    plain = listed(root, tmp_path / "a").digest()
    os.mkfifo(root / "train" / "a" / "pipe.jpg")
    (root / "train" / "a" / "lost.jpg").symlink_to("nowhere.jpg")
    (root / "train" / "a" / "loop.jpg").symlink_to("loop.jpg")
    found = listed(root, tmp_path / "b")
    assert found.digest() == plain
    assert found.passed_over == ["3 passed over (links that lead nowhere, pipes and devices), such as train/a/loop.jpg"]


def test_links_in_an_archive_stand_for_what_they_lead_to_as_on_a_disk(tmp_path: Path) -> None:
    plain = [(name, IMAGE) for name in [*images("train"), *images("val")]]
    copies = [("train/a/2.jpg", IMAGE), ("train/a/3.jpg", IMAGE), ("train/a/4.jpg", IMAGE)]
    links = [("train/a/2.jpg", "0.jpg"), ("train/a/3.jpg", "=train/b/1.jpg"), ("train/a/4.jpg", "../a/2.jpg")]
    lost = [("train/a/5.jpg", "nowhere.jpg"), ("train/a/6.jpg", "6.jpg")]
    expected = listed(archive(tmp_path / "copies.tar", [*plain, *copies]), tmp_path / "a")
    found = listed(archive(tmp_path / "links.tar", [*links, *lost, *plain]), tmp_path / "b")
    assert found.digest() == expected.digest()
    assert found.passed_over == ["2 passed over (links that lead nowhere, pipes and devices), such as train/a/5.jpg"]


def test_pipes_in_an_archive_are_counted_and_a_link_to_a_folder_stands_for_its_files(tmp_path: Path) -> None:
    names = [*images("train"), *images("val")]
    plain = archive(tmp_path / "plain.tar", [(name, IMAGE) for name in names])
    linked = archive(tmp_path / "linked.tar", [(name, IMAGE) for name in names if not name.startswith("val/b/")])
    with tarfile.open(linked, "a") as file:
        for name, kind, target in (("val/b", tarfile.SYMTYPE, "../val/a"), ("train/a/pipe.jpg", tarfile.FIFOTYPE, "")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            file.addfile(member)
    found = listed(linked, tmp_path / "a")
    assert found.digest() == listed(plain, tmp_path / "b").digest()
    assert found.passed_over == ["1 passed over (links that lead nowhere, pipes and devices), such as train/a/pipe.jpg"]


def test_chains_of_links_end(tmp_path: Path) -> None:
    links: list[tuple[str, bytes | str]] = [(f"train/a/l{number}.jpg", f"l{number + 1}.jpg") for number in range(60)]
    packed = archive(tmp_path / "a.tar", [*((name, IMAGE) for name in [*images(), *images("val")]), *links])
    [sentence] = listed(packed, tmp_path / "a").passed_over
    assert sentence.startswith("60 passed over (links that lead nowhere")


def test_shards_may_lie_in_folders_of_their_splits(tmp_path: Path) -> None:
    sample: list[tuple[str, bytes | str]] = [("0.jpg", IMAGE), ("0.cls", b"0"), ("1.cls", b"1"), ("1.jpg", IMAGE)]
    for name in ("train/0.tar", "val/0.tar", "__MACOSX/train/._0.tar"):
        archive(tmp_path / "shards" / name, sample)
    assert recognize(str(tmp_path / "shards")) == "folders", "only --kind finds them"
    found = WebDataset(str(tmp_path / "shards")).list(tmp_path, ThreadExecutor(1))
    assert [table.num_rows for table in found.splits.values()] == [2, 2]
    assert [sentence[:30] for sentence in found.passed_over] == [f"1 passed over ({HIDDEN_OR_CLUTTER}"[:30]]
    with pytest.raises(UserError, match=r"no folder train with images: .*, or say with --kind what the source is"):
        listed(tmp_path / "shards", tmp_path / "scratch")


@pytest.mark.parametrize("suffix", [".tar", ".parquet"])
def test_files_beside_those_of_the_splits_are_counted_with_their_reasons(tmp_path: Path, suffix: str) -> None:
    used = {"train": ["interval/train/0", "a-train-1"], "validation": ["interval/val/0"]}
    others = {
        HIDDEN_OR_CLUTTER: ["__MACOSX/train/._0", "interval/train/._0"],
        "named after no split": ["extra/0"],
        "a test split beside a validation split": ["interval/test/0", "test-1"],
    }
    names = [name + suffix for group in [*used.values(), *others.values()] for name in group]
    folder(tmp_path, [*names, "README.md"])
    passed_over = PassedOver()
    found = files_of_splits(str(tmp_path), suffix, passed_over)
    expected = {split: {str(tmp_path / name) + suffix for name in group} for split, group in used.items()}
    assert {split: set(files) for split, files in found.items()} == expected
    counts = {sentence.split("(")[1].split(")")[0]: sentence.split()[0] for sentence in passed_over.sentences()}
    assert counts == {reason: str(len(group)) for reason, group in others.items()} | {f"no {suffix} file": "1"}


def test_links_in_webdataset_stand_for_what_they_lead_to(tmp_path: Path) -> None:
    sample: list[tuple[str, bytes | str]] = [("1.jpg", "0.jpg"), ("1.cls", b"1"), ("0.jpg", IMAGE), ("0.cls", b"0")]
    for split in ("train", "val"):
        archive(tmp_path / "shards" / f"{split}-0.tar", sample)
    found = listed(tmp_path / "shards", tmp_path / "scratch")
    assert found.labels("train").tolist() == [0, 1] and not found.passed_over


def test_samples_of_webdataset_may_have_dots_and_any_kind_of_image(tmp_path: Path) -> None:
    samples = {
        "n0": ["jpg", "seg.png"],  # one image and its mask
        "x": ["tif"],
        "z": ["jfif"],
        "w": ["left.jpg", "right.JPG"],
        "photo_2020": ["01.02.png", "03.04.png"],
    }
    train: list[tuple[str, bytes | str]] = []
    for key, suffixes in samples.items():
        train += [(f"{key}.{suffix}", IMAGE) for suffix in suffixes]
        train += (
            [("photo_2020.01.02.cls", b"1"), ("photo_2020.03.04.cls", b"0")] if "_" in key else [(f"{key}.cls", b"1")]
        )
    train += [("note.txt", b"about"), ("._x.jpg", IMAGE)]
    archive(tmp_path / "shards" / "d-train-0.tar", train)
    archive(tmp_path / "shards" / "d-val-0.tar", [("a.jpg", IMAGE), ("a.cls", b"0"), ("b.jpg", IMAGE), ("b.cls", b"1")])
    found = listed(tmp_path / "shards", tmp_path / "a")
    rows = {row["name"].split("/")[1]: row["label"] for row in found.splits["train"].to_pylist()}
    assert rows == {
        **dict.fromkeys(("n0.jpg", "x.tif", "z.jfif", "w.left.jpg", "w.right.JPG", "photo_2020.01.02.png"), 1),
        "photo_2020.03.04.png": 0,
    }
    assert sorted(sentence.partition(",")[0] for sentence in found.passed_over) == [
        "1 passed over (further images of samples that have one of their own)",
        "1 passed over (hidden files and known clutter)",
        "1 passed over (samples without an image)",
    ]


def test_a_files_own_name_says_its_split_before_that_of_its_folder(tmp_path: Path) -> None:
    for name in ("train-set/train_a", "train-set/val_a"):
        key = name[-5:]
        archive(tmp_path / "shards" / f"{name}.tar", [(f"{key}.jpg", IMAGE), (f"{key}.cls", b"0")])
    (tmp_path / "a").mkdir()
    found = WebDataset(str(tmp_path / "shards")).list(tmp_path / "a", ThreadExecutor(2))
    assert {split: table["name"].to_pylist() for split, table in found.splits.items()} == {
        "train": ["train_a.tar/ain_a.jpg"],
        "validation": ["val_a.tar/val_a.jpg"],
    }
    archive(tmp_path / "shards" / "train-and-val.tar", [("a.jpg", IMAGE), ("a.cls", b"0")])
    with pytest.raises(UserError, match="named after both splits"):
        listed(tmp_path / "shards", tmp_path / "b")


def test_labels_that_are_no_classes_are_refused_at_once(tmp_path: Path) -> None:
    for split in ("train", "val"):
        members: list[tuple[str, bytes | str]] = [("a.jpg", IMAGE), ("a.cls", str(MOST_CLASSES).encode())]
        archive(tmp_path / "shards" / f"{split}.tar", members)
    with pytest.raises(UserError, match="has label 100000, which no class has"):
        listed(tmp_path / "shards", tmp_path / "a")


def test_classes_of_one_name_are_told_apart_by_their_ids(tmp_path: Path) -> None:
    cranes = ("n02012849", "n03126707", "n01440764")
    root = folder(tmp_path / "photos", [f"{split}/{name}/0.jpg" for split in ("train", "val") for name in cranes])
    (root / "classes.txt").write_text("n02012849 crane\nn03126707 crane\nn01440764 tench\n")
    names = [one.name for one in listed(root, tmp_path / "a").classes]
    assert names == ["tench", "crane (n02012849)", "crane (n03126707)"]


@pytest.mark.parametrize("suffix", ["tar", "zip"])
def test_of_members_of_one_name_the_last_counts_as_when_an_archive_is_unpacked(tmp_path: Path, suffix: str) -> None:
    plain = [(name, IMAGE) for name in [*images("train"), *images("val")]]
    expected = listed(archive(tmp_path / "plain.tar", plain), tmp_path / "a")
    packed = tmp_path / f"twice.{suffix}"
    twice = [("train/a/0.jpg", b"no image"), ("val/b/1.jpg", b""), *plain]
    if suffix == "tar":
        archive(packed, twice)
    else:
        with zipfile.ZipFile(packed, "w") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the second member of a name
            for name, content in twice:
                file.writestr(name, content)
    found = listed(packed, tmp_path / "b")
    assert found.digest() == expected.digest()
    assert found.passed_over == ["2 passed over (replaced by later ones of the same name), such as train/a/0.jpg"]


@pytest.mark.parametrize("name", ["photos.tar", "photos.zip", "photos.tar.gz"])
def test_a_pipe_in_place_of_a_file_of_a_source_is_refused_at_once(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name} cannot be read: it is not a regular file"):
        listed(tmp_path / name, tmp_path / "scratch")


def test_validation_images_that_lie_flat_are_named_with_where_their_classes_are(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", [*images("train"), "val/ILSVRC2012_val_00000001.JPEG"])
    with pytest.raises(
        UserError, match=r"val/ILSVRC2012_val_00000001.JPEG is in none \(Kaggle's classes are in LOC_val"
    ):
        listed(root, tmp_path / "scratch")
