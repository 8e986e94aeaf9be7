"""``dra-search`` from index to answer, and every unusable input: one line, exit code 2, nothing half-written."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from bundle_factory import reseal, write_manifest
from click.testing import CliRunner
from PIL import Image

from dra_runtime import __version__
from dra_runtime.cli import main
from dra_runtime.encoder import Encoder
from dra_runtime.gallery import Gallery


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def assert_refused(result, *words):
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("error: ")
    assert "unexpected" not in result.stderr
    for word in words:
        assert word in result.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve images, one of them in a folder below."""
    path = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    (path / "sub").mkdir()
    for i in range(12):
        name = f"sub/{i}.png" if i == 3 else f"{i}.jpg"
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(path / name)
    return path


@pytest.fixture(scope="module")
def gallery(bundle_path, folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("gallery") / "shop.gallery"
    result = run("index", bundle_path, folder, "-o", path)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{path}: 12 images in ")
    assert result.stderr == ""
    return path


def test_query_by_id_equals_the_python_call(gallery, bundle_path):
    result = run("query", gallery, "--id", "sub/3", "--text", "in red", "-k", 4, "--json")
    assert result.exit_code == 0, result.output
    opened = Gallery.open(gallery, Encoder.open(bundle_path))
    expected = opened.search(text="in red", id="sub/3", k=4)
    answer = json.loads(result.stdout)
    assert [(h["id"], h["score"], h["rank"]) for h in answer["hits"]] == [(h.id, h.score, h.rank) for h in expected]
    assert answer["query"] == {
        "text": "in red",
        "image": None,
        "id": "sub/3",
        "where": None,
        "rerank": None,
        "mu": None,
    }
    kept = json.loads(
        run("query", gallery, "--id", "sub/3", "--text", "a", "-k", 99, "--keep-reference", "--json").stdout
    )
    assert len(kept["hits"]) == 12


def test_query_by_image_prints_a_table(gallery, folder):
    result = run("query", gallery, "--image", folder / "0.jpg", "--text", "in red", "-k", 3)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["rank", "score", "id"]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3"]
    assert result.stderr == ""


def test_a_large_k_is_answered_with_what_there_is(gallery):
    result = run("query", gallery, "--id", "0", "--text", "a", "-k", 1_000_000)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 12


def test_index_again_as_json_and_leave_out_what_is_damaged(bundle_path, folder, tmp_path):
    images = shutil.copytree(folder, tmp_path / "images")
    (images / "broken.png").write_bytes(b"no image")
    out = tmp_path / "g"
    for _ in range(2):  # an older gallery is replaced
        result = run("index", bundle_path, images, "-o", out, "--json")
        assert result.exit_code == 0, result.output
        answer = json.loads(result.stdout)
        assert answer["images"] == 12
        assert [entry["id"] for entry in answer["skipped"]] == ["broken"]
        assert "broken.png" in result.stderr
        assert result.stderr.count("\n") == 1


def test_selfcheck(bundle_path, bundle_copy):
    result = run("selfcheck", bundle_path)
    assert result.exit_code == 0, result.output
    assert "passed" in result.stdout
    answer = json.loads(run("selfcheck", bundle_path, "--json").stdout)
    assert answer["passed"] is True
    assert set(answer["parts"]) == {"image_features", "text_features", "queries", "relation_features"}
    with np.load(bundle_copy / "selftest.npz") as archive:
        arrays = dict(archive)
    np.savez(bundle_copy / "selftest.npz", **(arrays | {"queries": -arrays["queries"]}))
    reseal(bundle_copy)
    failed = run("selfcheck", bundle_copy)
    assert failed.exit_code == 1
    assert "FAILED" in failed.stdout
    assert json.loads(run("selfcheck", bundle_copy, "--json").stdout)["passed"] is False


def test_a_moved_bundle_is_named_and_can_be_given(bundle_path, folder, tmp_path):
    bundle = shutil.copytree(bundle_path, tmp_path / "bundle")
    out = tmp_path / "g"
    assert run("index", bundle, folder, "-o", out).exit_code == 0
    bundle.rename(tmp_path / "elsewhere")
    assert_refused(run("query", out, "--id", "0", "--text", "a"), "--bundle", str(bundle))
    assert run("query", out, "--id", "0", "--text", "a", "--bundle", tmp_path / "elsewhere").exit_code == 0


def test_unusable_queries(gallery, folder, tmp_path, other_bundle_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no image")
    bomb = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xc3\x50\0\0\x4e\x20\x08\x02\0\0\0"  # 50,000 x 20,000
    import zlib

    (tmp_path / "bomb.png").write_bytes(bomb + zlib.crc32(bomb[12:]).to_bytes(4, "big") + b"\0\0\0\0IDAT" + b"\0" * 4)
    good = ("--id", "0", "--text", "a")
    assert_refused(run("query", gallery, "--id", "0", "--text", " "), "text")
    assert_refused(run("query", gallery, "--id", "nobody", "--text", "a"), "nobody")
    assert_refused(run("query", gallery, "--id", "0"), "--text")
    assert_refused(run("query", gallery, "--text", "a"), "--image")
    assert_refused(run("query", gallery, *good, "--image", folder / "0.jpg"), "exactly one")
    assert_refused(run("query", gallery, *good, "-k", 0), "-k")
    assert_refused(run("query", gallery, *good, "-k", "many"), "many")
    assert_refused(run("query", gallery, *good, "--backend", "tensorrt"), "tensorrt")
    assert_refused(run("query", gallery, *good, "--threads", 0), "threads")
    for name, word in (("empty.jpg", "empty"), ("text.jpg", "not an image"), ("bomb.png", "50000 x 20000")):
        assert_refused(run("query", gallery, "--image", tmp_path / name, "--text", "a"), word)
    assert_refused(run("query", gallery, "--image", tmp_path / "missing.jpg", "--text", "a"), "no such image")
    assert_refused(run("query", gallery, *good, "--bundle", other_bundle_path), "dra-search index")
    assert_refused(run("query", tmp_path / "missing", *good), "no such file")
    assert_refused(run("query", tmp_path / "text.jpg", *good), "gallery")
    assert_refused(run("query", tmp_path / "text.jpg", *good, "--bundle", other_bundle_path), "gallery")


def unusable_bundles(bundle_copy):
    """Spoil a bundle in each way; yield a word of the message, and mend it again."""
    manifest = bundle_copy / "manifest.json"
    original = manifest.read_bytes()
    values = json.loads(original)
    graph = bundle_copy / "compositor.onnx"
    data = graph.read_bytes()
    graph.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    yield "SHA-256"
    graph.unlink()
    yield "missing"
    graph.write_bytes(data)
    write_manifest(bundle_copy, values | {"new": 1})
    yield "new"
    write_manifest(bundle_copy, values | {"files": values["files"] | {"../x": values["files"]["merges.txt"]}})
    yield "../x"
    write_manifest(bundle_copy, values | {"schema_version": "2.0"})
    yield "2.0"
    manifest.write_bytes(original.replace(b"1.25", b"1.5", 1))
    yield "bundle_id"
    manifest.unlink()
    yield "manifest.json"
    manifest.write_bytes(original)


def test_unusable_bundles(bundle_copy, folder, tmp_path):
    out = tmp_path / "out" / "g"
    out.parent.mkdir()
    ready = tmp_path / "ready.gallery"
    assert run("index", bundle_copy, folder, "-o", ready).exit_code == 0
    for word in unusable_bundles(bundle_copy):
        assert_refused(run("index", bundle_copy, folder, "-o", out), word)
        assert_refused(run("selfcheck", bundle_copy), word)
        assert_refused(run("query", ready, "--id", "0", "--text", "a"), word)
    assert list(out.parent.iterdir()) == []
    assert run("query", ready, "--id", "0", "--text", "a").exit_code == 0
    assert_refused(run("selfcheck", tmp_path / "missing"), "no such folder")


def test_unusable_images_and_targets(bundle_path, folder, tmp_path):
    out = tmp_path / "g"
    (tmp_path / "none").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"x")
    notes = tmp_path / "notes.txt"
    notes.write_text("precious")
    assert_refused(run("index", bundle_path, tmp_path / "none", "-o", out), "no images")
    assert_refused(run("index", bundle_path, tmp_path / "missing", "-o", out), "no such folder")
    assert_refused(run("index", bundle_path, tmp_path / "broken", "-o", out), "none of its 1 images")
    assert_refused(run("index", bundle_path, folder, "-o", notes), "no gallery")
    assert_refused(run("index", bundle_path, folder, "-o", tmp_path), "no gallery")
    assert_refused(run("index", bundle_path, folder, "-o", tmp_path / "no" / "g"), "doesn't exist")
    assert_refused(run("index", bundle_path, folder), "--out")
    assert notes.read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken", "none", "notes.txt"]


def test_a_wrong_target_is_noticed_before_the_work(bundle_path, folder, tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("x")
    monkeypatch.setattr("dra_runtime.commands.index.Encoder", None)
    assert_refused(run("index", bundle_path, folder, "-o", tmp_path / "notes.txt"), "no gallery")


def test_help_and_version():
    for arguments in (
        ("--help",),
        ("index", "--help"),
        ("query", "-h"),
        ("selfcheck", "--help"),
        ("info", "-h"),
        ("drift", "-h"),
    ):
        result = run(*arguments)
        assert result.exit_code == 0
        assert "Usage: dra-search" in result.stdout
    assert __version__ in run("--version").stdout
    assert run().exit_code == 2


def test_as_a_process(gallery, tmp_path):
    """The whole program, without click's test harness: nothing but the one line on stderr."""
    code = "from dra_runtime.cli import main; main()"
    arguments = [sys.executable, "-W", "error", "-c", code, "query", str(gallery), "--text", "a"]
    done = subprocess.run([*arguments, "--id", "0"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 11
    failed = subprocess.run([*arguments, "--id", "nobody"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.count("\n") == 1
