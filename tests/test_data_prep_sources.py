"""The same images from wherever they come: folders, archives, object storage; and what is wrong with a source."""

from __future__ import annotations

import lzma
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep import classes, storage
from data_prep.errors import UserError
from data_prep.listing import Listing
from data_prep.manifest import SPLITS
from data_prep.parallel import Threads
from data_prep.sources import open_source
from tests import datasets
from tests.object_storage import Storage, object_storage

Content = dict[str, list[tuple[str, str, bytes]]]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three of ImageNet's classes, with two training images and one for validation each."""
    images = iter([sample.content for sample in datasets.make_samples(20) if sample.mode == 0])
    root = tmp_path / "photos"
    for split, count in (("train", 2), ("val", 1)):
        for name in ("n03888257", "n01440764", "n02102040"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{name}_{number}.JPEG").write_bytes(bytes(next(images)))
    (root / "train" / "n01440764" / ".DS_Store").write_bytes(b"x")
    (root / "README").write_text("about")
    return root


def pack(folder: Path, archive: Path, mode: str) -> Path:
    with tarfile.open(archive, mode) as file:  # type: ignore[call-overload]
        file.add(folder, arcname="top/photos")
    return archive


def listed(location: object, scratch: Path) -> Listing:
    scratch.mkdir(exist_ok=True)
    return open_source(str(location)).list(scratch, Threads(2))


def content(listing: Listing) -> Content:
    """Class, name and bytes of each image, by split."""
    ids = [each.id for each in listing.classes]
    return {
        split: [
            (ids[row["label"]], row["name"].split("/")[-1], storage.read_range(row["file"], row["offset"], row["size"]))
            for row in listing.splits[split].to_pylist()
        ]
        for split in SPLITS
    }


@pytest.fixture
def server() -> Iterator[Storage]:
    with object_storage() as running:
        yield running


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz", "tar.bz2"])
def test_archives_hold_what_their_folder_holds(photos: Path, tmp_path: Path, suffix: str) -> None:
    mode = "w" if suffix == "tar" else f"w:{suffix.removeprefix('tar.')}"
    archive = pack(photos, tmp_path / f"photos.{suffix}", mode)
    folder, packed = listed(photos, tmp_path / "a"), listed(archive, tmp_path / "b")
    assert content(folder) == content(packed) and folder.classes == packed.classes
    assert folder.digest() == packed.digest()
    assert (tmp_path / "b" / "source.tar").exists() == (suffix != "tar"), "a plain archive is read in place"


def test_an_archive_is_unpacked_once(photos: Path, tmp_path: Path) -> None:
    archive = pack(photos, tmp_path / "photos.tar.xz", "w:xz")
    first = listed(archive, tmp_path / "scratch").digest()
    archive.write_bytes(b"gone")
    assert listed(archive, tmp_path / "scratch").digest() == first


def test_classes_are_numbered_by_id_and_have_imagenets_names(photos: Path, tmp_path: Path) -> None:
    found = [(each.index, each.id, each.name) for each in listed(photos, tmp_path / "a").classes]
    assert found == [(0, "n01440764", "tench"), (1, "n02102040", "English springer"), (2, "n03888257", "parachute")]


def test_imagenets_table_is_complete_and_in_order() -> None:
    table = classes.imagenet()
    assert len(table) == 1000 and list(table) == sorted(table)
    assert (min(table), max(table)) == ("n01440764", "n15075141")
    assert classes.read_names("imagenet") is table


def test_object_storage_holds_what_the_folder_holds(photos: Path, tmp_path: Path, server: Storage) -> None:
    server.upload(photos, "some/photos")
    (tmp_path / "archives").mkdir()
    pack(photos, tmp_path / "archives" / "photos.tar", "w")
    server.upload(tmp_path / "archives", "archives")
    folder = listed(photos, tmp_path / "a")
    address = server.location("some/photos")
    remote = listed(address, tmp_path / "b")
    archive = listed(server.location("archives/photos.tar"), tmp_path / "c")
    assert content(remote) == content(archive) == content(folder)
    assert folder.digest() == remote.digest() == archive.digest()
    assert "secret" in address and "secret" not in open_source(address).location


def test_object_storage_that_fails_twice_then_answers_is_read(photos: Path, tmp_path: Path) -> None:
    with object_storage(failures=2) as server:
        server.upload(photos, "photos")
        assert content(listed(server.location("photos"), tmp_path / "a")) == content(listed(photos, tmp_path / "b"))


def test_object_storage_that_lacks_the_images_is_named_without_its_key(tmp_path: Path, server: Storage) -> None:
    with pytest.raises(UserError, match=r"source folder s3://images/nowhere.* does not exist") as error:
        listed(server.location("nowhere"), tmp_path / "a")
    assert "secret" not in str(error.value)
    with pytest.raises(UserError, match="no address that can be read"):
        listed("nonsense://bucket/photos", tmp_path / "a")


@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_archives_that_are_cut_off_are_refused(photos: Path, tmp_path: Path, share: float) -> None:
    for suffix, mode in (("tar", "w"), ("tar.xz", "w:xz"), ("tar.gz", "w:gz")):
        archive = pack(photos, tmp_path / f"photos.{suffix}", mode)
        whole = archive.read_bytes().rstrip(b"\0") if suffix == "tar" else archive.read_bytes()
        archive.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UserError, match=r"photos\.tar.* download it again"):
            listed(archive, tmp_path / f"{suffix}-{share}")


def test_archives_that_are_none_or_hold_no_images_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / "photos.tar"
    archive.write_bytes(b"no archive at all" * 100)
    with pytest.raises(UserError, match="is damaged"):
        listed(archive, tmp_path / "a")
    compressed = tmp_path / "photos.tar.xz"
    compressed.write_bytes(lzma.compress(b"no archive at all" * 100))
    with pytest.raises(UserError, match="is damaged"):
        listed(compressed, tmp_path / "b")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no folder train with images"):
        listed(pack(tmp_path / "empty", tmp_path / "empty.tar", "w"), tmp_path / "c")
    with pytest.raises(UserError, match=r"missing\.tar does not exist"):
        listed(tmp_path / "missing.tar", tmp_path / "d")


def test_a_file_that_changed_since_it_was_listed_is_named(photos: Path, tmp_path: Path) -> None:
    listing = listed(photos, tmp_path / "a")
    changed = photos / "train" / "n01440764" / "n01440764_1.JPEG"
    changed.write_bytes(changed.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"n01440764_1\.JPEG ends at byte \d+ of \d+: it is cut off, or changed"):
        content(listing)
    changed.unlink()
    with pytest.raises(UserError, match=r"n01440764_1\.JPEG cannot be read: No such file"):
        content(listing)
