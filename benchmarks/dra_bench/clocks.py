"""Clock rates and temperatures of the CPU and of the first GPU, where this machine tells them."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path

Reading = float | str | None

CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "x86_pkg_temp")  #: names that Linux gives to a CPU's
GPU_KEYS = ("gpu_name", "gpu_driver", "gpu_sm_mhz", "gpu_memory_mhz", "gpu_celsius", "gpu_watts")
NVIDIA_SMI = (
    "nvidia-smi",
    "--query-gpu=name,driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw",
    "--format=csv,noheader,nounits",
    "--id=0",
)
PATIENCE_SECONDS = 10  #: a driver that hangs shall not stop a measurement


def clocks(root: Path = Path("/"), nvidia_smi: Sequence[str] = NVIDIA_SMI) -> dict[str, Reading]:
    """Read what runs how fast and how hot right now; None where it can't be read.

    Returns
    -------
    dict
        cpu_mhz (median of the cores), cpu_celsius (hottest sensor), gpu_name, gpu_driver, gpu_sm_mhz, gpu_memory_mhz,
        gpu_celsius and gpu_watts of the first GPU.
    """
    return {"cpu_mhz": cpu_mhz(root), "cpu_celsius": cpu_celsius(root), **gpu_clocks(nvidia_smi)}


def clocks_after(root: Path = Path("/"), nvidia_smi: Sequence[str] = NVIDIA_SMI) -> dict[str, Reading]:
    """Read once more, after a measurement: the figures alone, under names such as cpu_mhz_after."""
    found = clocks(root, nvidia_smi)
    return {f"{name}_after": value for name, value in found.items() if not isinstance(value, str)}


def cpu_mhz(root: Path = Path("/")) -> float | None:
    """Return the clock rate of the CPU in MHz, the median of its cores."""
    rates = []
    for line in _text(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "cpu MHz" and (rate := _number(value)) is not None:
            rates.append(rate)
    return round(statistics.median(rates), 1) if rates else None


def cpu_celsius(root: Path = Path("/")) -> float | None:
    """Return the temperature of the CPU in degrees Celsius, that of its hottest sensor."""
    readings: list[Path] = []
    for name in (root / "sys/class/hwmon").glob("hwmon*/name"):
        if _text(name).strip() in CPU_SENSORS:
            readings += name.parent.glob("temp*_input")
    for kind in (root / "sys/class/thermal").glob("thermal_zone*/type"):
        if _text(kind).strip() in CPU_SENSORS:
            readings.append(kind.with_name("temp"))
    degrees = [value / 1000 for path in readings if (value := _number(_text(path))) is not None]
    return round(max(degrees), 1) if degrees else None


def gpu_clocks(nvidia_smi: Sequence[str] = NVIDIA_SMI) -> dict[str, Reading]:
    """Return name, driver, clock rates in MHz, degrees Celsius and watts of the first GPU, by NVIDIA's own tool."""
    nothing: dict[str, Reading] = dict.fromkeys(GPU_KEYS)
    try:
        run = subprocess.run(nvidia_smi, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True)
        fields = [field.strip() for field in run.stdout.splitlines()[0].split(",")]
        name, driver, *figures = fields
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError, ValueError, IndexError):
        return nothing
    if len(fields) != len(GPU_KEYS):
        return nothing
    return dict(zip(GPU_KEYS, (name, driver, *map(_number, figures)), strict=True))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # "[N/A]", as nvidia-smi writes what a GPU doesn't tell
        return None
