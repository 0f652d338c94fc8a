"""Data sets by name, in their real formats: found, unpacked, downloaded, or said to be missing or damaged."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import os
import pickle
import shutil
import struct
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from proxylessnas.data import named
from proxylessnas.data.categories import categories
from proxylessnas.data.named import parse_name, read_idx
from proxylessnas.data.open import open_data
from proxylessnas.errors import DataError
from proxylessnas.utils.paths import cache_dir


def test_names_of_data_sets() -> None:
    assert parse_name("cifar10") == parse_name("CIFAR-10") == ("cifar10", None)
    assert parse_name("fashion_mnist:/data/x") == ("fashion-mnist", "/data/x")
    assert parse_name("cifar10:~/x") == ("cifar10", os.path.expanduser("~/x"))
    for folder in ("./cifar10", "cifar10/", "C:\\photos", "photos", "cifar1000"):
        assert parse_name(folder) is None


def test_digits() -> None:
    data = open_data("digits")
    assert data.val is not None
    assert (len(data.train), len(data.val), data.size) == (1618, 179, (8, 8))
    assert data.categories == tuple("0123456789")
    assert data.train.name(0).startswith("digits/0000")
    images = torch.stack([part.read(i) for part in (data.train, data.val) for i in range(len(part))])
    assert images.shape == (1797, 3, 8, 8)
    assert data.mean is not None
    assert data.std is not None
    assert float(images[:, 0].double().mean() / 255) == pytest.approx(data.mean[0], abs=1e-4)
    assert float(images[:, 0].double().std() / 255) == pytest.approx(data.std[0], abs=1e-4)
    assert open_data("digits").fingerprint == data.fingerprint != open_data("digits", seed=1).fingerprint
    assert len(open_data("digits", limit=10).train) == 100
    with pytest.raises(DataError, match="leave out the folder"):
        open_data("digits:/x")


def test_digits_are_the_test_part_of_the_uci_set() -> None:
    """1,797 images; the counts of the classes are those that the authors state."""
    images, labels = named.load_digits()
    assert (images.shape, images.dtype) == ((1797, 8, 8), torch.uint8)
    assert (labels.shape, labels.dtype) == ((1797,), torch.uint8)
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert len(named.DIGITS) == 10


def test_the_original_sixteenths_of_digits_can_be_had_back() -> None:
    images, _ = named.load_digits()
    sixteenths = (images.long() * 16 + 127) // 255
    assert sorted(sixteenths.unique().tolist()) == list(range(17))
    assert torch.equal((sixteenths * 255 + 8) // 16, images.long())
    first = "0 0 5 13 9 1 0 0"  # the top row of the first image, a nought
    assert sixteenths[0, 0].tolist() == [int(word) for word in first.split()]


def test_callers_cannot_change_each_others_digits() -> None:
    images, _ = named.load_digits()
    images.zero_()
    assert int(named.load_digits()[0].max()) == 255


def test_damaged_digits_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(named.FILE.read_bytes())
    data[-1] ^= 1
    monkeypatch.setattr(named, "FILE", tmp_path / "digits.safetensors")
    with pytest.raises(DataError, match=r"No such file.*install that again"):
        named.load_digits()
    named.FILE.write_bytes(data)
    with pytest.raises(DataError, match="is damaged"):
        named.load_digits()


def test_a_folder_called_like_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        (tmp_path / "digits" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "digits" / name).touch()
    assert open_data("digits").notes[0] == "digits is the data set of this name; the folder is ./digits"
    assert open_data("./digits").categories == ("a", "b")


def idx(array: torch.Tensor) -> bytes:
    """Return an array in MNIST's file format."""
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.contiguous().numpy().tobytes()


def write_fashion(folder: Path, packed: bool) -> dict[str, torch.Tensor]:
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    arrays = {}
    for part, n in (("train", 20), ("t10k", 10)):
        arrays[f"{part}-images-idx3-ubyte"] = torch.randint(
            0, 256, (n, 28, 28), dtype=torch.uint8, generator=generator
        )
        arrays[f"{part}-labels-idx1-ubyte"] = torch.arange(n).remainder(10).byte()
    for name, array in arrays.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return arrays


@pytest.mark.parametrize(("below", "packed"), [("", True), ("FashionMNIST/raw", False)])
def test_fashion_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str, packed: bool) -> None:
    """As a Debian package and as torchvision have it."""
    arrays = write_fashion(tmp_path / "data" / below, packed)
    monkeypatch.setenv("PROXYLESSNAS_OFFLINE", "1")
    data = open_data(f"fashion-mnist:{tmp_path / 'data'}")
    assert data.val is not None
    assert (len(data.train), len(data.val), data.size) == (20, 10, (28, 28))
    assert data.categories[:2] == ("T-shirt/top", "Trouser")
    assert data.train.read(3).equal(arrays["train-images-idx3-ubyte"][3].expand(3, -1, -1))
    assert list(data.val.labels) == list(range(10))
    assert data.val.name(7) == "test/00007"
    assert data.notes == ("validated on the 10 test images of fashion-mnist",)
    monkeypatch.setenv("PROXYLESSNAS_DATA", str(tmp_path / "data"))
    held_out = open_data("fashion-mnist", val=0.5)
    assert (len(held_out.train), len(held_out.val or ())) == (10, 10)
    assert "50 % of each class held out" in held_out.notes[0]
    if not packed:  # torchvision agrees about these files
        from torchvision.datasets import FashionMNIST

        theirs = FashionMNIST(str(tmp_path / "data"), train=True)
        assert theirs.data.equal(arrays["train-images-idx3-ubyte"])
        assert tuple(theirs.classes) == data.categories


def test_damaged_idx_files(tmp_path: Path) -> None:
    good = idx(torch.arange(12, dtype=torch.uint8).view(3, 4))
    for content, reason in [
        (good[:-1], r"holds 11 values, but \[3, 4\] were announced"),
        (b"rubbish", "is not an IDX file"),
        (b"", "is not an IDX file"),
        (good[:6], "is not an IDX file"),
        (gzip.compress(good)[:-9], "cannot be read"),
        (gzip.compress(good)[:12] + b"\xff" * 20, "cannot be read"),
    ]:
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(DataError, match=reason):
            read_idx(str(tmp_path / "x"))
    with pytest.raises(DataError, match="No such file"):
        read_idx(str(tmp_path / "y"))
    write_fashion(tmp_path / "set", packed=True)
    (tmp_path / "set" / "train-labels-idx1-ubyte.gz").write_bytes(idx(torch.tensor([1, 2, 3]).byte()))
    with pytest.raises(DataError, match=r"the train part has images \[20, 28, 28\] and labels \[3\]"):
        open_data(f"fashion-mnist:{tmp_path / 'set'}")


def test_fashion_mnist_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr("proxylessnas.data.named._DEBIAN_FASHION", str(tmp_path / "debian"))
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])  # nobody listens there
    source = f"fashion-mnist:{tmp_path / 'data'}"
    by_hand = r"fashion-mnist:FOLDER takes one that you have, and digits comes with the package; "
    by_hand += rf"by hand, put the four \*-ubyte\.gz files from http://127\.0\.0\.1:9/ into {tmp_path}/data$"
    with pytest.raises(DataError, match=f"fashion-mnist could not be downloaded from .*{by_hand}") as caught:
        open_data(source)
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("PROXYLESSNAS_OFFLINE", "1")
    with pytest.raises(DataError, match=f"PROXYLESSNAS_OFFLINE forbids .*{by_hand}"):
        open_data(source)
    write_fashion(tmp_path / "debian", packed=True)
    assert len(open_data(source).train) == 20


@pytest.fixture(params=["CIFAR10", "CIFAR100"])
def cifar(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a small CIFAR in its real format, and tell torchvision the digests of these files."""
    numpy = pytest.importorskip("numpy")
    datasets = pytest.importorskip("torchvision.datasets")
    cls = getattr(datasets, request.param)
    fine = request.param == "CIFAR100"
    n_classes = 100 if fine else 10
    folder = tmp_path / "made" / cls.base_folder
    folder.mkdir(parents=True)

    def write(name: str, content: Any) -> str:
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    pixel_values = numpy.random.default_rng(0).integers(0, 256, (2 * n_classes, 3072), dtype=numpy.uint8)
    key = "fine_labels" if fine else "labels"
    batch = {"data": pixel_values, key: [*range(n_classes)] * 2}
    lists = {
        which: [[name, write(name, batch)] for name, _ in getattr(cls, which)]
        for which in ("train_list", "test_list")
    }
    labels = [f"class_{i}" for i in range(100)] if fine else list(categories("cifar10"))
    meta = {**cls.meta, "md5": write(cls.meta["filename"], {cls.meta["key"]: labels})}
    archive = tmp_path / "archive" / cls.filename
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, cls.base_folder)
    monkeypatch.setattr(cls, "train_list", lists["train_list"])
    monkeypatch.setattr(cls, "test_list", lists["test_list"])
    monkeypatch.setattr(cls, "meta", meta)
    monkeypatch.setattr(cls, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(cls, "url", "http://127.0.0.1:9/cifar.tar.gz")  # nobody listens there
    extra = {"made": folder, "archive": archive, "first": pixel_values[0], "labels": labels}
    for attribute, value in extra.items():
        monkeypatch.setattr(cls, attribute, value, raising=False)
    return cls


def test_cifar(cifar: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROXYLESSNAS_OFFLINE", "1")
    name = cifar.__name__.lower()
    data = open_data(f"{name}:{cifar.made.parent}")
    batches = len(cifar.train_list)
    n = 2 * len(cifar.labels)
    assert data.val is not None
    assert (len(data.train), len(data.val), data.size) == (batches * n, n, (32, 32))
    assert data.categories == tuple(cifar.labels)
    assert data.train.read(0).flatten().tolist() == cifar.first.tolist()
    assert list(data.val.labels) == [*range(n // 2)] * 2
    assert data.mean is not None
    assert data.notes == (f"validated on the {n} test images of {name}",)
    same = open_data(f"{name}:{cifar.made}")  # the folder with the batches itself
    assert same.fingerprint == data.fingerprint
    turned = open_data(f"{name}:{cifar.made}", categories=cifar.labels[::-1])
    assert turned.categories == tuple(cifar.labels[::-1])
    assert list(turned.train.labels[:3]) == [n // 2 - 1, n // 2 - 2, n // 2 - 3]
    with pytest.raises(DataError, match=f"{name} has classes that are not in the list of 1 given"):
        open_data(f"{name}:{cifar.made}", categories=["frog"])


def test_cifar_is_unpacked_without_the_network(
    cifar: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROXYLESSNAS_OFFLINE", "1")
    monkeypatch.setenv("PROXYLESSNAS_DATA", str(tmp_path / "data"))
    name = cifar.__name__.lower()
    with pytest.raises(DataError) as caught:
        open_data(name)
    assert str(tmp_path / "data") in str(caught.value)
    assert "PROXYLESSNAS_OFFLINE forbids" in str(caught.value)
    assert f"by hand, put {cifar.filename} from {cifar.url} into" in str(caught.value)
    assert not (tmp_path / "data").exists()
    (tmp_path / "data").mkdir()
    shutil.copy(cifar.archive, tmp_path / "data")
    assert len(open_data(name).val or ()) == 2 * len(cifar.labels)


def test_cifar_is_downloaded(cifar: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = cifar.__name__.lower()
    with pytest.raises(
        DataError, match=rf"{name} could not be downloaded from {cifar.url} to .*datasets: .*"
    ):
        open_data(name)
    with served(cifar.archive.parent) as address:
        monkeypatch.setattr(cifar, "url", f"{address}/{cifar.filename}")
        data = open_data(name)
    assert len(data.val or ()) == 2 * len(cifar.labels)
    assert open_data(name).fingerprint == data.fingerprint
    folder = cache_dir() / "datasets"
    assert sorted(os.listdir(folder)) == sorted([cifar.base_folder, cifar.filename])
    # A damaged file is not trained on: it is fetched again, or said to be damaged.
    (folder / cifar.base_folder / cifar.test_list[0][0]).write_bytes(b"rubbish")
    (folder / cifar.filename).write_bytes(b"rubbish")
    monkeypatch.setenv("PROXYLESSNAS_OFFLINE", "1")
    with pytest.raises(DataError, match="or is damaged there"):
        open_data(name)
    with pytest.raises(DataError, match="is a file; the folder of cifar"):
        open_data(f"{name}:{folder / cifar.filename}")


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args: Any) -> None:
            pass

        def copyfile(self, *args: Any) -> None:
            with contextlib.suppress(ConnectionError):  # torchvision first asks where an address leads
                super().copyfile(*args)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
