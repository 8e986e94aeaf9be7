"""A search service in Starlette: POST /search answers, GET /health says whether it could.

    pip install "dra-toolkit[cpu,serve]"
    DRA_BUNDLE=bundle/ DRA_GALLERY=shop.gallery uvicorn --app-dir examples service:app

    curl localhost:8000/search --json '{"id": "shoes/1", "text": "in red", "k": 5}'
    curl "localhost:8000/search?text=in+red&k=5" -H "content-type: image/jpeg" --data-binary @shoe.jpg

uvicorn listens to this machine alone. Before you change that, put a proxy in front that knows who may ask how often.
"""

import asyncio
import json
import os
from contextlib import asynccontextmanager
from dataclasses import asdict

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import dra_runtime as dra

MAX_IMAGE, MAX_JSON = 10_000_000, 100_000  # bytes of a body
MAX_K = 100
BODY_SECONDS, ANSWER_SECONDS = 10, 2  # a client that sends slowly, and a query that waits long, are given up

STATUS = {dra.OverloadedError: 503, dra.DeadlineError: 504, dra.UnknownIdError: 404}
STATUS |= dict.fromkeys((dra.ImageError, dra.TextError, dra.UsageError), 400)


@asynccontextmanager
async def lifespan(app):
    """Open everything in this very process, and answer what waits before it ends."""
    encoder = dra.Encoder.open(os.environ["DRA_BUNDLE"], check=True)
    app.state.gallery = dra.Gallery.open(os.environ["DRA_GALLERY"], encoder)
    app.state.batcher = dra.Batcher(app.state.gallery)
    yield
    await asyncio.to_thread(app.state.batcher.close)


async def search(request: Request) -> JSONResponse:
    """Answer a query: JSON with an id and a text, or an image with the text in the address."""
    kind = request.headers.get("content-type", "").split(";")[0]
    if kind == "application/json":
        query = asked(await body(request, MAX_JSON))
    elif kind.startswith("image/"):
        params = request.query_params
        query = {"text": params.get("text", ""), "k": number(params.get("k", "10"))}
        query["image"] = await body(request, MAX_IMAGE)
    else:
        raise HTTPException(415, f"the content-type is {kind!r}; send application/json, or an image as image/jpeg")
    if query.get("k", 10) > MAX_K:
        raise dra.UsageError(f"k is {query['k']}; give at most {MAX_K}")
    hits = await request.app.state.batcher.search(**query, timeout=ANSWER_SECONDS)
    return JSONResponse({"hits": [asdict(hit) for hit in hits]})


async def health(request: Request) -> JSONResponse:
    """Say what is served; a process that started has passed its self-check."""
    state = request.app.state
    return JSONResponse({"images": len(state.gallery), "pending": state.batcher.pending})


def asked(raw: bytes) -> dict:
    """Return the query of a JSON body; an image's path isn't for strangers to give."""
    try:
        query = json.loads(raw)
        fits = query.keys() <= {"id", "text", "k", "where"} and isinstance(query["text"], str)
        if fits and isinstance(query["id"], str) and type(query.get("k", 10)) is int:
            return query
    except (ValueError, RecursionError, AttributeError, KeyError):
        pass
    raise dra.UsageError('the body is no query; send JSON such as {"id": "shoes/1", "text": "in red", "k": 10}')


def number(text: str) -> int:
    """Return a number of the address."""
    if text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    raise dra.UsageError(f"k is {text!r:.40}; give a whole number such as k=10")


async def body(request: Request, limit: int) -> bytes:
    """Read a body, and no more of it than the limit."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                parts.append(part)
                size += len(part)
                if size > limit:
                    raise HTTPException(413, f"the body is larger than {limit} bytes; send less")
    except TimeoutError as error:
        raise HTTPException(408, f"the body took longer than {BODY_SECONDS} s; send it faster") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the body ended early; send all of it") from error
    return b"".join(parts)


async def refused(request: Request, error: dra.DraError) -> JSONResponse:
    """Answer an error with its line; what isn't the client's doing goes to the log instead, as status 500."""
    if type(error) not in STATUS:
        raise error
    return JSONResponse({"error": str(error)}, STATUS[type(error)])


async def refused_by_http(request: Request, error: HTTPException) -> JSONResponse:
    """Answer HTTP's own errors in the same form."""
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


app = Starlette(
    routes=[Route("/search", search, methods=["POST"]), Route("/health", health)],
    exception_handlers={dra.DraError: refused, HTTPException: refused_by_http},
    lifespan=lifespan,
)
