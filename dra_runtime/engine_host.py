"""What decides whether an engine runs here: the GPU, the installed TensorRT libraries, the platform.

Found without importing TensorRT or creating a CUDA context.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass

TENSORRT, TENSORRT_RTX = "tensorrt", "tensorrt-rtx"
LIBRARIES = (TENSORRT, TENSORRT_RTX)

# CUdevice_attribute of the driver's interface
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76


@dataclass(frozen=True)
class Gpu:
    """A GPU's name and its compute capability, such as ``"8.9"``."""

    name: str
    compute_capability: str


@dataclass(frozen=True)
class Host:
    """A machine, as engines see it.

    ``gpu`` is the first that CUDA shows (CUDA_VISIBLE_DEVICES chooses), or None; ``libraries`` maps `TENSORRT` and
    `TENSORRT_RTX` to their installed versions.
    """

    platform: str
    gpu: Gpu | None
    libraries: Mapping[str, str]


def this_host() -> Host:
    """Look at this machine."""
    return Host(this_platform(), first_gpu(), installed_libraries())


def this_platform() -> str:
    """Return the operating system and the processor's architecture, such as ``linux-x86_64``."""
    return f"{sys.platform}-{platform.machine() or 'unknown'}".lower()


def installed_libraries() -> dict[str, str]:
    """Return the installed TensorRT libraries with their versions."""
    from importlib import metadata  # slow to import

    found = {}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def first_gpu() -> Gpu | None:
    """Return the first CUDA device, or None where there is no driver or no device."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    count, device = ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or count.value < 1:
        return None
    name, major, minor = ctypes.create_string_buffer(256), ctypes.c_int(), ctypes.c_int()
    if (
        cuda.cuDeviceGet(ctypes.byref(device), 0)
        or cuda.cuDeviceGetName(name, len(name), device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, device)
    ):
        return None
    return Gpu(name.value.decode("utf-8", "replace"), f"{major.value}.{minor.value}")
