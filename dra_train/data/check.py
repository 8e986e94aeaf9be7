"""Look for what would stop or spoil a training run or an evaluation: in the queries, and in every image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from dra_train.data.images import SHOWN, Opened, missing_images, open_all
from dra_train.data.types import Dataset
from dra_train.vocabulary import clip_tokenizer

LONG_CONTEXT = 8192  #: tokens that are counted of a text, far more than the longest caption allowed has
SMALL_GROUP = 4  #: members, reference and target included; in a smaller one Rsubset@2 says little


@dataclass(frozen=True)
class Finding:
    """Something a data set has that it should not have, or that its user should know."""

    kind: str
    is_problem: bool  #: to be repaired; otherwise a note: data that the toolkit handles
    count: int
    text: str  #: what it is and what happens with it
    first: tuple[str, ...]  #: up to ten of them


def open_images(datasets: Sequence[Dataset]) -> dict[Path, Opened]:
    """Open every image of several data sets that lies on the disk, once each, under a progress bar."""
    images: dict[str, Path] = {}
    for dataset in datasets:
        missing = set(missing_images(dataset.images))
        images |= {str(path): path for name, path in dataset.images.items() if name not in missing}
    return {images[name]: opened for name, opened in open_all(images).items()}


def check(dataset: Dataset, opened: Mapping[Path, Opened], context_length: int = 77) -> dict[str, Any]:
    """Check one split; ``opened`` comes from `open_images`.

    Returns its counts, ``outlook`` (what training and evaluation would meet, in sentences) and ``findings``.
    """
    there = {name: opened[path] for name, path in dataset.images.items() if path in opened}
    bad = {name for name in dataset.images if name not in there or there[name].error}
    in_texts = _text_findings(dataset, context_length)
    findings = [*_image_findings(dataset, there), *_query_findings(dataset, bad), *in_texts]
    sizes = [image.size for image in there.values() if not image.error]
    return {
        "dataset": dataset.name,
        "split": dataset.split,
        **({"category": dataset.category} if dataset.category else {}),
        "format": dataset.format,
        **({"gallery_name": dataset.gallery} if dataset.gallery else {}),
        "queries": len(dataset.queries),
        "images": len(dataset.images),
        "opened": len(sizes),
        "pixels": _pixels(sizes),
        "outlook": _outlook(dataset, bad),
        "findings": [asdict(finding) for finding in findings if finding.count],
    }


def shared_queries(datasets: Sequence[Dataset]) -> list[str]:
    """Say for every two splits how many equal queries they share: what was trained on can't be tested on."""
    seen = [
        (f"{d.category} {d.split}".strip(), {(q.reference, q.text, q.target) for q in d.queries if q.target})
        for d in datasets
    ]
    pairs = [(a, b) for i, a in enumerate(seen) for b in seen[i + 1 :]]
    return [f"{a} and {b} share {len(x & y)} queries" for (a, x), (b, y) in pairs if x & y]


def _image_findings(dataset: Dataset, there: Mapping[str, Opened]) -> Iterable[Finding]:
    missing = [name for name in dataset.images if name not in there]
    empty = [name for name, image in there.items() if image.is_empty]
    broken = [f"{name} ({image.error})" for name, image in there.items() if image.error and not image.is_empty]
    yield _finding("missing images", True, missing, "aren't on the disk; complete the download")
    yield _finding("empty images", True, empty, "have 0 bytes; download them again")
    yield _finding("unreadable images", True, broken, "can't be opened; save them anew")


def _query_findings(dataset: Dataset, bad: set[str]) -> Iterable[Finding]:
    queries = dataset.queries
    needed = [_label(q.id) for q in queries if not bad.isdisjoint((q.reference, *q.right_answers))]
    ids = [_label(id) for id, count in Counter(str(q.id) for q in queries).items() if count > 1]
    same = [_label(q.id) for q in queries if q.target == q.reference]
    triplets = Counter((q.reference, q.text, q.target) for q in queries)
    repeated = [_label(q.id) for q in queries if triplets[q.reference, q.text, q.target] > 1]
    grouped = [q for q in queries if q.group]
    outside = [_label(q.id) for q in grouped if q.target and not {q.reference, q.target} <= set(q.group)]
    small = [_label(q.id) for q in grouped if len(set(q.group)) < SMALL_GROUP]
    yield _finding("queries without their images", True, needed, "need an image that is missing or unreadable")
    yield _finding("repeated ids", True, ids, "stand for several queries, so results by id are lost")
    yield _finding("targets that are the reference", True, same, "ask for no change; CIRR's protocol can't find them")
    yield _finding("groups without the target", True, outside, "lack reference or target, so Rsubset leaves them out")
    yield _finding("repeated triplets", False, repeated, "occur more than once and count as often")
    yield _finding("small groups", False, small, f"have fewer than {SMALL_GROUP} members, so Rsubset says little")


def _text_findings(dataset: Dataset, context_length: int) -> Iterable[Finding]:
    tokenizer = clip_tokenizer(LONG_CONTEXT)
    lengths = {text: len(tokenizer.encode(text)) for text in {q.text for q in dataset.queries}}
    # FashionIQ joins two captions by "and": with nothing else in it the text is as good as blank.
    blank = [_label(q.id) for q in dataset.queries if q.text.strip() in ("", "and")]
    half = [_label(q.id) for q in dataset.queries if q.train_texts and len(q.train_texts) == 3]
    cut = [f"{_label(q.id)} ({lengths[q.text]})" for q in dataset.queries if lengths[q.text] > context_length]
    yield _finding("blank texts", False, blank, "say nothing; the reference alone answers them")
    yield _finding("blank captions of two", False, half, "have one caption; the other is used as published")
    yield _finding("texts that are cut", False, cut, f"have more than {context_length} tokens; the rest isn't read")


def _outlook(dataset: Dataset, bad: set[str]) -> list[str]:
    lost = sum(not bad.isdisjoint((q.reference, q.target)) for q in dataset.queries)
    answers = [len(q.right_answers) for q in dataset.queries]
    images = len({name for q in dataset.queries for name in (q.reference, *q.right_answers)})
    if dataset.hides_targets:
        sentences = [f"targets are hidden: dra-train submit answers {len(dataset.queries)} queries for the server"]
    else:
        texts = max(len(q.train_texts) or 1 for q in dataset.queries)
        drawn = f", a text drawn from up to {texts} at each step" if texts > 1 else ""
        sentences = [f"training would see {len(dataset.queries)} triplets over {images} images{drawn}"]
        several = f", {sum(answers) / len(answers):.2f} right answers each" if max(answers) > 1 else ""
        sentences.append(f"evaluation would rank {len(dataset.images)} images for each query{several}")
    if bad:
        sentences.append(
            f"both would stop at {len(bad)} images; --allow-missing leaves them out, with {lost} queries that need them"
        )
    return sentences


def _pixels(sizes: Sequence[tuple[int, int]]) -> dict[str, list[int]]:
    if not sizes:
        return {}
    by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    middle = [round(median(side)) for side in zip(*sizes, strict=True)]
    return {"smallest": list(by_area[0]), "median": middle, "largest": list(by_area[-1])}


def _finding(kind: str, is_problem: bool, which: Sequence[str], text: str) -> Finding:
    return Finding(kind, is_problem, len(which), text, tuple(which[:SHOWN]))


def _label(id: int | str) -> str:
    return f"query {id}"
