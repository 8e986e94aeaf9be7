"""dra-bench latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from PIL import Image

from dra_bench.backends import bundle_encoders, channels_last_towers, pytorch_towers
from dra_bench.commands.common import (
    bundles_option,
    checkpoint_option,
    deliver,
    json_option,
    model_identities,
    open_all,
    output_option,
    samples_option,
    seconds_option,
    shown_command,
    threads_option,
    timed_in_turns,
)
from dra_bench.environment import environment
from dra_bench.latency import (
    AGREEMENT,
    INT8_AGREEMENT,
    TEXT,
    Workload,
    check_agreement,
    latency_cells,
    latency_ratios,
    latency_rows,
    ratios_table,
    raw_milliseconds,
    rows_table,
)
from dra_bench.throughput import throughput_rows, throughput_table
from dra_runtime.files import check_output


@click.command("latency", short_help="Time every part of a query, PyTorch beside one bundle or several.")
@bundles_option
@checkpoint_option
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(1),
    default=(1,),
    show_default=True,
    help="Images and texts a call; repeatable.",
)
@click.option("--text", default=TEXT, show_default=True, help="The text of every query.")
@samples_option
@seconds_option
@threads_option
@json_option
@output_option
def latency_command(
    bundles: tuple[Path, ...],
    checkpoint: Path,
    batches: tuple[int, ...],
    text: str,
    samples: int | None,
    seconds: float,
    threads: int | None,
    as_json: bool,
    output: Path | None,
) -> None:
    """Time every part of a query: PyTorch eager beside the bundles, on the CPU.

    All rows are measured in one run and take turns, after warming up, with the garbage collector off. Each starts at
    preprocessed pixels and a string and ends at a numpy vector. PyTorch runs the model as it is used today: float32,
    eager, every text padded to 77 tokens; one more row has its text cut to its length. `query` has a new reference
    image, `query by id` one whose features are known.

    Several bundles, such as one a precision, are compared with PyTorch and with the first float32 one among them.

    With --batch above 1, bundles are also compared with the fastest of PyTorch's ways in items a second: images
    contiguous or channels last, texts padded or cut.

    p99 of few samples is close to the slowest one: look at the number of samples.
    """
    check_output(output)
    source, encoders = open_all(bundles, checkpoint, threads)
    pytorch, contenders = pytorch_towers(source.model), bundle_encoders(encoders)
    encoder = encoders[0]
    selftest = encoder.bundle.selftest()
    images = tuple(Image.fromarray(array) for array in selftest["images"])
    work = Workload(images, encoder.preprocess, text)
    surroundings = environment(encoder.threads, shown_command())
    precisions = [e.bundle.manifest.precision for e in encoders]
    agreements = [
        check_agreement(pytorch, contender, work, INT8_AGREEMENT if precision == "int8" else AGREEMENT)
        for contender, precision in zip(contenders, precisions, strict=True)
    ]
    float32 = contenders[precisions.index("fp32")].name if "fp32" in precisions else None
    channels_last = channels_last_towers(source.model) if max(batches) > 1 else None
    cells = latency_cells(
        pytorch, pytorch_towers(source.model, cut=True), contenders, work, sorted(set(batches)), channels_last
    )
    click.echo(f"timing {len(cells)} rows in turns on {surroundings['cpu']}, {encoder.threads} threads", err=True)
    timings, others = timed_in_turns(cells, samples, seconds, "latency")
    rows, ratios = latency_rows(timings), latency_ratios(timings, float32)
    throughput = throughput_rows(timings)
    result: dict[str, Any] = {
        "rows": rows,
        "ratios": ratios,
        **({"throughput": throughput} if throughput else {}),
        "environment": {**surroundings, "used_by_others_percent": others, **model_identities(source, *encoders)},
        "bundles": [
            {
                "backend": contender.name,
                "bundle": path.resolve().name,
                "bundle_id": contender.encoder.bundle_id,
                "precision": precision,
                "agreement": agreement,
            }
            for contender, path, precision, agreement in zip(contenders, bundles, precisions, agreements, strict=True)
        ],
        "text": text,
        "agreement": {part: min(found[part] for found in agreements) for part in agreements[0]},
        "warmup": {"rounds": timings.warmup_rounds, "steady": timings.steady},
        "raw_ms": raw_milliseconds(timings),
    }
    tables = [rows_table(rows), ratios_table(ratios), *([throughput_table(throughput)] if throughput else [])]
    deliver(result, output, as_json, "\n\n".join(tables))
