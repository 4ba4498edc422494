"""The same images from wherever they come: folders, archives, object storage; and what is wrong with a source."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import pickle
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.io import savemat

from data_prep.common import storage
from data_prep.common.errors import UserError
from data_prep.common.parallel import ThreadExecutor
from data_prep.format import class_names
from data_prep.format.manifest import SPLITS
from data_prep.prepare.selection import Selection
from data_prep.sources.folders import ClassFolders
from data_prep.sources.image_index import ImageIndex
from data_prep.sources.registry import open_source
from tests.helpers import datasets
from tests.helpers.object_storage import Storage, object_storage

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


def listed(location: object, scratch: Path) -> ImageIndex:
    scratch.mkdir(exist_ok=True)
    return open_source(str(location)).list(scratch, ThreadExecutor(2))


def content(index: ImageIndex) -> Content:
    """Class, name and bytes of each image, by split."""
    ids = [each.id for each in index.classes]
    return {
        split: [
            (ids[row["label"]], row["name"].split("/")[-1], storage.read_range(row["file"], row["offset"], row["size"]))
            for row in index.splits[split].to_pylist()
        ]
        for split in SPLITS
    }


@pytest.fixture
def server() -> Iterator[Storage]:
    with object_storage() as running:
        yield running


def pack_as(photos: Path, folder: Path, suffix: str) -> Path:
    """An archive of any kind that is read."""
    if suffix in ("zip", "ZIP"):
        with zipfile.ZipFile(folder / f"photos.{suffix}", "w", zipfile.ZIP_DEFLATED) as file:
            for path in sorted(photos.rglob("*")):
                file.write(path, f"top/photos/{path.relative_to(photos)}")
        return folder / f"photos.{suffix}"
    if suffix == "tar.zst":
        plain = pack(photos, folder / "zst.tar", "w")
        with pa.CompressedOutputStream(str(folder / f"photos.{suffix}"), "zstd") as stream:
            stream.write(plain.read_bytes())
        return folder / f"photos.{suffix}"
    return pack(photos, folder / f"photos.{suffix}", "w" if suffix == "tar" else f"w:{suffix.removeprefix('tar.')}")


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz", "tar.bz2", "tar.zst", "zip", "ZIP"])
def test_archives_hold_what_their_folder_holds(photos: Path, tmp_path: Path, suffix: str) -> None:
    (photos / "classes.txt").write_text("n01440764 fish\nn02102040 dog\nn03888257 canopy\n")
    archive = pack_as(photos, tmp_path, suffix)
    folder, packed = listed(photos, tmp_path / "a"), listed(archive, tmp_path / "b")
    assert [each.name for each in folder.classes] == ["fish", "dog", "canopy"]
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
    table = class_names.imagenet()
    assert len(table) == 1000 and list(table) == sorted(table)
    assert (min(table), max(table)) == ("n01440764", "n15075141")
    assert class_names.read_names("imagenet") is table


def test_object_storage_holds_what_the_folder_holds(photos: Path, tmp_path: Path, server: Storage) -> None:
    (photos / "classes.txt").write_text("n01440764 fish\n")
    server.upload(photos, "some/photos")
    (tmp_path / "archives").mkdir()
    pack(photos, tmp_path / "archives" / "photos.tar", "w")
    pack_as(photos, tmp_path / "archives", "zip")
    server.upload(tmp_path / "archives", "archives")
    folder = listed(photos, tmp_path / "a")
    address = server.location("some/photos")
    remote = listed(address, tmp_path / "b")
    archive = listed(server.location("archives/photos.tar"), tmp_path / "c")
    zipped = listed(server.location("archives/photos.zip"), tmp_path / "d")
    assert content(remote) == content(archive) == content(folder) == content(zipped)
    assert folder.digest() == remote.digest() == archive.digest() == zipped.digest()
    assert folder.classes[0].name == remote.classes[0].name == "fish"
    assert {each.split(",")[0] for each in remote.passed_over} == {each.split(",")[0] for each in archive.passed_over}
    assert "secret" in address and "secret" not in open_source(address).location


@pytest.mark.slow
def test_object_storage_that_fails_twice_then_answers_is_read(photos: Path, tmp_path: Path) -> None:
    with object_storage(failures=2) as server:
        server.upload(photos, "photos")
        assert content(listed(server.location("photos"), tmp_path / "a")) == content(listed(photos, tmp_path / "b"))


def test_object_storage_that_lacks_the_images_is_named_without_its_key(tmp_path: Path, server: Storage) -> None:
    with pytest.raises(UserError, match=r"source folder s3://images/nowhere.* does not exist") as error:
        listed(server.location("nowhere"), tmp_path / "a")
    assert "secret" not in str(error.value)
    with pytest.raises(UserError, match="not an address that can be read"):
        listed("nonsense://bucket/photos", tmp_path / "a")


@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_archives_that_are_cut_off_are_refused(photos: Path, tmp_path: Path, share: float) -> None:
    for suffix in ("tar", "tar.xz", "tar.gz", "tar.bz2", "tar.zst", "zip"):
        archive = pack_as(photos, tmp_path, suffix)
        whole = archive.read_bytes().rstrip(b"\0") if suffix == "tar" else archive.read_bytes()
        archive.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UserError, match=r"photos\.(tar|zip).* download it again"):
            listed(archive, tmp_path / f"{suffix}-{share}")
        assert not list((tmp_path / f"{suffix}-{share}").glob("*source*"))


@pytest.mark.parametrize("suffix", ["tar.xz", "tar.gz", "tar.bz2", "tar.zst", "zip"])
@pytest.mark.parametrize("place", [0.02, 0.4, 0.8])
def test_archives_with_wrong_bytes_are_refused_or_read(photos: Path, tmp_path: Path, suffix: str, place: float) -> None:
    archive = pack_as(photos, tmp_path, suffix)
    whole = bytearray(archive.read_bytes())
    start = int(place * len(whole))
    whole[start : start + 40] = bytes(byte ^ 0x5A for byte in whole[start : start + 40])
    archive.write_bytes(whole)
    with suppress(UserError):  # zstd has no checksum here
        listed(archive, tmp_path / "scratch")


def test_a_zip_archive_may_hold_links_and_names_of_windows(photos: Path, tmp_path: Path) -> None:
    archive = pack_as(photos, tmp_path, "zip")
    images = listed(archive, tmp_path / "a").splits["train"].num_rows
    with zipfile.ZipFile(archive, "a") as file:
        link = zipfile.ZipInfo("top/photos/train/n01440764/link.JPEG")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "n01440764_0.JPEG")
        windows = zipfile.ZipInfo("x")
        windows.filename, windows.create_system = "top\\photos\\train\\n01440764\\windows.JPEG", 0
        file.writestr(windows, b"an image")
    found = listed(archive, tmp_path / "b").splits["train"]
    assert found.num_rows == images + 2


def test_a_zip_archive_that_is_a_bomb_or_encrypted_is_refused(photos: Path, tmp_path: Path) -> None:
    archive = pack_as(photos, tmp_path, "zip")
    whole = archive.read_bytes()
    header = whole.rindex(b"PK\x01\x02")
    archive.write_bytes(whole[: header + 24] + (2**32 - 2).to_bytes(4, "little") + whole[header + 28 :])
    with pytest.raises(UserError, match=r"photos\.zip is damaged or truncated|GB free, and 4\.29 GB are needed"):
        listed(archive, tmp_path / "a")
    flags = bytearray(whole)
    for mark, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        flags[whole.rindex(mark) + offset] |= 1
    archive.write_bytes(flags)
    with pytest.raises(UserError, match=r"is encrypted: unpack the archive yourself"):
        listed(archive, tmp_path / "b")


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
    with pytest.raises(UserError, match=r"missing\.tar cannot be read: No such file"):
        listed(tmp_path / "missing.tar", tmp_path / "d")


def test_a_file_that_changed_since_it_was_listed_is_named(photos: Path, tmp_path: Path) -> None:
    index = listed(photos, tmp_path / "a")
    changed = photos / "train" / "n01440764" / "n01440764_1.JPEG"
    changed.write_bytes(changed.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"n01440764_1\.JPEG ends at byte \d+ of \d+: it was truncated, or changed"):
        content(index)
    changed.unlink()
    with pytest.raises(UserError, match=r"n01440764_1\.JPEG cannot be read: No such file"):
        content(index)


# Other forms in which ImageNet and CIFAR-10 come


@pytest.fixture
def photos_by_class(photos: Path) -> Content:
    return content(ClassFolders(photos).list(photos, ThreadExecutor(1)))


def member(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member(archive, name, data)
    return buffer.getvalue()


def imagenet_archives(folder: Path, images: Content) -> Path:
    """The three archives as they are downloaded; the kit numbers classes in another order than that of their ids."""
    folder.mkdir()
    numbers = {"n03888257": 1, "n01440764": 2, "n02102040": 3}
    by_class: dict[str, dict[str, bytes]] = {}
    for identity, name, data in images["train"]:
        by_class.setdefault(identity, {})[name] = data
    outer = {f"{identity}.tar": tar_of(files) for identity, files in by_class.items()}
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar_of(outer))
    flat = {f"ILSVRC2012_val_{number:08d}.JPEG": image[2] for number, image in enumerate(images["validation"], 1)}
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar_of(flat))
    fields = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("num_children", object)]
    rows = [(number, identity, "some, words", 0) for identity, number in numbers.items()]
    synsets = np.array([*rows, (4, "n00001740", "entity", 3)], dtype=fields).reshape(-1, 1)
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    truth = "".join(f"{numbers[identity]}\n" for identity, _, _ in images["validation"])
    kit = "ILSVRC2012_devkit_t12/data"
    files = {f"{kit}/meta.mat": meta.getvalue(), f"{kit}/ILSVRC2012_validation_ground_truth.txt": truth.encode()}
    (folder / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(gzip.compress(tar_of(files)))
    return folder


def webdataset_shards(folder: Path, images: Content, order: list[str], suffix: str) -> Path:
    folder.mkdir()
    for split in SPLITS:
        for shard in range(2):
            files = {}
            for number, (identity, _, data) in enumerate(images[split][shard::2]):
                label = order.index(identity)
                files[f"{number:04d}.jpg"] = data
                files[f"{number:04d}.{suffix}"] = (str(label) if suffix == "cls" else f'{{"label": {label}}}').encode()
            (folder / f"imagenet1k-{split}-{shard:04d}.tar").write_bytes(tar_of(files))
    return folder


def parquet_files(folder: Path, images: Content, order: list[str], names: list[str] | None) -> Path:
    (folder / "data").mkdir(parents=True)
    for split in SPLITS:
        rows = [{"image": {"bytes": data, "path": name}, "label": order.index(i)} for i, name, data in images[split]]
        table = pa.Table.from_pylist(rows)
        if names:
            features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
            table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
        for part in range(2):
            path = folder / "data" / f"{split}-{part:05d}-of-00002.parquet"
            pq.write_table(table.slice(part * 2, 2 if part == 0 else None), path, row_group_size=1)
    return folder


def by_class(found: Content) -> dict[str, list[tuple[str, bytes]]]:
    return {split: sorted((identity, data) for identity, _, data in found[split]) for split in SPLITS}


def test_imagenets_archives_are_read_in_place_and_are_the_class_folders(
    photos: Path, photos_by_class: Content, tmp_path: Path
) -> None:
    archives = imagenet_archives(tmp_path / "archives", photos_by_class)
    scratch = tmp_path / "scratch"
    index = listed(archives, scratch)
    assert open_source(str(archives)).kind == "imagenet" and not list(scratch.glob("*.images"))
    assert by_class(content(index)) == by_class(photos_by_class)
    assert index.classes == listed(photos, scratch).classes


@pytest.mark.parametrize("suffix", ["cls", "json"])
def test_webdataset_shards_hold_the_same_images_and_classes(
    photos: Path, photos_by_class: Content, tmp_path: Path, suffix: str
) -> None:
    order = ["n01440764", "n02102040", "n03888257"]
    names = tmp_path / "names.txt"
    names.write_text("".join(f"{identity} {class_names.imagenet()[identity]}\n" for identity in order))
    shards = webdataset_shards(tmp_path / "shards", photos_by_class, order, suffix)
    (tmp_path / "scratch").mkdir()
    index = open_source(str(shards), names).list(tmp_path / "scratch", ThreadExecutor(2))
    assert by_class(content(index)) == by_class(photos_by_class)
    assert index.classes == listed(photos, tmp_path / "scratch").classes
    numbered = listed(shards, tmp_path / "scratch").classes
    assert [each.id for each in numbered] == ["0", "1", "2"]


def test_parquet_files_hold_the_same_images_and_are_unpacked_once(photos_by_class: Content, tmp_path: Path) -> None:
    order = ["n01440764", "n02102040", "n03888257"]
    tables = parquet_files(tmp_path / "tables", photos_by_class, order, order)
    index = listed(tables, tmp_path / "scratch")
    assert by_class(content(index)) == by_class(photos_by_class)
    assert [each.name for each in index.classes] == ["tench", "English springer", "parachute"]
    unpacked = {path: path.stat().st_mtime_ns for path in (tmp_path / "scratch").glob("*.images")}
    assert listed(tables, tmp_path / "scratch").digest() == index.digest()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "scratch").glob("*.images")} == unpacked


def test_names_of_imagenets_thousand_classes_stand_for_their_ids() -> None:
    names = [f"{name}, some synonym" for name in class_names.imagenet().values()]
    assert [each.id for each in class_names.from_labels(7, None, names)] == list(class_names.imagenet())
    assert class_names.from_labels(3, None, ["cat", "dog", "emu"])[1].id == "dog"


def cifar(folder: Path, count: int = 20) -> Path:
    batches = folder / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        data = {b"data": random.integers(0, 256, (count, 3072), np.uint8), b"labels": [n % 10 for n in range(count)]}
        (batches / name).write_bytes(pickle.dumps(data, protocol=2))
    meta = {b"label_names": [f"thing {number}".encode() for number in range(10)]}
    (batches / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    return folder


def test_cifar_keeps_its_pixels(tmp_path: Path) -> None:
    index = listed(cifar(tmp_path / "root"), tmp_path / "scratch")
    assert [index.splits[split].num_rows for split in SPLITS] == [100, 20]
    assert [each.name for each in index.classes] == [f"thing {number}" for number in range(10)]
    stored = pickle.loads((tmp_path / "root" / "cifar-10-batches-py" / "data_batch_3").read_bytes())
    found = {name: (label, data) for label, name, data in content(index)["train"]}
    row = next(row for row in index.splits["train"].to_pylist() if row["name"] == "data_batch_3/00007")
    image = Image.open(io.BytesIO(storage.read_range(row["file"], row["offset"], row["size"])))
    assert row["label"] == 7 and len(found) > 0
    assert np.array_equal(np.asarray(image), stored[b"data"][7].reshape(3, 32, 32).transpose(1, 2, 0))


def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    class Exploit:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "executed",))

    root = cifar(tmp_path / "root")
    (root / "cifar-10-batches-py" / "data_batch_2").write_bytes(pickle.dumps({b"data": Exploit()}))
    with pytest.raises(UserError, match="data_batch_2 is damaged, or not a file of CIFAR-10"):
        listed(root, tmp_path / "scratch")
    assert not (tmp_path / "executed").exists()


def test_what_is_wrong_with_these_sources_is_named(photos_by_class: Content, tmp_path: Path) -> None:
    archives = imagenet_archives(tmp_path / "archives", photos_by_class)
    order = ["n01440764", "n02102040", "n03888257"]
    (archives / "ILSVRC2012_devkit_t12.tar.gz").rename(tmp_path / "kit")
    with pytest.raises(UserError, match=r"ILSVRC2012_devkit_t12\.tar\.gz does not exist"):
        listed(archives, tmp_path / "a")
    (archives / "ILSVRC2012_devkit_t12.tar.gz").write_bytes((tmp_path / "kit").read_bytes()[:200])
    with pytest.raises(UserError, match=r"ILSVRC2012_devkit_t12\.tar\.gz is damaged"):
        listed(archives, tmp_path / "a")
    shards = webdataset_shards(tmp_path / "shards", photos_by_class, order, "cls")
    lonely = tar_of({"a.jpg": b"x"})
    (shards / "imagenet1k-train-0009.tar").write_bytes(lonely)
    with pytest.raises(UserError, match=r"train-0009\.tar: a\.jpg has no label"):
        listed(shards, tmp_path / "a")
    (shards / "imagenet1k-train-0009.tar").write_bytes(tar_of({"a.jpg": b"x", "a.cls": b"cat"}))
    with pytest.raises(UserError, match=r"a\.jpg has a label that is not a number: b'cat'"):
        listed(shards, tmp_path / "a")
    for label in (b"[" * 100_000, b'{"label": 1e999}'):
        (shards / "imagenet1k-train-0009.tar").write_bytes(tar_of({"a.jpg": b"x", "a.json": label}))
        with pytest.raises(UserError, match=r"a\.jpg has a label that is not a number"):
            listed(shards, tmp_path / "a")
    tables = parquet_files(tmp_path / "tables", photos_by_class, order, ["one", "two"])
    with pytest.raises(UserError, match="has label 2, which no class has"):
        listed(tables, tmp_path / "b")
    pq.write_table(pa.table({"text": ["x"], "label": [1]}), tables / "data" / "train-00000-of-00002.parquet")
    with pytest.raises(UserError, match=r"has no column of images .*: its columns are text, label"):
        listed(tables, tmp_path / "c")
    (tables / "data" / "train-00000-of-00002.parquet").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"train-00000-of-00002\.parquet is not a Parquet file"):
        listed(tables, tmp_path / "d")


# A part of a source


def test_a_selection_has_the_chosen_classes_and_so_many_images(photos: Path, tmp_path: Path) -> None:
    whole = open_source(str(photos))
    selection = Selection(whole, ("parachute", "n01440764"), 1, None)
    index = selection.list(tmp_path, ThreadExecutor(1))
    assert [(each.index, each.name) for each in index.classes] == [(0, "tench"), (1, "parachute")]
    assert index.labels("train").tolist() == [0, 1] and index.labels("validation").tolist() == [0, 1]
    assert {identity for identity, _, _ in content(index)["train"]} == {"n01440764", "n03888257"}
    assert selection.options == {"classes": "parachute,n01440764", "limit_train": 1}
    everything = Selection(whole, (), 100).list(tmp_path, ThreadExecutor(1))
    assert everything.splits["train"].equals(whole.list(tmp_path, ThreadExecutor(1)).splits["train"])
    with pytest.raises(UserError, match="there is no class parashute: did you mean parachute"):
        Selection(whole, ("parashute",)).list(tmp_path, ThreadExecutor(1))
