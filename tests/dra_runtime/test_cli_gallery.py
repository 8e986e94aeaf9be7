"""`dra-search index`, `info` and `query` with metadata, filters, storage, an index and re-ranking."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from dra_runtime.cli import main
from dra_runtime.encoder import Encoder
from dra_runtime.gallery import Gallery
from dra_runtime.gallery_drift import drift
from dra_runtime.journal import journal_path


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def shop(bundle_path, tmp_path_factory):
    """A folder with images and a CSV, and the gallery made of them."""
    path = tmp_path_factory.mktemp("shop")
    (path / "images").mkdir()
    rng = np.random.default_rng(0)
    lines = ["id,category,price,sale"]
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(path / "images" / f"{i}.png")
        lines.append(f"{i}.png,{'dress' if i % 2 else 'skirt'},{i},{'true' if i < 3 else 'false'}")
    (path / "items.csv").write_text("\n".join([*lines[:-1], "nobody,x,1,true"]) + "\n")
    result = run(
        "index", bundle_path, path / "images", "-o", path / "shop.gallery", "--metadata", path / "items.csv",
        "--storage", "float16", "--tokens",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines() == [
        "metadata: 1 of 12 ids are no image's, such as 'nobody'",
        "metadata: 1 of 12 images have none, such as '11'",
    ]
    return path


def ids_of(result):
    assert result.exit_code == 0, result.output
    return [hit["id"] for hit in json.loads(result.stdout)["hits"]]


def test_where(shop):
    query = ("query", shop / "shop.gallery", "--id", "0", "--text", "a", "-k", 99, "--json")
    assert sorted(ids_of(run(*query, "--where", "category=dress"))) == ["1", "3", "5", "7", "9"]
    assert sorted(ids_of(run(*query, "--where", "price=3", "--where", "price=4"))) == ["3", "4"]
    assert sorted(ids_of(run(*query, "--where", "price=3.0", "--where", "category=skirt"))) == []
    assert sorted(ids_of(run(*query, "--where", "sale=true"))) == ["1", "2"]
    text = run("query", shop / "shop.gallery", "--id", "0", "--text", "a", "--where", "price=3")
    assert text.stdout.splitlines()[1].endswith("  3  category=dress  price=3  sale=False")


def test_unusable_filters(shop):
    query = ("query", shop / "shop.gallery", "--id", "0", "--text", "a")
    for where, word in (("category", "KEY=VALUE"), ("=x", "KEY=VALUE"), ("colour=red", "colour")):
        result = run(*query, "--where", where)
        assert (result.exit_code, result.stdout) == (2, "")
        assert word in result.stderr
        assert result.stderr.count("\n") == 1


def test_rerank_equals_the_python_call(shop, bundle_path):
    result = run("query", shop / "shop.gallery", "--id", "0", "--text", "a", "-k", 5, "--rerank", 8, "--json")
    gallery = Gallery.open(shop / "shop.gallery", Encoder.open(bundle_path, integrity="size"))
    assert ids_of(result) == [hit.id for hit in gallery.search(text="a", id="0", k=5, rerank=8)]


def test_rerank_finds_the_folder_that_was_indexed(shop, bundle_path, tmp_path):
    out = tmp_path / "plain.gallery"
    assert run("index", bundle_path, shop / "images", "-o", out).exit_code == 0
    result = run("query", out, "--id", "0", "--text", "a", "-k", 5, "--rerank", 8, "--json")
    gallery = Gallery.open(out, Encoder.open(bundle_path, integrity="size"), images=shop / "images")
    assert ids_of(result) == [hit.id for hit in gallery.search(text="a", id="0", k=5, rerank=8)]


def test_info(shop, bundle_path, tmp_path):
    path = shop / "shop.gallery"
    answer = json.loads(run("info", path, "--json").stdout)
    assert answer == {
        "gallery": str(path),
        "images": 12,
        "dim": 8,
        "bytes": path.stat().st_size,
        "storage": "float16",
        "bundle_id": Encoder.open(bundle_path, integrity="size").bundle_id,
        "bundle": str(bundle_path),
        "folder": str(shop / "images"),
        "metadata": ["category", "price", "sale"],
        "tokens": True,
        "index": None,
    }
    text = run("info", path).stdout
    for word in ("12", "8 x float16", "category, price, sale", "kept", "every image is compared"):
        assert word in text
    failed = run("info", tmp_path / "missing")
    assert (failed.exit_code, failed.stdout, failed.stderr.count("\n")) == (2, "", 1)


def test_an_index_and_its_recall(shop, bundle_path, tmp_path):
    pytest.importorskip("faiss")
    out = tmp_path / "flat.gallery"
    result = run("index", bundle_path, shop / "images", "-o", out, "--index", "flat", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["index"]["kind"] == "flat"
    assert "recall@10" in run("info", out).stdout


def test_resumed_updated_and_restarted(shop, bundle_path, tmp_path, monkeypatch):
    out = tmp_path / "g"
    command = ("index", bundle_path, shop / "images", "-o", out)
    first = run(*command)
    updated = run(*command, "--update", "--json")
    assert "updating: 12 of 12 images are unchanged" in updated.stderr
    assert json.loads(updated.stdout)["kept"] == 12
    assert first.exit_code == updated.exit_code == 0

    def broken(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("dra_runtime.indexing.write_gallery", broken)
    interrupted = run(*command)
    assert interrupted.exit_code == 130
    assert interrupted.stderr == "interrupted: 12 of 12 images are done; the same command goes on from there\n"
    assert journal_path(out).exists()
    monkeypatch.undo()
    refused = run(*command, "--tokens")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "--restart" in refused.stderr
    resumed = run(*command)
    assert resumed.stderr == "resuming: 12 of 12 done\n"
    assert run(*command, "--tokens", "--restart").exit_code == 0


def test_drift_knows_the_folder_and_adopts(shop, bundle_path, other_bundle_path, bundle_copy, tmp_path):
    values = json.loads((bundle_copy / "manifest.json").read_text())
    from bundle_factory import write_manifest

    write_manifest(bundle_copy, values | {"provenance": {"made_by": "tests, again"}})
    out = tmp_path / "g"
    run("index", bundle_path, shop / "images", "-o", out, "--metadata", shop / "items.csv")
    assert run("query", out, "--id", "0", "--text", "a", "--bundle", bundle_copy).exit_code == 2
    before = out.read_bytes()
    assert run("drift", out, other_bundle_path, "--adopt").exit_code == 1
    assert run("drift", out, bundle_copy).exit_code == 0
    assert out.read_bytes() == before
    adopted = run("drift", out, bundle_copy, "--adopt", "--json")
    assert (adopted.exit_code, json.loads(adopted.stdout)["adopted"]) == (0, True)
    assert run("query", out, "--id", "0", "--text", "a").exit_code == 0
    other = Encoder.open(bundle_copy, integrity="size")
    gallery = Gallery.open(out, other)
    assert gallery.metadata("3") == {"category": "dress", "price": 3, "sale": False}
    assert drift(out, other).gallery_bundle_id == other.bundle_id
    gallery.save(out)  # which keeps no account of the folder
    lost = run("drift", out, bundle_copy)
    assert lost.exit_code == 2
    assert "--images" in lost.stderr
