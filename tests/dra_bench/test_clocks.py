"""Clock rates and temperatures, read from files and a tool of the test's own."""

import sys

import pytest

from dra_bench.clocks import GPU_KEYS, clocks, clocks_after, cpu_celsius, cpu_mhz, gpu_clocks


@pytest.fixture
def machine(tmp_path):
    """A folder with what Linux tells of a machine of three cores."""
    files = {
        "proc/cpuinfo": "processor\t: 0\ncpu MHz\t\t: 3000.5\nprocessor\t: 1\ncpu MHz\t\t: 1000.0\n"
        "processor\t: 2\ncpu MHz\t\t: 2000.25\ncpu MHz\t\t: unknown\n",
        "sys/class/hwmon/hwmon0/name": "nvme\n",
        "sys/class/hwmon/hwmon0/temp1_input": "99000\n",
        "sys/class/hwmon/hwmon1/name": "k10temp\n",
        "sys/class/hwmon/hwmon1/temp1_input": "61250\n",
        "sys/class/hwmon/hwmon1/temp3_input": "64500\n",
        "sys/class/thermal/thermal_zone0/type": "acpitz\n",
        "sys/class/thermal/thermal_zone0/temp": "88000\n",
        "sys/class/thermal/thermal_zone1/type": "x86_pkg_temp\n",
        "sys/class/thermal/thermal_zone1/temp": "nonsense\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def prints(text, code=0):
    """Return a command that prints a text, as a stand-in of nvidia-smi."""
    return (sys.executable, "-S", "-c", f"print({text!r}); raise SystemExit({code})")


def test_the_cpu_is_the_median_of_its_cores_and_its_hottest_sensor(machine):
    assert cpu_mhz(machine) == 2000.2
    assert cpu_celsius(machine) == 64.5  # no disk's, no board's
    (machine / "sys/class/thermal/thermal_zone1/temp").write_text("70125\n")
    assert cpu_celsius(machine) == 70.1


def test_a_gpu_is_read_from_nvidias_tool():
    found = gpu_clocks(prints("NVIDIA Test GPU, 570.1, 1980, 2619, 41, 120.55"))
    assert found == {
        "gpu_name": "NVIDIA Test GPU",
        "gpu_driver": "570.1",
        "gpu_sm_mhz": 1980.0,
        "gpu_memory_mhz": 2619.0,
        "gpu_celsius": 41.0,
        "gpu_watts": 120.55,
    }


def test_what_a_gpu_does_not_tell_is_none():
    found = gpu_clocks(prints("NVIDIA Test GPU, 570.1, 1980, [N/A], 41, [Not Supported]"))
    assert (found["gpu_sm_mhz"], found["gpu_memory_mhz"], found["gpu_watts"]) == (1980.0, None, None)


@pytest.mark.parametrize(
    "tool", [("no-such-tool-anywhere",), prints("some, gpu, 1, 2, 3, 4", code=9), prints("one line"), prints("")]
)
def test_without_a_gpu_all_is_none(tool):
    assert gpu_clocks(tool) == dict.fromkeys(GPU_KEYS)


def test_a_machine_that_tells_nothing_is_no_error(tmp_path):
    found = clocks(tmp_path, ("no-such-tool-anywhere",))
    assert set(found) == {"cpu_mhz", "cpu_celsius", *GPU_KEYS}
    assert set(found.values()) == {None}


def test_what_is_read_afterwards_has_names_of_its_own(machine):
    before = clocks(machine, prints("NVIDIA Test GPU, 570.1, 1980, 2619, 41, 120.55"))
    after = clocks_after(machine, prints("NVIDIA Test GPU, 570.1, 1500, 2619, 80, 300"))
    assert not set(before) & set(after)
    assert (after["cpu_mhz_after"], after["gpu_sm_mhz_after"], after["gpu_celsius_after"]) == (2000.2, 1500.0, 80.0)
    assert "gpu_name_after" not in after
