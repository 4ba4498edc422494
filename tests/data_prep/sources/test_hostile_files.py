"""Claims about archives, labels and names that are made to mislead a reader: each is refused with its name."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.common.errors import UserError
from data_prep.format.class_names import LONGEST_NAME, parse_names, read_names
from data_prep.sources.archives import scan
from tests.data_prep.sources.test_passed_over import IMAGE, archive, listed

SPARSE_1 = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}


def scanned(path: Path, content: bytes, headers: dict[str, str]) -> list[str]:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as file:
        member = tarfile.TarInfo("train/a/0.jpg")
        member.size, member.pax_headers = len(content), headers
        file.addfile(member, io.BytesIO(content))
    return [image.name for image in scan(str(path))]


@pytest.mark.parametrize(
    "headers",
    [
        {"GNU.sparse.map": "0,a"},
        {"GNU.sparse.size": "many", "GNU.sparse.numblocks": "1"},
        SPARSE_1,
        {"size": "-1536"},  # the next header would be this one, without end
    ],
)
def test_numbers_in_headers_that_are_none_or_negative_are_damage(headers: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"photos\.tar is damaged \(.*\): download it again"):
        scanned(tmp_path / "photos.tar", IMAGE, headers)


def test_sparse_files_are_refused_as_their_bytes_are_not_in_one_piece(tmp_path: Path) -> None:
    content = b"1\n0\n9\n".ljust(tarfile.BLOCKSIZE, b"\0") + b"\xff\xd8 an image".ljust(tarfile.BLOCKSIZE, b"\0")
    with pytest.raises(UserError, match=r"train/a/0\.jpg is stored as a sparse file.* without tar's option --sparse"):
        scanned(tmp_path / "photos.tar", content, SPARSE_1)


@pytest.mark.parametrize("label", [b"1_0", "\u0663".encode(), b"1.5", b"9" * 5000, b"0 1"])
def test_labels_are_decimal_digits(label: bytes, tmp_path: Path) -> None:
    for split in ("train", "val"):
        archive(tmp_path / "shards" / f"{split}.tar", [("a.jpg", IMAGE), ("a.cls", label)])
    with pytest.raises(UserError, match=r"a\.jpg has a label that is not a number"):
        listed(tmp_path / "shards", tmp_path / "scratch")


@pytest.mark.parametrize("label", ["true", "1.5", "[" * 100_000, '"1_0"'])
def test_labels_in_json_are_whole_numbers(label: str, tmp_path: Path) -> None:
    for split in ("train", "val"):
        archive(tmp_path / "shards" / f"{split}.tar", [("a.jpg", IMAGE), ("a.json", f'{{"label": {label}}}'.encode())])
    with pytest.raises(UserError, match=r"a\.jpg has a label that is not a number"):
        listed(tmp_path / "shards", tmp_path / "scratch")


@pytest.mark.parametrize("names", [[1, None], {"0": "cat"}, "cat"])
def test_names_in_parquet_that_are_no_list_of_texts_are_not_used(names: object, tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    said = {b"huggingface": json.dumps({"info": {"features": {"label": {"names": names}}}}).encode()}
    table = pa.table({"image": [IMAGE, IMAGE], "label": [0, 1]}).replace_schema_metadata(said)
    for split in ("train", "validation"):
        pq.write_table(table, tmp_path / "tables" / f"{split}.parquet")
    assert [one.id for one in listed(tmp_path / "tables", tmp_path / "scratch").classes] == ["0", "1"]


def test_names_of_classes_are_short_and_one_an_id() -> None:
    assert parse_names(b"a cat\na cat, kitten\nb dog\n", "names.txt") == {"a": "cat", "b": "dog"}
    with pytest.raises(UserError, match=r"names\.txt has two names for a: remove one"):
        parse_names(b"a cat\na dog\n", "names.txt")
    for wrong in ("a " + "x" * (LONGEST_NAME + 1), "a x\0y", "x" * (LONGEST_NAME + 1) + " a"):
        with pytest.raises(UserError, match=r"names\.txt: .* shorten it"):
            parse_names(wrong.encode(), "names.txt")
    with pytest.raises(UserError, match="class names /dev/zero have more than 64 MiB"):
        read_names("/dev/zero")
