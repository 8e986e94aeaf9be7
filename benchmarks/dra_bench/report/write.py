"""Make a run's report files: answer the shown queries from the gallery, then write page, picture and Markdown."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from dra_bench.picture import draw_queries
from dra_bench.report.build import page_from_run, shown_line
from dra_bench.report.changed import changed_pictures
from dra_bench.report.render import render_html, render_markdown
from dra_bench.report.run_folder import Run, read_run
from dra_bench.report.verdict import caveat
from dra_bench.shown import answer, choose, rule
from dra_runtime import __version__
from dra_runtime.encoder import Encoder
from dra_runtime.errors import UsageError
from dra_runtime.files import write_bytes
from dra_runtime.gallery import Gallery
from dra_train.data import Dataset, Query, open_dataset

GALLERY, BUNDLE = "val.gallery", "bundle"


def write_report(folder: Path, output: Path, dataset: str | Path, count: int, seed: int) -> list[Path]:
    """Write ``output``, and picture.png and report.md beside it; returns their paths.

    The first split of eval.json is the one that is shown; its images must be in the run's val.gallery.
    """
    run = read_run(folder)
    split = run.evaluations[0]
    parts = open_dataset(dataset, split["split"], gallery=split.get("gallery_name", "original"))
    if parts[0].name != split["dataset"]:
        raise UsageError(f"eval.json is about {split['dataset']}, but --dataset is {parts[0].name}; give the same one")
    data = next((part for part in parts if part.category == split.get("category")), parts[0])
    encoder = Encoder.open(folder / BUNDLE)
    gallery = Gallery.open(folder / GALLERY, encoder)
    chosen = choose(data.queries, count, seed)
    shown = answer(chosen, data, gallery_ranking(gallery, data))
    how = rule(len(chosen), seed)
    changed = changed_pictures(run.recall["splits"], _compared(run, dataset, parts))
    page = page_from_run(run, shown, how, __version__, changed)
    picture = io.BytesIO()
    draw_queries(shown, f"{shown_line(shown)} {how} {caveat(run)}").save(picture, format="PNG", optimize=True)
    written = {
        output: render_html(page).encode(),
        output.with_name("picture.png"): picture.getvalue(),
        output.with_name("report.md"): render_markdown(page).encode(),
    }
    for path, content in written.items():
        write_bytes(path, content)
    return list(written)


def _compared(run: Run, dataset: str | Path, opened: Sequence[Dataset]) -> Iterator[Dataset]:
    """Open the splits of this data set that recall.json compares and that have changed queries."""
    yield from opened
    known = {part.split for part in opened}
    for split in run.recall["splits"]:
        if split["dataset"] == opened[0].name and split["changed"] and split["split"] not in known:
            known.add(split["split"])
            yield from open_dataset(dataset, split["split"], gallery=split.get("gallery_name", "original"))


def gallery_ranking(gallery: Gallery, dataset: Dataset) -> Callable[[Query], Sequence[str]]:
    """Return what ranks all images of a split for a query, by the reference's id in the gallery.

    A gallery of a folder above the split's names its images ``val/name``: the last part of the id counts.
    UsageError when the gallery lacks an image of the split.
    """
    ids = _ids_by_name(gallery.ids, dataset.images)
    names = {id: name for name, id in ids.items()}

    def rank(query: Query) -> list[str]:
        hits = gallery.search(text=query.text, id=ids[query.reference], k=len(gallery))
        return [names[hit.id] for hit in hits if hit.id in names]

    return rank


def _ids_by_name(ids: Sequence[str], images: Mapping[str, Path]) -> dict[str, str]:
    by_name = {id.rpartition("/")[2]: id for id in ids} | {id: id for id in ids}
    missing = [name for name in images if name not in by_name]
    if missing:
        raise UsageError(
            f"{GALLERY} lacks {len(missing)} of the split's {len(images)} images, such as {missing[0]}; "
            "make it with dra-search index from the split's image folder"
        )
    return {name: by_name[name] for name in images}
