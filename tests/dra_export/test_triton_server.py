"""A real Triton Inference Server answers from a model repository.

The wheel nvidia-pytriton carries the server and its Python backend. It wants numpy below 2, so it lives in an
environment of its own, together with this repository's wheel: nothing that a serving host wouldn't have.
"""

import contextlib
import json
import os
import platform
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pbtxt import parse
from plan_stand_ins import write_engines

import dra_runtime as dra
from dra_export.triton.repository import RepositoryOptions, write_repository

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux" or platform.machine() != "x86_64", reason="nvidia-pytriton is for x86-64 Linux"
    ),
]

SOURCE = Path(__file__).resolve().parents[2]
LOAD_SECONDS = 120
TEXTS = ["in red", "make her a pilot", "the same, but as a chef & with a “big” smile and a longer text about the hat"]
PARSE = """
import json, sys
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
for path in sys.argv[1:]:
    config = text_format.Parse(open(path).read(), ModelConfig())
    print(json.dumps(json_format.MessageToDict(config, preserving_proto_field_name=True)))
"""


@pytest.fixture(scope="session")
def server_python(tmp_path_factory):
    """The Python of an environment with the server, this repository's wheel with its extra `cpu`, and no PyTorch."""
    folder = tmp_path_factory.mktemp("triton-environment")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "-qq", "--no-deps", "--wheel-dir", folder / "dist", SOURCE], check=True)
    [wheel] = (folder / "dist").glob("*.whl")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    words = (
        "install",
        "-qq",
        "--disable-pip-version-check",
        f"{wheel}[cpu]",
        "nvidia-pytriton",
        "tritonclient[http]",
        "numpy<2",
    )
    subprocess.run([python, "-m", "pip", *words], check=True)
    return python


@pytest.fixture(scope="session")
def server_folder(server_python, tmp_path_factory):
    """The server as its wheel's own launcher lays it out: with the backend's program for this Python beside it."""
    wheel = Path(
        subprocess.run(
            [server_python, "-c", "import pytriton; print(pytriton.__path__[0])"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
    )
    folder = tmp_path_factory.mktemp("triton-server") / "server"
    shutil.copytree(wheel / "tritonserver", folder, ignore=shutil.ignore_patterns("python_backend_stubs"))
    stub = wheel / f"tritonserver/python_backend_stubs/3.{sys.version_info.minor}/triton_python_backend_stub"
    if not stub.is_file():
        pytest.skip(f"nvidia-pytriton has no Python backend for Python 3.{sys.version_info.minor}")
    shutil.copy(stub, folder / "backends" / "python")
    return folder


@contextlib.contextmanager
def server(server_python, server_folder, repository, log):
    """Start a server on a free port of 127.0.0.1 and yield its address once it is ready; stop it afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    site = next((server_python.parent.parent / "lib").glob("python3.*")) / "site-packages"
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    environment = {
        **clean,
        "PATH": f"{server_python.parent}{os.pathsep}{os.environ['PATH']}",
        "LD_LIBRARY_PATH": str(site / "nvidia_pytriton.libs"),
    }
    words = ["--model-repository", repository, "--backend-directory", server_folder / "backends"]
    words += ["--http-address", "127.0.0.1", "--http-port", port, "--allow-grpc", "false", "--allow-metrics", "false"]
    words += ["--exit-timeout-secs", 20]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [server_folder / "bin" / "tritonserver", *map(str, words)],
            cwd=log.parent,
            env=environment,
            stdout=output,
            stderr=output,
        )
    try:
        address = f"http://127.0.0.1:{port}/v2"
        deadline = time.monotonic() + LOAD_SECONDS
        while not is_ready(address):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server isn't ready:\n{log.read_text(errors='replace')}")
            time.sleep(0.2)
        yield address
        assert process.poll() is None, log.read_text(errors="replace")[-6000:]
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def is_ready(address):
    try:
        with urllib.request.urlopen(f"{address}/health/ready", timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def repository(tiny_bundle, tmp_path_factory):
    out = tmp_path_factory.mktemp("triton") / "repository"
    write_repository(tiny_bundle, out, RepositoryOptions(max_batch=8))
    return out


@pytest.fixture(scope="module")
def address(server_python, server_folder, repository):
    """The address of a server that serves the tiny bundle."""
    with server(server_python, server_folder, repository, repository.with_name("server.log")) as found:
        yield found
    # Every request was let go of, the failed ones too.
    log = repository.with_name("server.log").read_text(errors="replace")
    assert "Waiting for in-flight requests to complete" in log
    assert not re.search(r"has \d+ in-flight inferences", log)


@pytest.fixture(scope="module")
def expected(tiny_bundle, pictures):
    return dra.Encoder.open(tiny_bundle, threads=1).encode_queries(pictures, TEXTS)


@pytest.fixture(scope="module")
def pictures(emoji_images):
    return [path.read_bytes() for path in emoji_images[: len(TEXTS)]]


def content(values):
    """Return a tensor's bytes in the KServe protocol's binary form."""
    if isinstance(values, np.ndarray):
        return values.tobytes()
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def infer(address, model, inputs, output):
    """Ask a model for one output; returns it, or the HTTP status and the error's text."""
    types = {"f": "FP32", "i": "INT32"}
    described = [
        {
            "name": name,
            "shape": list(values.shape) if isinstance(values, np.ndarray) else [len(values), 1],
            "datatype": types[values.dtype.kind] if isinstance(values, np.ndarray) else "BYTES",
            "parameters": {"binary_data_size": len(content(values))},
        }
        for name, values in inputs.items()
    ]
    wanted = [{"name": output, "parameters": {"binary_data": True}}]
    header = json.dumps({"inputs": described, "outputs": wanted}).encode()
    request = urllib.request.Request(
        f"{address}/models/{model}/infer",
        header + b"".join(content(values) for values in inputs.values()),
        {"Inference-Header-Content-Length": str(len(header))},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            body, length = response.read(), int(response.headers["Inference-Header-Content-Length"])
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())["error"]
    (found,) = json.loads(body[:length])["outputs"]
    assert found["datatype"] == "FP32"
    return np.frombuffer(body[length:], np.float32).reshape(found["shape"])


def query(address, images, texts):
    return infer(address, "composed_query", {"image": images, "text": [text.encode() for text in texts]}, "query")


def assert_same(found, expected):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert ((found * expected).sum(axis=1) >= 0.9999).all()


def test_a_composed_query_is_the_encoders(address, pictures, expected):
    assert_same(query(address, pictures[:1], TEXTS[:1]), expected[:1])


def test_a_batch_of_one_request_is_answered_in_its_order(address, pictures, expected):
    assert_same(query(address, pictures, TEXTS), expected)


def test_every_part_answers_as_the_encoder_does(address, tiny_bundle, pictures):
    encoder = dra.Encoder.open(tiny_bundle, threads=1)
    pixels = np.stack([encoder.preprocess(dra.preprocess.open_image(picture)) for picture in pictures])
    images = encoder.encode_pixels(pixels)
    assert_same_values(infer(address, "image_encoder", {"image": pixels}, "image_features"), images["image_features"])
    tokens = np.array([encoder.tokenize(TEXTS[0])[0]], np.int32)
    texts = encoder.encode_texts(TEXTS[0])
    assert_same_values(infer(address, "text_encoder", {"tokens": tokens}, "text_features"), texts)
    pair = {"reference_tokens": images["image_tokens"][:1], "candidate_tokens": images["image_tokens"][1:2]}
    relation = encoder.session("reranker").run(pair)["relation_features"]
    assert_same_values(infer(address, "reranker", pair, "relation_features"), relation)
    features = {"image_features": images["image_features"][:1], "text_features": texts}
    assert_same(infer(address, "compositor", features, "query"), encoder.compose(*features.values()))


def assert_same_values(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_requests_at_once_get_their_own_answers(address, pictures, expected):
    def one(i):
        if i % 5 == 4:
            return query(address, [b"no image"], ["in red"])
        return query(address, [pictures[i % 3]], [TEXTS[i % 3]])

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, range(60)))
    for i, answer in enumerate(found):
        if i % 5 == 4:
            assert answer[0] == 400
        else:
            assert_same(answer, expected[i % 3 : i % 3 + 1])
    with urllib.request.urlopen(f"{address}/models/text_encoder/stats") as response:
        (stats,) = json.load(response)["model_stats"]
    assert stats["execution_count"] < stats["inference_count"]


def test_a_broken_input_gets_a_clear_error_and_the_server_lives_on(address, pictures, expected):
    for image, text, words in (
        (b"no image", "in red", "not an image"),
        (pictures[0][:200], "in red", "the image's bytes"),
        (b"", "in red", "empty"),
        (pictures[0], "  ", "nothing to search for"),
    ):
        status, error = query(address, [image], [text])
        assert status == 400
        assert words in error
        assert "Traceback" not in error
    status, error = infer(address, "composed_query", {"image": [pictures[0]], "text": [b"\xff"]}, "query")
    assert (status, "UTF-8" in error) == (400, True)
    assert_same(query(address, pictures[:1], TEXTS[:1]), expected[:1])


def test_the_documents_client_works(address, server_python, emoji_images, expected, tmp_path):
    (program,) = re.findall(r"```python\n(.*?)```", (SOURCE / "docs/triton.md").read_text(encoding="utf-8"), re.DOTALL)
    assert TEXTS[0] == "in red"
    shutil.copy(emoji_images[0], tmp_path / "reference.webp")
    here = program.replace("127.0.0.1:8000", address.removeprefix("http://").removesuffix("/v2"))
    assert here != program
    words = [server_python, "-c", f"{here}\nnp.save('query.npy', query)"]
    subprocess.run(words, check=True, cwd=tmp_path)
    assert_same(np.load(tmp_path / "query.npy"), expected[:1])


def test_more_than_the_largest_batch_is_refused(address, pictures):
    status, error = query(address, pictures * 3, TEXTS * 3)
    assert status == 400
    assert "batch-size" in error


def test_parts_were_warm_before_the_first_request(address, repository):
    log = repository.with_name("server.log").read_text(errors="replace")
    assert "failed to run warmup" not in log
    with urllib.request.urlopen(f"{address}/models/reranker/stats") as response:
        (stats,) = json.load(response)["model_stats"]
    assert 8 in [batch["batch_size"] for batch in stats["batch_stats"]]  # nobody else asks it for a full batch


def test_configurations_are_what_tritons_own_schema_reads(server_python, repository, tiny_bundle, tmp_path):
    """The server's own schema reads them all, and finds in them what the other tests' small parser finds."""
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    write_engines(bundle)
    for backend in ("onnxruntime", "tensorrt"):
        write_repository(bundle, tmp_path / backend, RepositoryOptions(backend, instances=2))
    paths = [path for root in (repository.parent, tmp_path) for path in root.glob("*/*/config.pbtxt")]
    assert len(paths) == 15
    done = subprocess.run([server_python, "-c", PARSE, *paths], check=True, capture_output=True, text=True)
    for path, line in zip(paths, done.stdout.splitlines(), strict=True):
        ours, theirs = parse(path.read_text()), json.loads(line)
        assert theirs["name"] == path.parent.name
        assert [theirs["backend"], theirs["max_batch_size"]] == [ours["backend"][0], ours["max_batch_size"][0]]
        for kind in ("input", "output"):
            assert [(t["name"], t["data_type"], [int(d) for d in t["dims"]]) for t in theirs[kind]] == [
                (t["name"][0], t["data_type"][0], t["dims"]) for t in ours[kind]
            ]
        (group,), (our_group,) = theirs["instance_group"], ours["instance_group"]
        assert [group["count"], group["kind"]] == [our_group["count"][0], our_group["kind"][0]]
        assert group.get("profile", []) == our_group.get("profile", [])
        assert ("profile" in group) == (theirs["backend"] == "tensorrt")
        assert len(theirs.get("model_warmup", [])) == len(ours.get("model_warmup", []))


def test_a_swapped_graph_is_never_served(server_python, server_folder, repository, tmp_path):
    broken = shutil.copytree(repository, tmp_path / "repository")
    shutil.copy(broken / "text_encoder/1/model.onnx", broken / "compositor/1/model.onnx")
    with (
        pytest.raises(RuntimeError, match=r"not the bundle's compositor\.onnx"),
        server(server_python, server_folder, broken, tmp_path / "server.log"),
    ):
        pass
