"""What the frozen image trunk gives for a data set's images, computed once and kept on the disk.

A folder for each set, named by a hash of everything that decides the numbers: the trunk's weights, the preprocessing,
the list of images with their sizes and times, and the kind of device. So features of another checkpoint,
of other preprocessing or of a changed picture are never used. It holds

    pooled.f32   (M, P)     what the tower's head takes; small, read into memory
    maps.f16     (M, T, C)  local features, memory-mapped; left out for models without TAC
    meta.json    the shapes, and what the folder is

written to a temporary name and renamed when complete. Any such folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dra_runtime.console import progress
from dra_runtime.errors import DatasetError, UsageError
from dra_train.features import device_of, trunk_batches
from dra_train.model import DRA, FrozenFeatures

VERSION = 1  #: of the files; another one is another hash


class Maps(Protocol):
    """Where the feature maps of the images come from."""

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the maps of images (n,) by index: (n, T, C) half, on the CPU."""


@dataclass(frozen=True)
class ImageOutputs:
    """The trunk's outputs for M images: never more of them on a GPU than a batch needs."""

    pooled: Tensor  #: (M, P) float32, on the CPU
    maps: Maps | None  #: None for a model without TAC


def default_cache() -> Path:
    """Return the folder of all feature caches: $DRA_CACHE, else dra-toolkit in the user's cache folder."""
    if folder := os.environ.get("DRA_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dra-toolkit"


@dataclass(frozen=True)
class Request:
    """Which outputs are wanted."""

    images: Mapping[str, Path]
    label: str  #: of the progress bar
    maps: bool = True  #: or the pooled features alone
    quiet: bool = False


def cached_outputs(model: DRA, request: Request, folder: Path) -> ImageOutputs:
    """Return the trunk's outputs from the cache in ``folder``, computed first where they aren't there.

    A damaged cache is computed anew. UsageError when the folder can't be written or the disk is full.
    """
    target = folder / "features" / cache_key(model, request)
    meta = _complete(target) or _build(model, request, target)
    pooled = np.fromfile(target / "pooled.f32", dtype="<f4").reshape(meta["pooled"])
    maps = None
    if meta["maps"]:
        maps = _MappedMaps(np.memmap(target / "maps.f16", dtype="<f2", mode="r", shape=tuple(meta["maps"])))
    return ImageOutputs(torch.from_numpy(pooled), maps)


def live_outputs(model: DRA, request: Request) -> ImageOutputs:
    """Return the trunk's outputs without the disk: the maps are computed whenever they are asked for."""
    paths = list(request.images.values())
    pooled = []
    with progress(len(paths), request.label, hidden=request.quiet) as advance:
        for frozen in trunk_batches(model, paths):
            pooled.append(frozen.pooled)
            advance(len(frozen.pooled))
    return ImageOutputs(torch.cat(pooled), _LiveMaps(model, paths) if request.maps else None)


def cache_key(model: DRA, request: Request) -> str:
    """Hash everything that the outputs depend on.

    A picture counts as unchanged while its path, size and modification time stay; reading all of them would take as
    long as the features. DatasetError when one is missing or empty.
    """
    digest = hashlib.sha256()
    head = "head." if hasattr(model.visual, "trunk") else "\0"  # a timm tower's head is trained, and comes later
    for name, tensor in model.visual.state_dict().items():
        if not name.startswith(head):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    files = []
    for name, path in request.images.items():
        try:
            stat = path.stat()
        except OSError as error:
            raise DatasetError(f"image {name!r} can't be read: {error}; complete the data set") from error
        if not stat.st_size:
            raise DatasetError(f"image {name!r} is empty ({path}); restore the file")
        files.append([name, str(path.resolve()), stat.st_size, stat.st_mtime_ns])
    facts = {
        "version": VERSION,
        "tower": dict(model.config.clip["vision_cfg"]),
        "image_stages": model.config.image_stages,
        "quick_gelu": model.config.clip.get("quick_gelu"),
        "preprocess": model.config.preprocess.to_dict(),
        "images": files,
        "maps": request.maps,
        "device": device_of(model).type,
    }
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class _MappedMaps:
    array: NDArray[np.float16]

    def __call__(self, rows: Tensor) -> Tensor:
        # Indexing a plain view copies the rows; of the map itself nothing stays in memory but what the system caches
        return torch.from_numpy(np.asarray(self.array)[rows.numpy()])


@dataclass(frozen=True)
class _LiveMaps:
    model: DRA
    paths: Sequence[Path]

    def __call__(self, rows: Tensor) -> Tensor:
        distinct, place = torch.unique(rows, return_inverse=True)
        with torch.autocast(device_of(self.model).type, enabled=False):  # as when they are cached
            maps = [frozen.feature_map for frozen in trunk_batches(self.model, [self.paths[i] for i in distinct])]
            return torch.cat(maps)[place]


def _complete(target: Path) -> dict[str, Any] | None:
    """Return a cache's shapes if its files are whole, else None."""
    try:
        meta = json.loads((target / "meta.json").read_text(encoding="utf-8"))
        sizes = {"pooled.f32": 4 * int(np.prod(meta["pooled"]))}
        if meta["maps"]:
            sizes["maps.f16"] = 2 * int(np.prod(meta["maps"]))
        whole = all((target / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return meta if whole else None


def _build(model: DRA, request: Request, target: Path) -> dict[str, Any]:
    paths = list(request.images.values())
    shapes: dict[str, Any] = {"pooled": [], "maps": []}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            with (
                (temporary / "pooled.f32").open("wb") as pooled,
                (temporary / "maps.f16").open("wb") as maps,
                progress(len(paths), request.label, hidden=request.quiet) as advance,
            ):
                for frozen in trunk_batches(model, paths):
                    pooled.write(_bytes(frozen.pooled, "<f4"))  # plain writes: on a full disk a map would kill us
                    if request.maps:
                        maps.write(_bytes(frozen.feature_map, "<f2"))
                    shapes = _shapes(frozen, len(paths), request.maps)
                    advance(len(frozen.pooled))
            meta = {"format": "dra-features", "version": VERSION, **shapes}
            (temporary / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
            shutil.rmtree(target, ignore_errors=True)  # a damaged one
            temporary.chmod(0o755)  # other users may share the cache
            temporary.replace(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        if made := _complete(target):  # another run was first
            return made
        raise UsageError(
            f"the features can't be kept below {target.parent}: {error.strerror or error}; free some space, name "
            "another folder with --cache, or compute them in every step with --set run.cache=false"
        ) from error
    return shapes


def _shapes(frozen: FrozenFeatures, count: int, with_maps: bool) -> dict[str, list[int]]:
    maps = [count, *frozen.feature_map.shape[1:]] if with_maps else []
    return {"pooled": [count, *frozen.pooled.shape[1:]], "maps": maps}


def _bytes(tensor: Tensor, kind: str) -> bytes:
    return tensor.contiguous().numpy().astype(kind, copy=False).tobytes()
