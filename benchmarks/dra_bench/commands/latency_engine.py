"""dra-bench latency --engine: a TensorRT plan alone, told from its sidecar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dra_runtime.errors import UsageError


def time_engine(plan: Path, samples: int | None, seconds: float) -> tuple[dict[str, Any], str]:
    """Time a plan."""
    raise UsageError(f"{plan}: engines can't be timed yet")
