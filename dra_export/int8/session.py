"""Open graphs as the runtime opens them, and feed them images and texts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dra_runtime.preprocess import Preprocess, open_image

IMAGE_BATCH = 4  #: a few, so that activations stay in the cache
AHEAD = 2  #: batches that are opened while the graph is at work

Array = NDArray[np.float32]


def open_session(graph: bytes | Path, threads: int) -> Any:
    """Open a graph, a file or its bytes, in ONNX Runtime on the CPU, with the runtime's settings."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = graph if isinstance(graph, bytes) else str(graph)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def pixel_batches(
    images: Sequence[Path], preprocess: Preprocess, threads: int, size: int = IMAGE_BATCH
) -> Iterator[Array]:
    """Open and preprocess images in several threads, in order: batches (N, 3, S, S) with N up to ``size``."""

    def load(path: Path) -> Array:
        return preprocess(open_image(path))

    waiting: deque[list[Future[Array]]] = deque()
    with ThreadPoolExecutor(threads) as pool:  # Pillow opens and resizes without the interpreter's lock
        try:
            for start in range(0, len(images), size):
                waiting.append([pool.submit(load, path) for path in images[start : start + size]])
                if len(waiting) > AHEAD:
                    yield np.stack([future.result() for future in waiting.popleft()])
            while waiting:
                yield np.stack([future.result() for future in waiting.popleft()])
        finally:
            pool.shutdown(cancel_futures=True)
