"""The journal of an index run: what was encoded so far, kept beside the gallery until that is written.

A folder `.NAME.partial` with append-only files; `docs/indexing.md` describes it. Vectors are appended first and then
one line that names their images and holds their checksum; a line counts only when it is whole and its vectors are. So a
run that is killed at any moment loses the batch in flight and nothing else.
"""

from __future__ import annotations

import errno
import json
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from dra_runtime.errors import GalleryError, UsageError
from dra_runtime.files import write_bytes
from dra_runtime.folder import FolderImage

VERSION = "1"
SYNC_SECONDS = 5.0  #: how much work the loss of power may cost
_HEAD, _LINES, _LOCK = "head.json", "images.jsonl", "lock"
_MAX_LINE = 2**20  #: bytes; a batch's line has some kilobytes


@dataclass(frozen=True)
class Head:
    """What a journal's vectors are: only the same command may go on with them."""

    bundle_id: str
    precision: str
    dim: int
    storage: str  #: of the unit vectors
    tokens: tuple[int, ...] | None  #: shape of an image's tokens, where they are kept
    folder: str  #: absolute path of the images


@dataclass(frozen=True, slots=True)
class Done:
    """What a journal knows of an image: the file's size and time then, and its row, or why it was left out."""

    size: int
    mtime_ns: int
    row: int
    reason: str | None


class Journal:
    """An open journal, held by one process. Make one with `open_journal`. Not for several threads."""

    def __init__(self, folder: Path, head: Head) -> None:
        self._folder = folder
        self._head = head
        self._files: dict[str, FileIO] = {}
        self._synced = time.monotonic()
        self.rows = 0  #: vectors that it holds
        self.done: dict[str, Done] = {}  #: by the image's path below the folder
        shapes: dict[str, tuple[str, tuple[int, ...]]] = {"unit": (head.storage, (head.dim,)), "norms": ("float32", ())}
        if head.tokens is not None:
            shapes["tokens"] = ("float16", head.tokens)
        self._shapes = shapes

    def knows(self, image: FolderImage) -> bool:
        """Say whether an image is done and hasn't changed since."""
        done = self.done.get(image.name)
        return done is not None and image.size >= 0 and (done.size, done.mtime_ns) == (image.size, image.mtime_ns)

    def append(
        self,
        images: Sequence[FolderImage],
        arrays: dict[str, npt.NDArray[Any]],
        left_out: Sequence[tuple[FolderImage, str]],
    ) -> None:
        """Add a batch: the images with their rows of ``unit``, ``norms`` and ``tokens``, and those left out.

        Raises
        ------
        GalleryError
            It can't be written; what was there before still is.
        """
        checksum = 0
        try:
            for name, (dtype, shape) in self._shapes.items():
                array = arrays[name]
                assert array.dtype == dtype
                assert array.shape == (len(images), *shape)
                data = array.tobytes()
                checksum = zlib.crc32(data, checksum)
                _write(self._files[name], data)
            batch = {
                "checksum": checksum,
                "images": [(image.name, image.size, image.mtime_ns) for image in images],
                "left_out": [(image.name, image.size, image.mtime_ns, reason) for image, reason in left_out],
            }
            _write(self._files[_LINES], _line_of(batch))
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self.sync()
        except OSError as error:
            raise GalleryError(
                f"{self._folder}: can't be written ({error.strerror or error}); make room, and give the same command "
                "again to go on"
            ) from error
        self._count(batch)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Map the rows so far: ``unit``, ``norms`` and, where they are kept, ``tokens``."""
        return {name: self._mapped(name, self.rows) for name in self._shapes}

    def scratch(self, name: str) -> Path:
        """Return the path of a file that goes with the journal."""
        return self._folder / f"{name}.sorted"

    def sync(self) -> None:
        """Bring everything to the disk: vectors before the lines that count them."""
        for file in self._files.values():
            os.fsync(file.fileno())
        self._synced = time.monotonic()

    def start(self) -> None:
        """Begin an empty journal; whatever lay there is dropped."""
        for path in self._folder.iterdir():
            if path.name != _LOCK:
                path.unlink()
        try:
            for name in (*self._shapes, _LINES):
                self._files[name] = (self._folder / name).open("xb", buffering=0)
            # last: a journal without a head is none, and begins anew
            write_bytes(self._folder / _HEAD, json.dumps({"version": VERSION, **asdict(self._head)}).encode())
        except BaseException:
            self.close()
            raise

    def resume(self) -> None:
        """Read what counts, and cut off what doesn't."""
        for name in (*self._shapes, _LINES):
            (self._folder / name).touch()
        with ExitStack() as stack:
            readers: dict[str, BinaryIO] = {
                n: stack.enter_context((self._folder / n).open("rb")) for n in (*self._shapes, _LINES)
            }
            good = 0
            while (line := readers[_LINES].readline(_MAX_LINE)).endswith(b"\n"):
                batch = _batch_of(line)
                if batch is None or not self._holds(batch, readers):
                    break
                self._count(batch)
                good += len(line)
        try:
            for name in (*self._shapes, _LINES):
                os.truncate(self._folder / name, good if name == _LINES else self.rows * self._row_size(name))
                self._files[name] = (self._folder / name).open("ab", buffering=0)
        except BaseException:  # not `close`: a journal that can't be opened now may hold hours of work
            self._close_files()
            raise

    def close(self) -> None:
        """Keep the journal for a later run; an empty one goes."""
        try:
            if self.done:
                self.sync()
        finally:
            self._close_files()
            if not self.done:
                self._remove()

    def discard(self) -> None:
        """Forget all: `close` will remove the journal."""
        self.done.clear()

    def _close_files(self) -> None:
        for file in self._files.values():
            file.close()

    def _remove(self) -> None:
        # The head first: what is left after a kill in between is then no journal. The lock last: it is still held
        names = (_HEAD, _LINES, *self._shapes, *(self.scratch(name).name for name in self._shapes), _LOCK)
        for name in names:
            (self._folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # what is left isn't ours, such as what NFS keeps while it is mapped
            self._folder.rmdir()

    def _holds(self, batch: dict[str, Any], readers: dict[str, BinaryIO]) -> bool:
        """Say whether a line's vectors, the next ones, are there as they were written."""
        checksum = 0
        for name in self._shapes:
            size = len(batch["images"]) * self._row_size(name)
            data = readers[name].read(size)
            if len(data) != size:
                return False
            checksum = zlib.crc32(data, checksum)
        return bool(checksum == batch["checksum"])

    def _count(self, batch: dict[str, Any]) -> None:
        for name, size, mtime_ns in batch["images"]:
            self.done[name] = Done(size, mtime_ns, self.rows, None)
            self.rows += 1
        for name, size, mtime_ns, reason in batch["left_out"]:
            self.done[name] = Done(size, mtime_ns, -1, reason)

    def _row_size(self, name: str) -> int:
        dtype, shape = self._shapes[name]
        return np.dtype(dtype).itemsize * int(np.prod(shape))

    def _mapped(self, name: str, rows: int) -> npt.NDArray[Any]:
        dtype, shape = self._shapes[name]
        if rows == 0:
            return np.empty((0, *shape), dtype)
        return np.memmap(self._folder / name, dtype, "r", shape=(rows, *shape))


def journal_path(out: Path) -> Path:
    """Return the folder of the journal of a gallery that is to be written to ``out``."""
    return out.with_name(f".{out.name}.partial")


@contextmanager
def open_journal(out: Path, head: Head, restart: bool = False) -> Iterator[Journal]:
    """Open the journal of a gallery, a new one or an interrupted run's, and hold it against other processes.

    Afterwards it is kept if it holds anything and wasn't discarded.

    Raises
    ------
    UsageError
        Another process holds it, or it belongs to another bundle, folder or version and ``restart`` isn't set.
    GalleryError
        It can't be read or written.
    """
    folder = journal_path(out)
    try:
        lock = _locked(folder, out)
        try:
            journal = Journal(folder, head)
            if restart or not _head_agrees(folder, head, out):
                journal.start()
            else:
                journal.resume()
            try:
                yield journal
            finally:
                journal.close()
        finally:
            os.close(lock)
    except OSError as error:
        raise GalleryError(f"{folder}: can't be used ({error.strerror or error}); check the folder") from error


def _locked(folder: Path, out: Path) -> int:
    """Return a file descriptor that holds the lock; the kernel lets go of it when the process dies."""
    try:
        import fcntl
    except ImportError:  # Windows: nobody is kept out there
        fcntl = None  # type: ignore[assignment]
    while True:
        folder.mkdir(exist_ok=True)
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:  # another process has just finished and removed the folder
            continue
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_ino == (folder / _LOCK).stat().st_ino:
                return lock
        except FileNotFoundError:  # removed between our opening and our locking: it was another's
            pass
        except OSError as error:
            os.close(lock)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise UsageError(f"{out} is being indexed by another process; wait for it, or stop it") from error
            raise
        os.close(lock)


def _head_agrees(folder: Path, head: Head, out: Path) -> bool:
    """Say whether there is a journal that this run can go on with; refuse another run's."""
    try:
        with (folder / _HEAD).open("rb") as file:
            values = json.loads(file.read(_MAX_LINE))
        version = values.pop("version")
        found = Head(**{**values, "tokens": None if values["tokens"] is None else tuple(values["tokens"])})
        other_bundle = f"with the bundle {found.bundle_id[:16]} ({found.precision:.10})"
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return False  # none, or nothing that can be told from it
    if version == VERSION and found == head:
        return True
    if version != VERSION:
        other = f"made by another version of this toolkit ({version!r:.20})"
    elif found.bundle_id != head.bundle_id:
        other = other_bundle
    elif found.folder != head.folder:
        other = f"of the folder {found.folder!s:.200}"
    else:
        other = "with another --storage or --tokens"
    raise UsageError(
        f"{folder} holds an interrupted run {other}; finish that one with its own command, or drop it with --restart"
    )


def _line_of(batch: dict[str, Any]) -> bytes:
    # ASCII: file names that aren't valid Unicode survive as escapes
    text = json.dumps(batch, separators=(",", ":")).encode("ascii")
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _batch_of(line: bytes) -> dict[str, Any] | None:
    """Return a line's batch, or None for a line that isn't as it was written."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    batch: dict[str, Any] = json.loads(text)  # a text whose checksum is right is one that we wrote
    return batch


def _write(file: FileIO, data: bytes) -> None:
    # unbuffered, so that what can't be written doesn't come up again when the file is closed
    view = memoryview(data)
    while len(view):
        view = view[file.write(view) :]
