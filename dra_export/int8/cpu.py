"""What of this CPU matters to INT8."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

# With one of the first, products of uint8 and int8 are summed in 32 bits. With AVX2 or AVX-512 alone ONNX Runtime adds
# two products in 16 bits, which can saturate: slower, and not quite the same result.
VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")
OTHERS = ("avx2", "avx512f")


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """Return the CPU's model, those of its instructions that INT8 uses, and whether sums are exact (None: unknown)."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", "").split()
    return {
        "machine": platform.machine(),
        "model": fields.get("model name", platform.processor()),
        "instructions": [flag for flag in (*VNNI, *OTHERS) if flag in flags],
        "exact_sums": any(flag in flags for flag in VNNI) if flags else None,
    }
