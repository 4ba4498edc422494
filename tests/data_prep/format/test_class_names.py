"""A class is found by what a user calls it, and names that cannot do are refused with a remedy that can be followed."""

from __future__ import annotations

import pytest

from data_prep.common.errors import UserError
from data_prep.format import class_names
from data_prep.format.manifest import ImageClass

NAMES = {"bird": "crane", "machine": "crane", "10": "tench, Tinca tinca"}
CLASSES = class_names.number(["bird", "machine", "n01443537", "10"], NAMES)


@pytest.mark.parametrize(
    ("wanted", "identity"),
    [
        ("n01443537", "n01443537"),
        ("N01443537", "n01443537"),
        ("2", "n01443537"),
        ("10", "10"),
        ("goldfish", "n01443537"),
    ],
)
def test_a_class_is_found_by_id_name_or_index(wanted: str, identity: str) -> None:
    assert class_names.find(CLASSES, wanted).id == identity


@pytest.mark.parametrize(("wanted", "index"), [("Cat", 0), ("cat", 1), ("CAT", 0), ("dog", 3), ("Dog", 2)])
def test_classes_that_differ_in_case_alone_are_told_apart(wanted: str, index: int) -> None:
    classes = [
        ImageClass(index=number, id=identity, name=name)
        for number, (identity, name) in enumerate([("Cat", "Cat"), ("cat", "cat"), ("n1", "Dog"), ("n2", "dog")])
    ]
    assert class_names.find(classes, wanted).index == index


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("crane", "several classes: name one by its id, bird or machine"),
        ("goldfsh", "did you mean goldfish"),
        ("Tinca tinca", "a name with a comma stands in quotes, as in --classes '\"tench, Tinca tinca\"'"),
        ("zebra crossing", "give an id, a name or an index, such as bird"),
    ],
)
def test_a_class_that_is_not_there_is_named_with_the_remedy(wanted: str, says: str) -> None:
    with pytest.raises(UserError, match=f"{wanted}.*{says}"):
        class_names.find(CLASSES, wanted)


def test_imagenets_own_names_cannot_be_added_to() -> None:
    with pytest.raises(
        UserError, match="imagenet has 1,000 classes, but labels go up to 1023: name a file of your own"
    ):
        class_names.from_labels(1024, "imagenet")
