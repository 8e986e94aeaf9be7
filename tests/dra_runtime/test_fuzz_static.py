"""What the runtime can't do is easiest to trust: no pickle, no code from data, and nothing happens at import."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "dra_runtime").rglob("*.py"))
FOREIGN = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "torch", "code", "runpy", "yaml"}
FOREIGN |= {"subprocess", "multiprocessing", "socket", "ssl", "http", "urllib", "requests", "httpx"}
FOREIGN |= {"xml", "tarfile"}  # parsers of formats that we don't read
CALLS = {"eval", "exec", "compile", "__import__", "breakpoint", "input"}
METHODS = {"system", "popen", "execv", "execve", "spawnv", "posix_spawn", "fork", "load_library", "read_index"}
METHODS |= {"register_custom_ops_library"}


def faults(source: str) -> list[str]:
    """Name what a file must not use, with its line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found += [f"{node.lineno}: import {name}" for name in names if name.partition(".")[0] in FOREIGN]
        if isinstance(node, ast.Call):
            function, called = node.func, ast.unparse(node.func)
            if isinstance(function, ast.Name) and function.id in CALLS:
                found.append(f"{node.lineno}: {called}()")
            if isinstance(function, ast.Attribute) and function.attr in METHODS:
                found.append(f"{node.lineno}: {called}()")
            if called in ("np.load", "numpy.load", "np.lib.format.read_array", "np.memmap", "np.fromfile"):
                pickles = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}.get("allow_pickle")
                if called.endswith(("load", "read_array")) and pickles != "False":
                    found.append(f"{node.lineno}: {called} without allow_pickle=False")
            if any(keyword.arg == "shell" for keyword in node.keywords):
                found.append(f"{node.lineno}: a shell")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_from_data(path):
    assert faults(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from torch import nn",
        "import os.path, marshal",
        "import urllib.request",
        "eval('1')",
        "exec(text)",
        "os.system('ls')",
        "os.fork()",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "numpy.load(path, mmap_mode='r')",
        "faiss.read_index(path)",
        "options.register_custom_ops_library(path)",
        "run('ls', shell=True)",
    ],
)
def test_the_check_finds_what_it_looks_for(line):
    assert faults(line)
    assert not faults("np.load(path, allow_pickle=False); pattern.compile('a'); model.evaluate(); os.path.join('a')")


@pytest.mark.parametrize("rule", ["S301", "S302", "S307", "S102", "S602", "S605", "S506", "S310", "NPY002"])
def test_the_linter_looks_too(rule):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--show-settings", str(ROOT / "dra_runtime" / "bundle.py")],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    enabled = done.stdout.partition("linter.rules.enabled = [")[2].partition("]")[0]
    assert f"({rule})" in enabled


WATCH = """
import json, sys
events = []
def watch(event, arguments):
    if event.startswith("ctypes.") and (event != "ctypes.dlopen" or arguments == (None,)):
        return  # the C library that is loaded anyway
    if event.split(".")[0] in ("socket", "subprocess", "ctypes", "urllib", "http", "webbrowser") or event in (
        "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile", "pty.spawn",
        "os.remove", "os.rename", "os.mkdir", "os.rmdir", "shutil.rmtree", "tempfile.mkstemp", "tempfile.mkdtemp",
    ):
        events.append(f"{event} {arguments}")
    elif event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        events.append(f"{event} {arguments}")
sys.dont_write_bytecode = True
import numpy, PIL.Image, click  # what these do is theirs
sys.addaudithook(watch)
"""


def events_of(code: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", WATCH + code + "\nprint(json.dumps(events))"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return json.loads(done.stdout)


def test_importing_opens_no_socket_starts_no_process_and_writes_nothing():
    assert events_of("import dra_runtime, dra_runtime.cli") == []


def test_the_watch_sees_what_it_looks_for():
    code = "import socket, subprocess, os\nsocket.socket().close(); subprocess.run(['true']); open(os.devnull, 'w')"
    kinds = {event.split(" ")[0] for event in events_of(code)}
    assert {"socket.__new__", "subprocess.Popen", "open"} <= kinds


def test_a_search_reads_and_nothing_else(bundle_path):
    code = f"""
import dra_runtime as dra
encoder = dra.Encoder.open({str(bundle_path)!r}, backend="onnxruntime-cpu", check=True)
image = numpy.zeros((9, 9, 3), "u1")
gallery = dra.Gallery.build(encoder, {{"a": image, "b": image + 9}})
gallery.search(text="in red", id="a")
"""
    assert events_of(code) == []
