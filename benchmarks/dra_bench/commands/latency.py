"""dra-bench latency."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image

from dra_bench.clocks import clocks_after
from dra_bench.commands.common import (
    deliver,
    identities,
    json_option,
    model_identities,
    open_all,
    output_option,
    samples_option,
    shown_command,
    threads_option,
    timed_in_turns,
)
from dra_bench.contenders.backend import PYTORCH, Backend, LineUp, Unavailable
from dra_bench.contenders.bundles import BundleEncoder, open_bundles
from dra_bench.contenders.choose import BUNDLES, NAMES, line_up
from dra_bench.contenders.pytorch import PyTorchTowers, channels_last_towers, pytorch_towers
from dra_bench.environment import environment
from dra_bench.latency import (
    TEXT,
    Workload,
    fastest_baselines,
    latency_ratios,
    latency_rows,
    ratios_table,
    raw_milliseconds,
    rows_table,
    text_of_tokens,
)
from dra_bench.latency_cells import (
    agreeing,
    copy_cells,
    in_order,
    latency_cells,
    rerank_cells,
    search_cells,
    step_cells,
)
from dra_bench.throughput import throughput_rows, throughput_table
from dra_bench.timing import Cell
from dra_runtime.encoder import Encoder
from dra_runtime.errors import BackendError, GalleryMismatchError, UsageError
from dra_runtime.files import check_output
from dra_runtime.gallery import Gallery
from dra_runtime.sessions import checked_threads
from dra_train.checkpoint import Checkpoint

LEAST_SAMPLES = 20  #: a row where --samples isn't given, however slow the contenders are
SECONDS_A_ROW = 4.0
LEAST_SECONDS = 60.0


@click.command("latency", short_help="Time every part of a query: all contenders in one table, or an engine alone.")
@click.option(
    "--bundle",
    "bundles",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Bundle folder, from dra-export onnx; repeatable.",
)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="The checkpoint that the bundles were exported from; without it only they take part.",
)
@click.option("--engine", type=click.Path(path_type=Path), help="A TensorRT plan alone, beside its sidecar.")
@click.option(
    "--backend",
    "names",
    multiple=True,
    metavar="NAME",
    help=f"Who takes part beside PyTorch eager; repeatable. Default: all that are there of {', '.join(NAMES[1:])}.",
)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(1, 1024),
    default=(1,),
    show_default=True,
    help="Images and texts a call; repeatable.",
)
@click.option("--text", "texts", multiple=True, help="The text of the queries; repeatable.  [default: ten words]")
@click.option(
    "--text-tokens",
    "lengths",
    multiple=True,
    type=click.IntRange(3, 77),
    help="A text of that many tokens, made of words; repeatable.",
)
@click.option("--gallery", type=click.Path(path_type=Path), help="Gallery of one of the bundles, to time its search.")
@samples_option
@click.option(
    "--seconds",
    type=click.FloatRange(1),
    help=f"Time for the whole measurement; default: {SECONDS_A_ROW:g} a row, at least {LEAST_SECONDS:g}.",
)
@threads_option
@json_option
@output_option
def latency_command(
    bundles: tuple[Path, ...],
    checkpoint: Path | None,
    engine: Path | None,
    names: tuple[str, ...],
    batches: tuple[int, ...],
    texts: tuple[str, ...],
    lengths: tuple[int, ...],
    gallery: Path | None,
    samples: int | None,
    seconds: float | None,
    threads: int | None,
    as_json: bool,
    output: Path | None,
) -> None:
    """Time every part of a query by all contenders that are there, in one table.

    \b
      dra-bench latency --bundle bundle/ --checkpoint ckpt.pt -o latency.json
      dra-bench latency --bundle bundle/ --bundle bundle-int8/ --checkpoint ckpt.pt --batch 1 --batch 16
      dra-bench latency --bundle bundle/ --text-tokens 8 --text-tokens 32 --gallery shop.gallery
      dra-bench latency --engine bundle/engines/KEY/image_encoder.plan

    All rows are measured in one run and take turns, after warming up, with the garbage collector off; before each call
    the threads of the one before have come to rest, and it is made once untimed. Each starts at preprocessed pixels or
    a string and ends at a numpy vector. PyTorch eager runs the model as it is used today: float32, every text padded to
    77 tokens; one more row has its text cut to its length. `query, new image` encodes the reference, `query by id`
    knows its features.

    Parts have every --batch with the first text; further texts are encoded and make queries by id, one at a time. With
    --batch above 1, bundles are also compared with the fastest of PyTorch's ways in items a second: images contiguous
    or channels last, texts padded or cut.

    p99 of few samples is close to the slowest one: look at the number of samples. docs/benchmarks.md says what makes a
    figure quotable.
    """
    check_output(output)
    if engine is not None:
        if bundles or checkpoint or names or gallery or texts or lengths or threads or batches != (1,):
            raise UsageError(
                "--engine times one graph alone; leave out what belongs to bundles, or give --bundle instead"
            )
        from dra_bench.commands.latency_engine import time_engine

        result, text = time_engine(engine, samples, seconds or LEAST_SECONDS)
    else:
        if not bundles:
            raise UsageError("give --bundle FOLDER, or --engine FILE to time a plan alone")
        ready = _prepared(bundles, checkpoint, names, texts, lengths, threads)
        result, text = _time_contenders(ready, sorted(set(batches)), gallery, samples, seconds)
    deliver(result, output, as_json, text)


@dataclass(frozen=True)
class _Prepared:
    """Who takes part, with what, and who can't."""

    source: Checkpoint | None
    encoders: tuple[Encoder, ...]
    paths: tuple[Path, ...]  #: of the bundles
    contenders: tuple[Backend, ...]
    cosines: dict[str, dict[str, float]]  #: with the first contender's vectors
    unavailable: tuple[Unavailable, ...]
    work: Workload

    @property
    def bundles(self) -> tuple[BundleEncoder, ...]:
        """Return the contenders that are ours."""
        return tuple(c for c in self.contenders if isinstance(c, BundleEncoder))


def _prepared(
    bundles: Sequence[Path],
    checkpoint: Path | None,
    names: Sequence[str],
    texts: Sequence[str],
    lengths: Sequence[int],
    threads: int | None,
) -> _Prepared:
    source: Checkpoint | None = None
    if checkpoint is None:
        encoders = tuple(Encoder.open(bundle, threads=checked_threads(threads)) for bundle in bundles)
    else:
        source, encoders = open_all(bundles, checkpoint, threads)
    encoder = encoders[0]
    made = [text_of_tokens(length, lambda text: len(encoder.tokenize([text])[0])) for length in lengths]
    first, *more = dict.fromkeys([*texts, *made] or [TEXT])
    encoder.tokenize([first, *more])  # one that can't be a query is told before the work
    images = tuple(Image.fromarray(array) for array in encoder.bundle.selftest()["images"])
    work = Workload(images, encoder.preprocess, first, tuple(more))
    with tempfile.TemporaryDirectory() as folder:
        if source is None:
            found = _bundles_alone(encoders, names)
        else:
            found = line_up(source, encoders, encoder.threads, names or None, Path(folder))
    contenders, cosines, refused = agreeing(found.contenders, work)
    return _Prepared(source, encoders, tuple(bundles), tuple(contenders), cosines, (*found.unavailable, *refused), work)


def _bundles_alone(encoders: Sequence[Encoder], names: Sequence[str]) -> LineUp:
    """Line up the bundles in every backend of the runtime; without a checkpoint nobody else can take part."""
    contenders: list[Backend] = []
    missing: list[Unavailable] = []
    for name in names:
        if name not in BUNDLES:
            raise BackendError(
                f"{name!r} can't take part without --checkpoint; give it, or one or more of {', '.join(BUNDLES)}"
            )
    for name in BUNDLES:
        if not names or name in names:
            opened, absent = open_bundles(encoders, name, encoders[0].threads)
            if names and not opened:
                raise BackendError(f"{name}: {absent[0].reason}")
            contenders += opened
            missing += absent
    others = [Unavailable(name, "needs --checkpoint") for name in NAMES if name not in BUNDLES and not names]
    return LineUp(tuple(contenders), (*missing, *others))


def _time_contenders(
    ready: _Prepared, batches: Sequence[int], gallery: Path | None, samples: int | None, seconds: float | None
) -> tuple[dict[str, Any], str]:
    surroundings = environment(ready.encoders[0].threads, shown_command())
    opened = None if gallery is None else _opened(gallery, ready.bundles)
    cells = _cells(ready, batches, opened)
    seconds = max(LEAST_SECONDS, SECONDS_A_ROW * len(cells)) if seconds is None else seconds
    limit = "" if samples else f", up to {seconds:.0f} s"
    click.echo(
        f"timing {len(cells)} rows in turns on {surroundings['cpu']}, {surroundings['threads']} threads{limit}",
        err=True,
    )
    timings, others = timed_in_turns(cells, samples, seconds, "latency", LEAST_SAMPLES)
    ours = [contender.name for contender in ready.bundles]
    float32 = next((c.name for c in ready.bundles if c.precision == "fp32"), None)
    rows, ratios = latency_rows(timings), latency_ratios(timings, ours, float32)
    fastest, throughput = fastest_baselines(timings, ours), throughput_rows(timings, ours)
    agreements = [ready.cosines[name] for name in ours if name in ready.cosines]
    identity = identities(*ready.encoders) if ready.source is None else model_identities(ready.source, *ready.encoders)
    result: dict[str, Any] = {
        "rows": rows,
        "ratios": ratios,
        "fastest_baselines": fastest,
        **({"throughput": throughput} if throughput else {}),
        "contenders": [_described(contender, ready) for contender in ready.contenders],
        "unavailable": [asdict(missing) for missing in ready.unavailable],
        "environment": {**surroundings, **clocks_after(), "used_by_others_percent": others, **identity},
        "bundles": _bundles(ready),
        "text": ready.work.text,
        "texts": [ready.work.text, *ready.work.more_texts],
        "agreement": {part: min(a[part] for a in agreements) for part in agreements[0]} if agreements else {},
        **({} if opened is None else {"gallery": _gallery(opened[0])}),
        "warmup": {"rounds": timings.warmup_rounds, "steady": timings.steady, "restless_calls": timings.restless},
        "raw_ms": raw_milliseconds(timings),
    }
    return result, _report(rows, ratios, fastest, throughput, ready)


def _cells(ready: _Prepared, batches: Sequence[int], opened: tuple[Gallery, str] | None) -> list[Cell]:
    """List everything that is timed."""
    pytorch = ready.contenders[0] if isinstance(ready.contenders[0], PyTorchTowers) else None
    cut = channels_last = tokenizer = None
    if ready.source is not None:
        model = ready.source.model
        tokenizer = SimpleTokenizer(context_length=int(model.text.context_length))
        cut = pytorch_towers(model, cut=True)
        channels_last = channels_last_towers(model) if max(batches) > 1 else None
    cells = latency_cells(ready.contenders, ready.work, batches, cut, channels_last)
    cells += step_cells(ready.encoders[0], ready.work, tokenizer)
    cells += rerank_cells(pytorch, ready.bundles, ready.work)
    if tokenizer is not None:
        cells += copy_cells(ready.work, batches, tokenizer.context_length, ready.encoders[0].dim)
    if opened is not None:
        gallery, name = opened
        bundle = next(c for c in ready.bundles if c.name == name)
        pixels, texts = ready.work.pixels, ready.work.texts
        queries = {n: bundle.query(pixels(n, bundle.image_input), texts(n)) for n in batches}
        cells += search_cells(gallery, name, queries.__getitem__, batches)
    return in_order(cells)


def _opened(path: Path, bundles: Sequence[BundleEncoder]) -> tuple[Gallery, str]:
    """Open a gallery with the bundle that made it; returns also that contender's name."""
    for bundle in bundles:
        try:
            return Gallery.open(path, bundle.encoder), bundle.name
        except GalleryMismatchError as error:
            mismatch = error
    raise mismatch


def _gallery(gallery: Gallery) -> dict[str, Any]:
    index = gallery.index
    return {"items": len(gallery), "storage": gallery.storage, "index": None if index is None else index.kind}


def _described(contender: Backend, ready: _Prepared) -> dict[str, Any]:
    return {
        "backend": contender.name,
        "about": contender.about,
        "precision": contender.precision,
        "threads": ready.encoders[0].threads,
        "agreement": ready.cosines.get(contender.name),
    }


def _bundles(ready: _Prepared) -> list[dict[str, Any]]:
    """Say which bundle each of our contenders is."""
    folders = {
        encoder.bundle_id: path.resolve().name for encoder, path in zip(ready.encoders, ready.paths, strict=True)
    }
    return [
        {
            "backend": contender.name,
            "bundle": folders[contender.encoder.bundle_id],
            "bundle_id": contender.encoder.bundle_id,
            "precision": contender.precision,
            "agreement": ready.cosines.get(contender.name, {}),
        }
        for contender in ready.bundles
    ]


def _report(
    rows: Sequence[dict[str, Any]],
    ratios: Sequence[dict[str, Any]],
    fastest: Sequence[dict[str, Any]],
    throughput: Sequence[dict[str, Any]],
    ready: _Prepared,
) -> str:
    """Lay out all that people read."""
    base = PYTORCH if ready.source is not None else ready.contenders[0].name
    sections = [rows_table(rows)]
    if ratios:
        sections.append(f"How many times as fast, by medians; base: {base}\n\n{ratios_table(ratios)}")
    if fastest:
        sections.append(f"Against the fastest contender that isn't a bundle\n\n{ratios_table(fastest)}")
    if throughput:
        sections.append(f"Items a second\n\n{throughput_table(throughput)}")
    if ready.unavailable:
        missing = [f"  {absent.backend}: {absent.reason}" for absent in ready.unavailable]
        sections.append("\n".join(["Not here:", *missing]))
    return "\n\n".join(sections)
