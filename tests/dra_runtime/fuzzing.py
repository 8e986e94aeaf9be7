"""Fuzz of everything that comes from elsewhere: a case must end in a DraError or in a right answer.

A target makes good files once and gives a function that runs one case: it mutates one of them, seeded by the case's
number, and lets the runtime read it. The fast tests run some hundred cases of each in this process. The slow ones run
thousands in a process of their own (this file as a script), with bounds on memory and on the time of each case:

    python tests/dra_runtime/fuzzing.py TARGET FIRST COUNT FOLDER
"""

from __future__ import annotations

import copy
import faulthandler
import gzip
import hashlib
import io
import json
import random
import resource
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bundle_factory import write_bundle
from fuzz_files import good_images, sidecar_values, with_right_checksums

import dra_runtime as dra
from dra_runtime.bundle import Bundle
from dra_runtime.engine_file import read_sidecar, rebuild_command, sidecar_to_dict
from dra_runtime.manifest import bundle_id_of, manifest_from_dict, manifest_to_dict, manifest_values_from_json
from dra_runtime.preprocess import Preprocess, open_image
from dra_runtime.selftest_file import check_selftest, read_arrays
from dra_runtime.tokenizer import Tokenizer

Case = Callable[[random.Random], None]

REFUSED = [0]  # how many cases have ended in a DraError
CASE_SECONDS = 20
MEMORY = 1_500 * 2**20  #: bytes beyond what the good files took
NUMBERS = [0, 1, -1, 2, 7, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**53]
NUMBERS += [2**63 - 1, 2**63, 2**64, 10**30, 10**400, -(2**31), -(2**63), 0.5, 1e-320, 1e308, -0.0]
TEXTS = ["", "a", ".", "..", "../x", "/etc/passwd", "C:\\x", "a\\b", "a\0b", "con", "a" * 5000, "é", "\ud800", "\n"]
TEXTS += ["\x1b[2J", "🙂", "1.0", "1.1", "2.0", "0" * 64, "f" * 64, "batch", "NaN", "float16", "__proto__"]
ODD_JSON = [
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 5000,
    b'"\\ud800"',
    b"[" * 2000,
    b'{"a":1,"a":2}',
    b"\xff",
    b"1.",
    b"+1",
]


# -- mutations


def mutated_bytes(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Change a few places of ``data``: bits, lengths, pieces doubled, dropped, moved, or taken from another file."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        size = len(out)
        at = rng.randrange(size + 1) if rng.random() < 0.5 else rng.randrange(min(size, 64) + 1)  # headers more often
        match rng.randrange(9):
            case 0 if size:
                out[min(at, size - 1)] ^= 1 << rng.randrange(8)
            case 1:
                out[at : at + 1] = bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))])
            case 2:
                width = rng.choice((2, 4, 8))
                value = int(rng.choice(NUMBERS[:20])) % 2 ** (8 * width)
                out[at : at + width] = value.to_bytes(width, rng.choice(("little", "big")))
            case 3:
                del out[at : at + rng.choice((1, 2, 16, 400))]
            case 4:
                out[at:at] = rng.randbytes(rng.choice((1, 4, 32)))
            case 5:
                piece = out[at : at + rng.choice((1, 8, 64, 512))]
                out[at:at] = piece * rng.choice((1, 2, 16))
            case 6:
                del out[at:]
            case 7:
                other = rng.choice(others)
                start = rng.randrange(len(other) + 1)
                out[at:] = other[start:]
            case _:
                out[at : at + 8] = rng.choice((b"\0", b"\xff")) * 8
    return bytes(out[: 2 * len(data) + 65_536])


def mutated_values(values: Any, rng: random.Random) -> Any:
    """Change a few places of plain JSON values."""
    values = copy.deepcopy(values)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place = values
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(place[key], dict | list) and rng.random() < 0.85:
                place = place[key]
                continue
            _change(place, key, rng)
            break
    return values


def _change(place: Any, key: Any, rng: random.Random) -> None:
    value = place[key]
    match rng.randrange(8):
        case 0:
            del place[key]
        case 1:
            place[key] = rng.choice(NUMBERS)
        case 2:
            place[key] = rng.choice(TEXTS)
        case 3:
            place[key] = rng.choice((None, True, False, [], {}, [[]], {"a": {}}, [value], {"x": value}))
        case 4 if isinstance(value, int) and not isinstance(value, bool):
            place[key] = value + rng.choice((-1, 1, 1000, -value))
        case 5 if isinstance(value, str) and value:
            at = rng.randrange(len(value))
            place[key] = value[:at] + rng.choice(TEXTS) + value[at + rng.randrange(2) :]
        case 6 if isinstance(place, dict):
            place[rng.choice((*TEXTS, *place))] = value
        case _ if isinstance(place, list):
            place.insert(rng.randrange(len(place) + 1), copy.deepcopy(rng.choice(place)))


def mutated_json(text: bytes, rng: random.Random) -> bytes:
    """Change JSON as values or as bytes."""
    if rng.random() < 0.7:
        return json.dumps(mutated_values(json.loads(text), rng)).encode("utf-8")
    if rng.random() < 0.5:
        places = [at for at, byte in enumerate(text) if byte in b":,["]
        at = rng.choice(places) + 1
        return text[:at] + rng.choice(ODD_JSON) + (b"," if rng.random() < 0.5 else b"") + text[at:]
    return mutated_bytes(text, rng, [text])


# -- targets


def manifest_target(folder: Path) -> Case:
    text = (_bundle(folder) / "manifest.json").read_bytes()

    def case(rng: random.Random) -> None:
        changed = mutated_json(text, rng)
        try:
            values = manifest_values_from_json(changed)
            manifest = manifest_from_dict(values)
            bundle_id_of(values)
        except dra.BundleError as error:
            one_line(error)
            return
        assert manifest_to_dict(manifest) == values

    return case


def bundle_target(folder: Path) -> Case:
    """Mutated manifests whose id is right, opened as a folder."""
    path = _bundle(folder)
    text = (path / "manifest.json").read_bytes()

    def case(rng: random.Random) -> None:
        values = mutated_values(json.loads(text), rng)
        try:
            values["bundle_id"] = bundle_id_of(values)
        except (TypeError, ValueError):
            values = json.loads(text)
        (path / "manifest.json").write_text(json.dumps(values))
        try:
            bundle = Bundle.open(path, rng.choice(("hash", "size")))
            for name in bundle.manifest.files:
                assert bundle.file(name).resolve().parent == path.resolve()
            if rng.random() < 0.1:  # reads the merges
                dra.Encoder.open(path, integrity="size")
        except dra.DraError as error:
            one_line(error)

    return case


def sidecar_target(folder: Path) -> Case:
    plan = folder / "text_encoder.plan"
    text = json.dumps(sidecar_values()).encode("utf-8")

    def case(rng: random.Random) -> None:
        plan.with_name(f"{plan.name}.json").write_bytes(changed := mutated_json(text, rng))
        try:
            sidecar = read_sidecar(plan)
        except dra.DraError as error:
            one_line(error)
            return
        assert sidecar_to_dict(sidecar) == json.loads(changed)
        command = rebuild_command(plan, sidecar)
        assert command.isprintable()
        assert not set(command) & set(";&|$`<>\n")

    return case


def gallery_target(folder: Path, index: str | None = None) -> Case:
    encoder = dra.Encoder.open(_bundle(folder), threads=1)
    count, dim = 40, encoder.dim
    rng = np.random.default_rng(0)
    names = [f"i{number:03}" for number in range(count)]
    good = []
    for storage in ("float32", "float16"):
        metadata = {name: {"category": "ab"[n % 2], "price": n} for n, name in enumerate(names)}
        vectors = rng.normal(size=(count, dim)).astype(np.float32)
        gallery = dra.Gallery.from_features(encoder, names, vectors, metadata, storage)
        if index:
            gallery.build_index(index)
        gallery.save(folder / "good")
        good.append((folder / "good").read_bytes())
    queries = rng.normal(size=(2, dim)).astype(np.float32)
    path = folder / "fuzzed.gallery"

    def case(rng: random.Random) -> None:
        path.write_bytes(_mutated_container(rng.choice(good), rng, good))
        whole = rng.random() < 0.5  # else the vectors aren't looked at, and may be anything
        try:
            opened = dra.Gallery.open(path, encoder, integrity="hash" if whole else "size")
            ids = set(opened.ids)
            where = rng.choice((None, {"category": "a"}, {"price": [1, 2]}))
            for hits in opened.search_vectors(queries, k=5, where=where):
                assert len(hits) <= 5
                assert {hit.id for hit in hits} <= ids
                if whole:
                    assert all(-1.01 <= hit.score <= 1.01 for hit in hits)
                    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
            for name in opened.ids[:3]:
                opened.metadata(name)
        except dra.DraError as error:
            one_line(error)

    return case


def index_target(folder: Path) -> Case:
    kinds = []
    for kind in ("hnsw", "ivf", "flat"):
        (folder / kind).mkdir()
        kinds.append(gallery_target(folder / kind, kind))
    return lambda rng: rng.choice(kinds)(rng)


def onnx_target(folder: Path) -> Case:
    path = _bundle(folder)
    graphs = {name: (path / f"{name}.onnx").read_bytes() for name in ("compositor", "text_encoder", "reranker")}
    from dra_runtime.backends.onnxruntime_cpu import open_onnxruntime_cpu

    specs = Bundle.open(path).manifest.graphs
    inputs = {
        "compositor": {"image_features": np.ones((2, 8), np.float32), "text_features": np.ones((2, 8), np.float32)},
        "text_encoder": {"tokens": np.array([[49406, 5, 49407]], np.int32)},
        "reranker": {
            "reference_tokens": np.ones((2, 5, 8), np.float32),
            "candidate_tokens": np.ones((2, 5, 8), np.float32),
        },
    }

    def case(rng: random.Random) -> None:
        name = rng.choice(list(graphs))
        file = folder / "fuzzed.onnx"
        file.write_bytes(mutated_bytes(graphs[name], rng, list(graphs.values())))
        try:
            outputs = open_onnxruntime_cpu(file, specs[name], 1).run(inputs[name])
        except dra.DraError as error:
            one_line(error)
            return
        for tensor in specs[name].outputs:
            assert outputs[tensor.name].shape[1:] == tensor.shape[1:]

    return case


def selftest_target(folder: Path) -> Case:
    good = (_bundle(folder) / "selftest.npz").read_bytes()
    with np.load(io.BytesIO(good)) as archive:
        arrays = dict(archive)
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    path = folder / "fuzzed.npz"

    def case(rng: random.Random) -> None:
        data = rng.choice((good, packed.getvalue()))
        if rng.random() < 0.4:
            changed = dict(arrays)
            name = rng.choice(list(changed))
            shape = [rng.choice((0, 1, 2, 3, 4, 8, 77, 2000)) for _ in range(rng.randrange(5))]
            dtype = rng.choice(("u1", "f4", "f8", "i4", "U3", "c8", "S3", ">f4", "?", "M8[s]"))
            if np.prod(shape, dtype=np.int64) < 50_000:
                changed[name] = np.zeros(shape, dtype)
            buffer = io.BytesIO()
            np.savez(buffer, **changed)
            data = buffer.getvalue()
        else:
            data = mutated_bytes(data, rng, [good])
        path.write_bytes(data)
        try:
            found = read_arrays(path)
            check_selftest(found, 8, 77, reranker=True)
        except dra.DraError as error:
            one_line(error)
            return
        assert sum(array.nbytes for array in found.values()) < 10 * len(data) + 2**20
        assert found["images"].shape[3] == 3
        assert [str(text) for text in found["texts"]]

    return case


def merges_target(folder: Path) -> Case:
    lines = (_bundle(folder) / "merges.txt").read_text(encoding="utf-8").split("\n")[:300]
    good = "\n".join(lines).encode("utf-8")
    packed = gzip.compress(b"header\n" + good, mtime=0)
    path = folder / "fuzzed.txt"

    def case(rng: random.Random) -> None:
        path.write_bytes(mutated_bytes(rng.choice((good, packed)), rng, [good, packed]))
        try:
            tokenizer = Tokenizer.load(path)
            ids = tokenizer.encode("Is in the style of “thé” &amp; thither 12")
        except dra.DraError as error:
            one_line(error)
            return
        assert ids[0] == tokenizer.start_token
        assert ids[-1] == tokenizer.end_token
        assert all(0 <= i < tokenizer.vocab_size for i in ids)

    return case


def image_target(_folder: Path) -> Case:
    good = good_images()
    names = sorted(good)
    by_kind = {name: [good[other] for other in names if other.split()[0] == name.split()[0]] for name in names}
    preprocess = Preprocess(32)

    def case(rng: random.Random) -> None:
        name = rng.choice(names)
        others = by_kind[name] if rng.random() < 0.8 else list(good.values())
        data = mutated_bytes(good[name], rng, others)
        if name.startswith("PNG") and rng.random() < 0.7:
            data = with_right_checksums(data)
        check_image(data, preprocess)

    return case


def check_image(data: bytes, preprocess: Preprocess) -> None:
    try:
        image = open_image(data)
        pixels = preprocess.pixels(image)
    except dra.DraError as error:
        one_line(error)
        return
    assert pixels.shape == (3, preprocess.image_size, preprocess.image_size)
    assert pixels.dtype == np.uint8


TARGETS: dict[str, Callable[[Path], Case]] = {
    "manifest": manifest_target,
    "bundle": bundle_target,
    "sidecar": sidecar_target,
    "gallery": gallery_target,
    "index": index_target,
    "onnx": onnx_target,
    "selftest": selftest_target,
    "merges": merges_target,
    "image": image_target,
}


def sealed(data: bytes) -> bytes:
    """Return a container whose header states the hash that its data has."""
    size = int.from_bytes(data[:8], "little")
    values = json.loads(data[8 : 8 + size])
    values["__metadata__"]["data_sha256"] = hashlib.sha256(data[8 + size :]).hexdigest()
    return _with_header(values, data[8 + size :])


def _mutated_container(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    size = int.from_bytes(data[:8], "little")
    header, arrays = data[8 : 8 + size], data[8 + size :]
    way = rng.random()
    if way < 0.35:
        return _with_header(mutated_values(json.loads(header), rng), arrays)
    if way < 0.45:
        changed = mutated_json(header, rng)
        return len(changed).to_bytes(8, "little") + changed + arrays
    if way < 0.85:  # the arrays, of the same length, under a hash that is right
        changed = mutated_bytes(arrays, rng, [arrays])[: len(arrays)].ljust(len(arrays), b"\0")
        if rng.random() < 0.5:  # one array alone
            entry = rng.choice([v for k, v in json.loads(header).items() if k != "__metadata__"])
            start, end = entry["data_offsets"]
            piece = mutated_bytes(arrays[start:end], rng, [arrays])[: end - start].ljust(end - start, b"\0")
            changed = arrays[:start] + piece + arrays[end:]
        return sealed(data[: 8 + size] + changed)
    return mutated_bytes(data, rng, others)


def _with_header(values: Any, arrays: bytes) -> bytes:
    text = json.dumps(values).encode("utf-8")
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text + arrays


def _bundle(folder: Path) -> Path:
    path = folder / "bundle"
    return path if path.is_dir() else write_bundle(path)


def one_line(error: Exception) -> None:
    """Require a message of one line that a terminal can show: nothing of the input may steer it."""
    REFUSED[0] += 1
    text = str(error)
    assert text, type(error)
    assert text.isprintable(), repr(text[:300])
    assert len(text) < 2_000, repr(text[:300])


def run(target: str, first: int, count: int, folder: Path, before: Callable[[int], None] | None = None) -> None:
    """Run cases ``first`` to ``first + count`` of a target; a failure names its case."""
    case = TARGETS[target](folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's, about odd images; outside of tests they aren't errors
        for number in range(first, first + count):
            if before:
                before(number)
            try:
                case(random.Random(f"{target} {number}"))
            except Exception as error:
                raise AssertionError(f"case {number} of {target}: {type(error).__name__}: {error}"[:500]) from error


def main() -> None:
    """Run cases in this process under bounds; its end tells whether a case crashed, hung, or took too much memory."""
    target, first, count, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    folder.mkdir(parents=True, exist_ok=True)
    faulthandler.enable()
    last = (folder / "last_case").open("wb", buffering=0)

    def before(number: int) -> None:
        if number == first:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        last.seek(0)
        last.write(f"{number:12}".encode())
        faulthandler.dump_traceback_later(CASE_SECONDS, exit=True)

    run(target, first, count, folder, before)
    faulthandler.cancel_dump_traceback_later()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    sys.stdout.write(f"{count} cases, {REFUSED[0]} of them refused, peak {peak} MiB\n")


if __name__ == "__main__":
    main()
