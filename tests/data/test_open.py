"""Folders of images to train on: what is found in them, what is held out, and clear refusals."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from proxylessnas.data.categories import categories
from proxylessnas.data.open import class_counts, few_of_each, hold_out, open_data
from proxylessnas.data.sources import FileImages, ImageSource
from proxylessnas.errors import DataError


def fill(root: Path, files: Iterable[str]) -> Path:
    """Make files that hold their own name: labels and splits come from names alone."""
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root


def classes(root: Path, counts: dict[str, int]) -> Path:
    return fill(root, [f"{name}/{i:03d}.jpg" for name, n in counts.items() for i in range(n)])


def names(images: ImageSource | None) -> list[str]:
    assert isinstance(images, FileImages)
    return [images.relative(i) for i in range(len(images))]


def test_split_is_stratified_seeded_and_complete() -> None:
    labels = [0] * 50 + [2] * 7 + [1] * 20 + [3] + [4] * 2
    train, val = hold_out(labels, 0.1, seed=0)
    assert sorted(train + val) == list(range(len(labels)))
    assert train == sorted(train)
    assert Counter(labels[i] for i in val) == {0: 5, 1: 2, 2: 1, 4: 1}  # never the last one of a class
    assert hold_out(labels, 0.1, seed=0) == (train, val)
    assert hold_out(labels, 0.1, seed=1) != (train, val)
    assert Counter(labels[i] for i in hold_out(labels, 0.9, seed=0)[0]) == {0: 5, 1: 2, 2: 1, 3: 1, 4: 1}
    assert set(val) < set(hold_out(labels, 0.3, seed=0)[1])
    # The choice itself, so that a run can be repeated with a later version.
    assert hold_out([0, 1] * 10, 0.2, seed=0)[1] == [2, 7, 8, 19]


def test_few_of_each() -> None:
    labels = [0] * 50 + [1] * 3
    few = few_of_each(labels, 5, seed=0)
    assert Counter(labels[i] for i in few) == {0: 5, 1: 3}
    assert few == sorted(few)
    assert few[:5] != list(range(5))  # files are often sorted by something that matters
    assert set(few) < set(few_of_each(labels, 6, seed=0))
    assert few != few_of_each(labels, 5, seed=1)
    assert few_of_each(labels, 1000, seed=0) == list(range(53))


def test_class_folders_are_split(tmp_path: Path) -> None:
    classes(tmp_path, {"dog": 20, "cat": 30, "eel": 1})
    data = open_data(tmp_path)
    assert data.categories == ("cat", "dog", "eel")
    assert data.wnids == ()
    assert data.val is not None
    assert (len(data.train), len(data.val)) == (46, 5)
    assert not set(names(data.train)) & set(names(data.val))
    for part in (data.train, data.val):
        folders = [os.path.dirname(name) for name in names(part)]
        assert [data.categories[label] for label in part.labels] == folders
    assert data.notes == (
        f"no validation part in {tmp_path}: 10 % of each class held out, 5 of 51 images, seed 0",
        "1 class with a single image, which is trained on: eel",
    )
    assert data.train.name(0) == str(tmp_path / "cat" / os.path.basename(names(data.train)[0]))
    again = open_data(str(tmp_path))
    assert names(again.val) == names(data.val)
    assert again.fingerprint == data.fingerprint
    assert names(open_data(tmp_path, seed=1).val) != names(data.val)
    assert len(open_data(tmp_path, val_fraction=0.5).val or ()) == 25


def test_split_does_not_depend_on_where_the_folder_lies_or_who_made_it_when(tmp_path: Path) -> None:
    a = classes(tmp_path / "a", {"x": 10, "y": 10})
    b = fill(tmp_path / "b", [f"{c}/{i:03d}.jpg" for i in reversed(range(10)) for c in "yx"])
    first, second = open_data(a), open_data(b)
    assert names(first.val) == names(second.val)
    assert first.fingerprint == second.fingerprint


def test_fingerprint_tells_changes(tmp_path: Path) -> None:
    classes(tmp_path / "train", {"a": 3, "b": 3})
    classes(tmp_path / "val", {"a": 2, "b": 2})
    seen = {open_data(tmp_path).fingerprint}

    def changed() -> bool:
        before = len(seen)
        seen.add(open_data(tmp_path).fingerprint)
        return len(seen) > before

    assert not changed()
    (tmp_path / "train" / "a" / "000.jpg").write_text("another size")
    assert changed()
    (tmp_path / "train" / "a" / "001.jpg").rename(tmp_path / "train" / "a" / "0001.jpg")
    assert changed()
    (tmp_path / "val" / "a" / "001.jpg").rename(tmp_path / "val" / "b" / "007.jpg")
    assert changed()
    (tmp_path / "val" / "a" / "000.jpg").unlink()
    assert changed()
    for part in ("train", "val"):
        (tmp_path / part / "a").rename(tmp_path / part / "A")
    assert changed()


@pytest.mark.parametrize("val", ["val", "valid", "Validation", "test"])
def test_train_and_val_folders(tmp_path: Path, val: str) -> None:
    classes(tmp_path / "train", {"b": 3, "a": 2})
    classes(tmp_path / val, {"b": 1, "a": 1})
    fill(tmp_path, ["readme.txt", "logs/x.txt"])
    data = open_data(tmp_path)
    assert (data.train.labels, data.val and data.val.labels) == ([0, 0, 1, 1, 1], [0, 1])
    note = (f"{tmp_path} has no folder called val: validated on test",)
    assert data.notes == (note if val == "test" else ())


def test_val_is_preferred_to_test(tmp_path: Path) -> None:
    for part in ("train", "test", "val"):
        classes(tmp_path / part, {"a": 2, "b": 2})
    val = open_data(tmp_path).val
    assert isinstance(val, FileImages)
    assert val.root == str(tmp_path / "val")


def test_train_folder_alone_is_split(tmp_path: Path) -> None:
    classes(tmp_path / "train", {"a": 10, "b": 10})
    data = open_data(tmp_path)
    assert (len(data.train), len(data.val or ())) == (18, 2)
    assert data.notes == (
        f"no validation part in {tmp_path}: 10 % of each class held out, 2 of 20 images, seed 0",
    )


def test_a_class_called_train(tmp_path: Path) -> None:
    data = open_data(classes(tmp_path, {"bus": 3, "train": 3, "tram": 3}))
    assert data.categories == ("bus", "train", "tram")


def test_parts_without_train(tmp_path: Path) -> None:
    for part in ("val", "test"):
        classes(tmp_path / part, {"a": 2, "b": 2})
    with pytest.raises(DataError, match="holds test, val, but no folder called train"):
        open_data(tmp_path)


def test_val_as_a_folder(tmp_path: Path) -> None:
    classes(tmp_path / "set" / "train", {"a": 5, "b": 5})
    classes(tmp_path / "set" / "val", {"a": 2, "b": 2})
    other = classes(tmp_path / "other", {"A": 3, "b": 1})
    data = open_data(tmp_path / "set", val=other)
    assert data.val is not None
    assert data.val.labels == [0, 0, 0, 1]
    assert len(data.train) == 10
    same = open_data(tmp_path / "set", val=tmp_path / "set" / "train")
    assert "validated on the images that are trained on" in same.notes[0]


def test_val_as_a_share_leaves_the_own_part_alone(tmp_path: Path) -> None:
    classes(tmp_path / "train", {"a": 5, "b": 5})
    classes(tmp_path / "test", {"a": 2, "b": 2})
    data = open_data(tmp_path, val=0.4)
    assert isinstance(data.val, FileImages)
    assert (len(data.train), len(data.val), data.val.root) == (6, 4, str(tmp_path / "train"))
    assert data.notes == (
        f"validation part taken from {tmp_path}: 40 % of each class held out, 4 of 10 images, seed 0",
    )


def test_val_classes_have_to_be_known(tmp_path: Path) -> None:
    classes(tmp_path / "train", {"a": 5, "b": 5, "c": 5})
    classes(tmp_path / "val", {"a": 2, "c": 1})
    data = open_data(tmp_path)
    assert data.val is not None
    assert data.val.labels == [0, 0, 2]
    assert data.notes == ("no validation images for 1 of 3 classes: b",)
    classes(tmp_path / "val", {"d": 2})
    with pytest.raises(
        DataError, match=r"val: 1 folder not called like one of the 3 classes: d; the classes are a, b, c"
    ):
        open_data(tmp_path)


def test_limit(tmp_path: Path) -> None:
    classes(tmp_path / "train", {"a": 50, "b": 3})
    whole = open_data(tmp_path)
    data = open_data(tmp_path, limit=4)
    assert Counter(data.train.labels) == {0: 4, 1: 2}
    assert data.val is not None
    assert Counter(data.val.labels) == {0: 4, 1: 1}  # held out, so limited too
    assert set(names(data.train)) < set(names(whole.train))
    assert set(names(data.val)) < set(names(whole.val))
    assert data.notes[-1] == "limited to 4 images a class: 6 of 47 images to train on"
    assert names(open_data(tmp_path, limit=4).train) == names(data.train)
    assert open_data(tmp_path, limit=50).notes == whole.notes
    classes(tmp_path / "val", {"a": 20, "b": 20})
    assert len(open_data(tmp_path, limit=4).val or ()) == 40  # a part of its own is kept whole


def test_wnid_folders_get_their_names(tmp_path: Path) -> None:
    classes(tmp_path, {"n01443537": 3, "n01440764": 3, "n02012849-crane": 3})
    data = open_data(tmp_path)
    assert data.categories == ("tench", "goldfish", "crane")
    assert data.wnids == ("n01440764", "n01443537", "n02012849")
    val = classes(tmp_path.parent / f"{tmp_path.name}-val", {"n02012849": 1, "goldfish": 1})
    assert (open_data(tmp_path, val=val).val or data.train).labels == [1, 2]
    # Wnids that are not ImageNet's have no known names.
    data = open_data(classes(tmp_path, {"n99999999": 3}))
    assert data.categories[-1] == "n99999999"
    assert data.wnids == ()


def test_what_is_passed_over(tmp_path: Path) -> None:
    classes(tmp_path, {"cat": 2, "dog": 2})
    fill(tmp_path, ["cat/deep/er/x.png", "cat/.hidden.jpg", "dog/notes.txt", "stray.jpg", "logs/x.txt"])
    data = open_data(tmp_path, val=0.1)
    assert data.categories == ("cat", "dog")
    assert "cat/deep/er/x.png" in [*names(data.train), *names(data.val)]
    assert len(data.train) + len(data.val or ()) == 5
    assert data.notes[:2] == (
        f"{tmp_path}: 1 folder without images passed over: logs",
        f"{tmp_path}: 1 image outside the class folders passed over: stray.jpg",
    )


def test_categories_fix_the_order(tmp_path: Path) -> None:
    classes(tmp_path, {"Red_Fox": 3, "crow": 3})
    data = open_data(tmp_path, categories=["newt", "red fox", "crow"])
    assert data.categories == ("newt", "red fox", "crow")
    assert set(data.train.labels) == {1, 2}
    assert data.notes[0] == "no training images for 1 of 3 classes: newt"
    with pytest.raises(DataError, match="1 folder not called like one of the 2 classes: Red_Fox"):
        open_data(tmp_path, categories=["crow", "newt"])
    with pytest.raises(DataError, match="a list of class names is expected"):
        open_data(tmp_path, categories="crow")
    wnids = classes(tmp_path / "imagenet", {"n01440764": 2, "n15075141": 2})
    assert set(open_data(wnids, categories=categories()).train.labels) == {0, 999}
    assert set(open_data(wnids, categories=["toilet tissue", "tench"]).train.labels) == {0, 1}


def test_no_image_to_spare(tmp_path: Path) -> None:
    data = open_data(classes(tmp_path, {"a": 1, "b": 1}))
    assert data.val is None
    assert len(data.train) == 2
    assert data.notes == (
        f"no validation part in {tmp_path}: none can be held out, as no class has two images",
    )


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder; data sets known by name are cifar10, "):
        open_data(tmp_path / "nowhere")
    with pytest.raises(DataError, match="the folder is empty; one folder of images for each class"):
        open_data(tmp_path)
    fill(tmp_path, ["a.jpg", "b.jpg"])
    with pytest.raises(DataError, match="2 images but no class folders"):
        open_data(tmp_path)
    with pytest.raises(DataError, match=r"a\.jpg: is a file"):
        open_data(tmp_path / "a.jpg")
    fill(tmp_path, ["cat/a.txt"])
    with pytest.raises(DataError, match=r"no images in its 1 folder \(looked for"):
        open_data(tmp_path)
    classes(tmp_path, {"cat": 3})
    with pytest.raises(DataError, match=r"only one class has images \(cat\)"):
        open_data(tmp_path)
    classes(tmp_path, {"dog": 3})
    with pytest.raises(DataError, match="elsewhere: no such folder"):
        open_data(tmp_path, val=tmp_path / "elsewhere")
    with pytest.raises(DataError, match="None is neither a folder, nor the name of a data set"):
        open_data(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [0, -1, True, 1.5])
def test_limits_that_make_no_sense(tmp_path: Path, limit: Any) -> None:
    with pytest.raises(DataError, match=f"limit is {limit}; .* is 1 or more"):
        open_data(classes(tmp_path, {"a": 2, "b": 2}), limit=limit)


def test_nothing_is_held_out(tmp_path: Path) -> None:
    classes(tmp_path / "plain", {"a": 5, "b": 5})
    data = open_data(tmp_path / "plain", val_fraction=0, limit=4)
    assert (len(data.train), data.val) == (8, None)
    assert data.notes[0].startswith(f"no validation part in {tmp_path / 'plain'}, and none held out")
    assert open_data(tmp_path / "plain", val_fraction=0.0).fingerprint != data.fingerprint
    asked_for = open_data(tmp_path / "plain", val=0.2, val_fraction=0)
    assert len(asked_for.val or ()) == 2

    classes(tmp_path / "parts" / "train", {"a": 5, "b": 5})
    classes(tmp_path / "parts" / "val", {"a": 2, "b": 2})
    own = open_data(tmp_path / "parts", val_fraction=0)
    assert (len(own.train), len(own.val or ()), own.notes) == (10, 4, ())
    assert own.fingerprint == open_data(tmp_path / "parts").fingerprint


def test_class_folders_whose_names_are_not_utf8(tmp_path: Path) -> None:
    classes(tmp_path, {"cat": 3})
    try:
        os.mkdir(os.path.join(os.fsencode(tmp_path), b"caf\xe9"))
    except OSError as e:
        pytest.skip(f"the file system takes UTF-8 only: {e}")
    open_folder = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    for i in range(3):
        Path(os.fsdecode(os.path.join(open_folder, b"%d.jpg" % i))).write_bytes(b"")
    with pytest.raises(DataError, match=r"'caf\\udce9' is not valid UTF-8, .*weights file: rename it"):
        open_data(tmp_path)


@pytest.mark.parametrize(
    ("name", "share"),
    [
        *(("val", share) for share in (0, 0.0, -0.1, 0.91, 1, 2.0, float("nan"), True)),
        *(("val_fraction", share) for share in (-0.1, 0.91, 1, 2.0, float("nan"), True, False)),
    ],
)
def test_shares_that_make_no_sense(tmp_path: Path, name: str, share: Any) -> None:
    with pytest.raises(DataError, match=f"{name} is {share}; .* above 0 and at most 0.9"):
        open_data(classes(tmp_path, {"a": 2, "b": 2}), **{name: share})


def test_parts_are_not_taken_as_classes(tmp_path: Path) -> None:
    fill(tmp_path / "a", [f"{part}/{i}.jpg" for part in ("train", "test1") for i in range(4)])
    with pytest.raises(DataError, match="train: 4 images but no class folders"):
        open_data(tmp_path / "a")
    fill(tmp_path / "b", [f"{part}/{i}.jpg" for part in ("set_1", "Test Set", "val2017") for i in range(4)])
    notes = "\n".join(open_data(tmp_path / "b").notes)
    assert "taken as a class, though called like a part of a data set: Test Set, val2017" in notes
    with pytest.raises(DataError, match="no folder called train"):
        open_data(fill(tmp_path / "c", ["test1/a.jpg", "val2017/b.jpg"]))
    with pytest.raises(DataError, match="called like parts of a data set, and have no class folders"):
        open_data(fill(tmp_path / "d", ["train/a.jpg", "test1/b.jpg", "logs/c.txt"]))
    inside = [f"{c}/{part}/{i}.jpg" for c in ("cat", "dog") for part in ("train", "test") for i in range(3)]
    with pytest.raises(DataError, match=r"cat: this class holds test, train, .*move it to "):
        open_data(fill(tmp_path / "e", inside))


def test_a_part_without_class_folders_is_passed_over(tmp_path: Path) -> None:
    """As Kaggle's test sets are, and tiny-imagenet's validation part (val/images)."""
    classes(tmp_path / "train", {"cat": 20, "dog": 10})
    fill(tmp_path / "test", ["1.jpg", "2.jpg"])
    for _ in range(2):
        data = open_data(tmp_path)
        assert Counter((data.val or data.train).labels) == {0: 2, 1: 1}
        assert "passed over, as no folder in it is called like a class (--val: " in data.notes[0]
        fill(tmp_path / "val" / "images", ["1.jpg", "2.jpg"])


def test_folders_of_systems_are_no_classes(tmp_path: Path) -> None:
    classes(tmp_path, {"cat": 2, "dog": 2, "@eaDir": 1, "$RECYCLE.BIN": 2, "System Volume Information": 1})
    classes(tmp_path, {"lost+found": 1, "cat/@eaDir/000.jpg": 1})
    data = open_data(tmp_path, val_fraction=0)
    assert data.categories == ("cat", "dog")
    assert sorted(names(data.train)) == [f"{c}{os.sep}00{i}.jpg" for c in ("cat", "dog") for i in range(2)]


def test_a_class_of_images_that_are_not_read_does_not_vanish(tmp_path: Path) -> None:
    fill(tmp_path, ["cat/1.jpg", "cat/2.jpg", "dog/1.CR2", "dog/2.CR2", "cat/a.txt"])
    data = open_data(tmp_path, val_fraction=0)
    assert data.categories == ("cat", "dog")
    assert data.train.labels == [0, 0, 1, 1]
    assert f"{tmp_path}: files that are no images passed over: 1 .txt" in data.notes
    assert any("counted as unreadable: 2 .cr2" in note for note in data.notes)


def test_classes_and_counts_in_one_line(tmp_path: Path) -> None:
    data = open_data(classes(tmp_path / "few", {"cat": 20, "dog": 10}))
    assert class_counts(data) == "2 classes, training + validation images: cat 18 + 2, dog 9 + 1"
    many = open_data(classes(tmp_path / "many", {f"c{i:02d}": i + 1 for i in range(30)}), val_fraction=0)
    assert class_counts(many).startswith("30 classes, training images: c00 1, c01 2, c02 3, ")
    assert class_counts(many).endswith("c09 10, ... (1 to 30 training images a class)")
