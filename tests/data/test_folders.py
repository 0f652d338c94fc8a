"""Images get the right labels, whatever their folders are called, or an error that names what is odd."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from proxylessnas.data import folders as image_folders
from proxylessnas.data.categories import categories, class_places, wnids
from proxylessnas.data.folders import labelled_images
from proxylessnas.errors import DataError


def fill(root: Path, files: Iterable[str]) -> Path:
    """Make empty files; labels come from names alone."""
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def labels(root: Path, num_classes: int, dataset: str | None = None) -> dict[str, int]:
    found = labelled_images(root, num_classes, dataset)
    return {os.path.relpath(path, root).replace(os.sep, "/"): label for path, label in found.samples}


def test_wnid_folders_map_by_wnid_and_not_by_position(tmp_path: Path) -> None:
    fill(tmp_path, ["n01440764/a.jpg", "n15075141/b.JPEG", "n02012849-crane/deep/er/c.png"])
    assert labels(tmp_path, 1000, "imagenet") == {
        "n01440764/a.jpg": 0,
        "n02012849-crane/deep/er/c.png": 134,
        "n15075141/b.JPEG": 999,
    }
    found = labelled_images(tmp_path, 1000)  # 1000 outputs of unknown meaning: wnids say enough
    assert (found.labels_from, found.classes, found.notes) == ("wnid", 3, ())
    assert len(found) == 3


def test_a_wnid_of_another_data_set(tmp_path: Path) -> None:
    fill(tmp_path, ["n01440764/a.jpg", "n99999999/b.jpg"])
    with pytest.raises(DataError, match="wnids that are not among the model's classes: n99999999"):
        labels(tmp_path, 1000, "imagenet")


def test_an_odd_folder_among_wnids(tmp_path: Path) -> None:
    fill(tmp_path, ["n01440764/a.jpg", "n01443537/a.jpg", "rubbish/b.jpg"])
    with pytest.raises(DataError, match=rf"^{tmp_path}: 1 folder not named by a wnid .*: rubbish$"):
        labels(tmp_path, 1000, "imagenet")


@pytest.mark.parametrize("names", [["airplane", "Frog", "TRUCK"], list(categories("cifar10"))])
def test_class_names(tmp_path: Path, names: list[str]) -> None:
    fill(tmp_path, [f"{name}/x.png" for name in names])
    expected = {f"{name}/x.png": categories("cifar10").index(name.lower()) for name in names}
    assert labels(tmp_path, 10, "cifar10") == expected
    assert labelled_images(tmp_path, 10).labels_from == "name"


def test_imagenet_class_names(tmp_path: Path) -> None:
    fill(tmp_path, ["great_white_shark/a.jpg", "Toilet Tissue/a.jpg"])
    assert sorted(labels(tmp_path, 1000, "imagenet").values()) == [2, 999]
    fill(tmp_path, ["crane/a.jpg"])
    with pytest.raises(DataError, match=r"two classes have this name, use their wnids .*: crane"):
        labels(tmp_path, 1000, "imagenet")


def test_numbers_are_class_numbers(tmp_path: Path) -> None:
    """As in ImageNetV2: sorted by name, 10 would come before 2."""
    fill(tmp_path, ["0/a.jpeg", "2/a.jpeg", "10/a.jpeg", "007/a.jpeg"])
    assert labels(tmp_path, 1000, "imagenet") == {
        "0/a.jpeg": 0,
        "2/a.jpeg": 2,
        "10/a.jpeg": 10,
        "007/a.jpeg": 7,
    }
    fill(tmp_path, ["1000/a.jpeg"])
    with pytest.raises(DataError, match="class numbers, 0 to 999; too large: 1000"):
        labels(tmp_path, 1000, "imagenet")


def test_position_is_the_last_resort_and_says_so(tmp_path: Path) -> None:
    fill(tmp_path, ["wolf/1.jpg", "cow/1.jpg", "dog/1.jpg"])
    found = labelled_images(tmp_path, 3)
    assert labels(tmp_path, 3) == {"cow/1.jpg": 0, "dog/1.jpg": 1, "wolf/1.jpg": 2}
    assert found.labels_from == "position"
    assert "sorted order (cow = 0)" in found.notes[0]
    with pytest.raises(
        DataError, match=r"its 3 folders \(cow, dog, wolf\) cannot be matched to the model's 4 classes"
    ):
        labels(tmp_path, 4)


def test_names_that_match_by_chance_do_not_count(tmp_path: Path) -> None:
    """Ten classes of one's own, two of them CIFAR-10's: not known to be CIFAR-10, so taken by position."""
    names = ["bird", "cat", "cow", "eel", "fox", "goat", "hen", "owl", "pig", "yak"]
    fill(tmp_path, [f"{name}/x.jpg" for name in names])
    assert labels(tmp_path, 10) == {f"{name}/x.jpg": i for i, name in enumerate(names)}
    with pytest.raises(DataError, match="8 folders not named by a class name"):
        labels(tmp_path, 10, "cifar10")


def test_splits_instead_of_classes(tmp_path: Path) -> None:
    fill(tmp_path, ["train/n01440764/a.jpg", "val/n01440764/a.jpg"])
    with pytest.raises(DataError, match=f"give one of the splits, such as {tmp_path / 'val'}"):
        labels(tmp_path, 1000, "imagenet")


def test_flat_folder_with_wnids_in_file_names(tmp_path: Path) -> None:
    fill(
        tmp_path, ["ILSVRC2012_val_00000293_n01440764.JPEG", "0999_n15075141_toilet_tissue.jpg", "notes.txt"]
    )
    assert labels(tmp_path, 1000, "imagenet") == {
        "0999_n15075141_toilet_tissue.jpg": 999,
        "ILSVRC2012_val_00000293_n01440764.JPEG": 0,
    }
    assert labelled_images(tmp_path, 1000).labels_from == "wnid in file name"
    with pytest.raises(DataError, match="one folder for each of the 10 classes"):
        labels(tmp_path, 10, "cifar10")
    fill(tmp_path, ["n99999999.jpg"])
    with pytest.raises(DataError, match=r"not one of the 1000 ImageNet classes: n99999999\.jpg"):
        labels(tmp_path, 1000, "imagenet")
    fill(tmp_path, [f"holiday{i}.jpg" for i in range(8)])
    with pytest.raises(DataError, match=r"8 names without one: holiday0\.jpg, .* and 3 more"):
        labels(tmp_path, 1000, "imagenet")


def test_what_is_passed_over(tmp_path: Path) -> None:
    fill(
        tmp_path,
        "n01440764/a.jpg n01440764/.hidden.jpg n01440764/Thumbs.db n01440764/.cache/b.jpg "
        "n01443537/readme.txt .DS_Store .git/x.jpg __MACOSX/n1/y.jpg stray.jpg list.csv".split(),
    )
    found = labelled_images(tmp_path, 1000, "imagenet")
    assert [os.path.basename(path) for path, _ in found.samples] == ["a.jpg"]
    assert found.notes == (
        "1 folder without images passed over: n01443537",
        "1 image outside the class folders passed over: stray.jpg",
        "files that are no images passed over: 1 .txt",
    )


def test_links(tmp_path: Path) -> None:
    fill(tmp_path / "store", ["n01440764/a.jpg", "n01440764/sub/b.jpg"])
    (tmp_path / "set").mkdir()
    try:
        (tmp_path / "set" / "n01440764").symlink_to(tmp_path / "store" / "n01440764")
        (tmp_path / "store" / "n01440764" / "sub" / "loop").symlink_to(tmp_path / "store" / "n01440764")
    except OSError:
        pytest.skip("no links here")
    assert list(labels(tmp_path / "set", 1000)) == ["n01440764/a.jpg", "n01440764/sub/b.jpg"]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        labelled_images(tmp_path / "nowhere", 1000)
    with pytest.raises(DataError, match="the folder is empty"):
        labelled_images(tmp_path, 1000)
    fill(tmp_path, ["a.txt"])
    with pytest.raises(DataError, match="none of its 1 file is an image"):
        labelled_images(tmp_path, 1000)
    with pytest.raises(DataError, match="is a file"):
        labelled_images(tmp_path / "a.txt", 1000)
    fill(tmp_path, ["n01440764/a.txt"])
    with pytest.raises(DataError, match="no images in its 1 folder "):
        labelled_images(tmp_path, 1000)
    with pytest.raises(DataError, match="cannot be read"):
        labelled_images("zero\0byte", 1000)


def test_limit_is_spread_evenly_and_always_the_same(tmp_path: Path) -> None:
    fill(tmp_path, [f"{wnid}/{i}.jpg" for wnid in wnids()[:10] for i in range(5)])
    found = labelled_images(tmp_path, 1000)
    few = found.limit(10)
    assert [label for _, label in few.samples] == list(range(10))
    assert few.classes == 10
    assert few == found.limit(10)
    assert found.limit(3).classes == 3
    assert found.limit(50) is found.limit(1000) is found
    for n in (1, 7, 49):
        assert len(found.limit(n)) == len(set(found.limit(n).samples)) == n
    with pytest.raises(ValueError, match="at least 1"):
        found.limit(0)


def test_numbers_that_could_be_positions_are_not_guessed(tmp_path: Path) -> None:
    """torchvision's ImageFolder sorts "10" before "2": a model trained so has another order of classes."""
    fill(tmp_path, [f"{i}/a.png" for i in range(11)])
    with pytest.raises(
        DataError, match=r"folder '10' is class 10 by number, but 2 in sorted order.*--labels"
    ):
        labelled_images(tmp_path, 11)
    for how, expected in (("number", 10), ("position", 2)):
        found = labelled_images(tmp_path, 11, labels=how)
        assert {label for path, label in found.samples if Path(path).parent.name == "10"} == {expected}
        assert found.notes == ()
    # Known names settle it, and so does a data set whose classes are numbered.
    names = sorted(map(str, range(11)))
    assert labelled_images(tmp_path, 11, names=names).labels_from == "name"
    with pytest.raises(DataError, match="11 folders, but the model has 12 classes"):
        labelled_images(tmp_path, 12, labels="position")


def test_own_class_names(tmp_path: Path) -> None:
    fill(tmp_path, ["Red_Fox/a.png", "crow/a.png"])
    found = labelled_images(tmp_path, 3, names=["crow", "newt", "red fox"])
    assert sorted(label for _, label in found.samples) == [0, 2]


def test_folders_without_images_that_are_no_classes(tmp_path: Path) -> None:
    fill(tmp_path, ["n01440764/a.jpg", "n02391049/b.jpg", "lost+found/x.jpg", "logs/y.txt"])
    found = labelled_images(tmp_path, 1000, "imagenet")
    assert sorted(label for _, label in found.samples) == [0, 340]
    assert any("logs" in text and "lost+found" not in text for text in found.notes)


def test_names_are_compared_as_written_first() -> None:
    assert class_places(["cat", "Cat"], ["Cat", "cat"]) == {"cat": 1, "Cat": 0}
    assert class_places(["RED-fox"], ["crow", "red_fox"]) == {"RED-fox": 1}
    # Neither a form that two classes share, nor two folders that would be one class, are guessed at.
    assert class_places(["CAT"], ["Cat", "cat"]) == {"CAT": -1}
    assert class_places(["cat", "Cat"], ["Cat", "dog"]) == {"Cat": 0, "cat": -1}
    assert class_places(["red fox", "red-fox"], ["red_fox"]) == {"red fox": -1, "red-fox": -1}
    assert class_places(["crane", "yak"], ["crane", "crane"]) == {"crane": -1}


def test_classes_that_differ_in_case_alone_keep_their_labels(tmp_path: Path) -> None:
    fill(tmp_path, ["A_1/x.png", "a-1/x.png"])
    found = labelled_images(tmp_path, 2, names=["a-1", "A_1"])
    assert {Path(path).parent.name: label for path, label in found.samples} == {"a-1": 0, "A_1": 1}
    fill(tmp_path / "other", ["a 1/x.png", "A_1/x.png"])
    with pytest.raises(DataError, match="two folders, have this name: a 1"):
        labelled_images(tmp_path / "other", 2, names=["A_1", "b"])


@pytest.mark.parametrize("word", ["pictures", "images", "photos", "set"])
def test_parts_are_known_by_what_people_call_them(tmp_path: Path, word: str) -> None:
    fill(tmp_path, [f"train_{word}/a.jpg", f"test-{word}/b.jpg"])
    with pytest.raises(DataError, match="called like parts of a data set"):
        labelled_images(tmp_path, 2)


def test_parts_are_not_evaluated_as_classes(tmp_path: Path) -> None:
    fill(tmp_path, ["train/a.jpg", "test1/b.jpg"])
    with pytest.raises(DataError, match="called like parts of a data set"):
        labelled_images(tmp_path, 2)
    assert labelled_images(tmp_path, 2, labels="position").classes == 2
    assert labelled_images(tmp_path, 2, names=["test1", "train"]).labels_from == "name"


def test_images_of_kinds_that_are_not_read_are_there_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_folders, "heif_is_read", lambda: False)
    fill(tmp_path, ["cat/1.jpg", "cat/2.HEIC", "dog/1.cr2", "dog/2.heic", "dog/a.mp4", "dog/b.mp4"])
    found = labelled_images(tmp_path, 2, names=["cat", "dog"])
    assert (len(found), found.classes) == (4, 2)
    other, unread = found.notes
    assert other == "files that are no images passed over: 2 .mp4"
    assert "counted as unreadable: 2 .heic, 1 .cr2 (" in unread
    assert "install pillow-heif" in unread
    monkeypatch.setattr(image_folders, "heif_is_read", lambda: True)
    assert "counted as unreadable: 1 .cr2 (" in labelled_images(tmp_path, 2, names=["cat", "dog"]).notes[1]
    fill(tmp_path / "films", ["cat/a.mp4"])
    with pytest.raises(DataError, match=r"no images in its 1 folder .*there are only 1 \.mp4"):
        labelled_images(tmp_path / "films", 2)
