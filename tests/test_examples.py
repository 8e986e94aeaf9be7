"""The examples run as their first lines say: a real service is asked over HTTP, and stopped."""

import asyncio
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

import dra_runtime as dra

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
TEXTS = ["in red", "with a hat", "smaller"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = ROOT / "tests/dra_runtime/bundle_factory.py"
    factory = module_from(path)
    return factory.write_bundle(tmp_path_factory.mktemp("examples") / "bundle")


@pytest.fixture(scope="module")
def pictures():
    return sorted((ROOT / "data/emoji_cir/img_raw").rglob("*.webp"))[:800:50]


@pytest.fixture(scope="module")
def saved(bundle, pictures):
    path = bundle.with_name("shop.gallery")
    images = {path.stem: path for path in pictures}
    colours = {name: {"colour": ("red", "blue")[n % 2]} for n, name in enumerate(images)}
    dra.Gallery.build(dra.Encoder.open(bundle, threads=1), images, metadata=colours).save(path)
    return path


@pytest.fixture(scope="module")
def gallery(saved, bundle):
    return dra.Gallery.open(saved, dra.Encoder.open(bundle, threads=1))


def module_from(path):
    spec = importlib.util.spec_from_file_location(f"examples_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Service:
    """The example under uvicorn in a process of its own."""

    def __init__(self, bundle, saved):
        command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "service:app", "--port", "0"]
        settings = {"DRA_BUNDLE": str(bundle), "DRA_GALLERY": str(saved)}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **settings})
        self.log, self.url = "", ""
        for line in self.process.stderr:
            self.log += line
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                self.url = found.group()
                break
        assert self.url, self.log

    def stop(self):
        """Ask it to end, as a container's host does; return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.log += self.process.communicate(timeout=20)[1]
        finally:
            self.process.kill()
        return self.process.returncode


@pytest.fixture(scope="module")
def service(bundle, saved):
    service = Service(bundle, saved)
    yield service
    # uvicorn ends itself by the signal once all is closed; what it says must be no stack trace
    assert service.stop() in (0, -signal.SIGTERM)
    assert "Application shutdown complete" in service.log
    assert "Traceback" not in service.log


def as_json(hits):
    return [
        {"id": hit.id, "score": pytest.approx(hit.score, abs=1e-5), "rank": hit.rank, "metadata": hit.metadata}
        for hit in hits
    ]


def test_service_answers_many_callers(service, gallery, pictures):
    def ask(n):
        image = pictures[n % len(pictures)]
        text, k = TEXTS[n % 3], 1 + n % 5
        with httpx.Client(base_url=service.url, timeout=20) as client:
            if n % 2:
                answer = client.post("/search", json={"id": image.stem, "text": text, "k": k})
                wanted = gallery.search(id=image.stem, text=text, k=k)
            else:
                params, headers = {"text": text, "k": str(k)}, {"content-type": "image/webp"}
                answer = client.post("/search", params=params, content=image.read_bytes(), headers=headers)
                wanted = gallery.search(image=image, text=text, k=k)
        return answer, wanted

    with ThreadPoolExecutor(8) as callers:
        for answer, wanted in callers.map(ask, range(24)):
            assert answer.status_code == 200
            assert answer.json() == {"hits": as_json(wanted)}


def test_service_filters_and_says_that_it_lives(service, gallery):
    query = {"id": gallery.ids[0], "text": "in red", "where": {"colour": "red"}}
    answer = httpx.post(f"{service.url}/search", json=query)
    assert answer.json() == {"hits": as_json(gallery.search(**query))}
    assert httpx.get(f"{service.url}/health").json() == {"images": len(gallery), "pending": 0}


@pytest.mark.parametrize(
    ("request_", "status", "said"),
    [
        ({"json": {"id": "nowhere", "text": "in red"}}, 404, "holds no id 'nowhere'"),
        ({"json": {"id": "FIRST", "text": " "}}, 400, "nothing to search for"),
        ({"json": {"id": "FIRST", "text": "a", "k": 0}}, 400, "k is 0"),
        ({"json": {"id": "FIRST", "text": "a", "k": 101}}, 400, "k is 101"),
        ({"json": {"id": "FIRST", "text": "a", "k": "9"}}, 400, "no query"),
        ({"json": {"id": "FIRST", "text": "a", "where": "red"}}, 400, "where is"),
        ({"json": {"id": "FIRST", "text": "a", "image": "/etc/passwd"}}, 400, "no query"),
        ({"json": {"id": "FIRST"}}, 400, "no query"),
        ({"json": ["a"]}, 400, "no query"),
        ({"content": b"[" * 90_000, "headers": {"content-type": "application/json"}}, 400, "no query"),
        ({"content": b" " * 100_001, "headers": {"content-type": "application/json"}}, 413, "larger than 100000"),
        ({"content": b"\0" * 10_000_001, "headers": {"content-type": "image/jpeg"}}, 413, "larger than 10000000"),
        ({"content": b"no image", "params": {"text": "a"}, "headers": {"content-type": "image/jpeg"}}, 400, "image"),
        ({"content": b"", "params": {"text": "a", "k": "x"}, "headers": {"content-type": "image/jpeg"}}, 400, "'x'"),
        ({"content": b"a"}, 415, "send application/json"),
    ],
)
def test_service_refuses(service, gallery, request_, status, said):
    if isinstance(request_.get("json"), dict):
        request_ = {"json": {k: gallery.ids[0] if v == "FIRST" else v for k, v in request_["json"].items()}}
    answer = httpx.post(f"{service.url}/search", **request_, timeout=20)
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert said in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


def test_service_bears_a_client_that_hangs_up(service):
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall(b"POST /search?text=a HTTP/1.1\r\nhost: a\r\ncontent-type: image/png\r\n")
        connection.sendall(b"content-length: 1000\r\n\r\nshort")
    assert httpx.get(f"{service.url}/health").status_code == 200


def test_service_under_too_much_load(gallery, monkeypatch):
    example = module_from(EXAMPLES / "service.py")
    monkeypatch.setattr(example, "ANSWER_SECONDS", 30)
    gate, entered, search_vectors = threading.Event(), threading.Event(), gallery.search_vectors

    def slow(*arguments):
        entered.set()
        assert gate.wait(20)
        return search_vectors(*arguments)

    monkeypatch.setattr(gallery, "search_vectors", slow)
    query = {"id": gallery.ids[0], "text": "in red"}

    async def story():
        transport = httpx.ASGITransport(example.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            first = asyncio.create_task(client.post("/search", json=query))
            await asyncio.to_thread(entered.wait, 20)
            monkeypatch.setattr(example, "ANSWER_SECONDS", 0.02)
            late = asyncio.create_task(client.post("/search", json=query))
            while (await client.get("/health")).json()["pending"] < 2:
                await asyncio.sleep(0.001)
            refused = await client.post("/search", json=query)
            await asyncio.sleep(0.03)
            gate.set()
            return await first, refused, await late

    example.app.state.gallery = gallery
    with dra.Batcher(gallery, max_pending=2) as example.app.state.batcher:
        first, refused, late = asyncio.run(story())
    assert first.json()["hits"]
    assert (refused.status_code, late.status_code) == (503, 504)
    assert refused.json()["error"].startswith("2 queries wait")
    assert "deadline" in late.json()["error"]


def test_asyncio_example(saved, bundle, gallery):
    command = [sys.executable, str(EXAMPLES / "asyncio_search.py"), str(bundle), str(saved), "in red"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    first = gallery.search(id=gallery.ids[0], text="in red", k=3)
    assert f"{len(gallery)} queries answered" in done.stdout
    assert "the loop ticked" in done.stdout
    assert f"{gallery.ids[0]} in red: {', '.join(f'{hit.id} {hit.score:.3f}' for hit in first)}\n" in done.stdout
