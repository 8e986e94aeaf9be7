"""Small data sets in CIRR's format, written anew for each test."""

from __future__ import annotations

import colorsys
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dra_train.settings import FitSettings, load_settings

COLOURS = 6


def _load_helper(name: str) -> None:
    # pytest's importlib mode puts no test folder on the path, so a helper is loaded by its place
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


for helper in ("clip_files", "data_folders"):
    _load_helper(helper)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost models this small more than they bring, most of all where tests share a machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class CirrFolder:
    """A data set on disk that a test may damage."""

    def __init__(self, root: Path, layout: str) -> None:
        self.root = root
        self.annotations = root / "cirr"
        self.images = root / "img_raw" if layout == "beside" else root
        for folder in (self.annotations / "captions", self.annotations / "image_splits", self.images):
            folder.mkdir(parents=True, exist_ok=True)

    def captions(self, split: str) -> Path:
        return self.annotations / "captions" / f"cap.rc2.{split}.json"

    def split(self, split: str) -> Path:
        return self.annotations / "image_splits" / f"split.rc2.{split}.json"

    def write(self, split: str, entries: Sequence[Any], names: Sequence[str]) -> None:
        self.captions(split).write_text(json.dumps(entries))
        self.split(split).write_text(json.dumps({n: f"./{split}/{n}.png" for n in names}))


def caption(pair: int, reference: str, text: str, target: str, names: Sequence[str]) -> dict[str, Any]:
    """Return one entry as CIRR writes it."""
    others = [n for n in names if n not in (reference, target)][:4]
    return {
        "pairid": pair,
        "reference": reference,
        "target_hard": target,
        "target_soft": {target: 1.0},
        "caption": text,
        "img_set": {"id": pair, "members": [reference, target, *others], "reference_rank": 0, "target_rank": 1},
    }


@pytest.fixture
def cirr_folder(tmp_path: Path) -> Callable[..., CirrFolder]:
    """Make a data set: plain squares in six colours, bright or dark, and texts that swap colour or brightness."""

    def make(layout: str = "beside", splits: Sequence[str] = ("train", "val"), root: str = "data") -> CirrFolder:
        folder = CirrFolder(tmp_path / root, layout)
        names = [f"c{colour}-{tone}" for colour in range(COLOURS) for tone in ("bright", "dark")]
        entries = []
        for name in names:
            colour, tone = name[1:].split("-")
            other = "dark" if tone == "bright" else "bright"
            after = (int(colour) + 1) % COLOURS
            entries.append((name, f"make it {other}", f"c{colour}-{other}"))
            entries.append((name, f"in colour {after}!!!", f"c{after}-{tone}"))
        for split in splits:
            (folder.images / split).mkdir()
            for name in names:
                hue, tone = int(name[1]) / COLOURS, name[3:]
                pixel = tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, 1, 1 if tone == "bright" else 0.4))
                Image.new("RGB", (20, 20), pixel).save(folder.images / split / f"{name}.png")
            folder.write(split, [caption(i, *entry, names) for i, entry in enumerate(entries)], names)
        return folder

    return make


@pytest.fixture
def tiny_settings() -> Callable[..., FitSettings]:
    """Return the demo's settings over the tiny ResNet, with a few epochs."""

    def make(*overrides: str) -> FitSettings:
        small = ("model.backbone=tiny-resnet", "model.image_stages=last", "stage1.epochs=2", "stage2.epochs=3")
        sizes = ("stage1.batch_size=8", "stage2.batch_size=8")
        return load_settings("demo", (*small, *sizes, *overrides))

    return make
