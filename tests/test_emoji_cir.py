"""The built-in data set: whole, consistent, and with one right answer to every query."""

import importlib
import json
import re
import string
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

REPOSITORY = Path(__file__).parent.parent
ROOT = REPOSITORY / "data" / "emoji_cir"
SPLITS = ("train", "val", "val_unseen")
FIVE_TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
NUMBERS = {"a": 1, "one": 1, "two": 2, "three": 3, "four": 4}
KEYS = ("concept", "gender", "hair", "tone", "value")

# Words that only the sentence frames of val and val_unseen have; everything else was read in training.
NEW_FRAME_WORDS = {
    "about", "alike", "also", "am", "could", "edits", "everything", "except", "how", "imagine", "keep", "looking",
    "looks", "please", "rest", "return", "shows", "take", "turns", "very", "what", "which", "who", "whose", "would",
}  # fmt: skip


def read(relative):
    return json.loads((ROOT / relative).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def captions():
    return {split: read(f"cirr/captions/cap.rc2.{split}.json") for split in SPLITS}


@pytest.fixture(scope="module")
def galleries():
    return {split: read(f"cirr/image_splits/split.rc2.{split}.json") for split in SPLITS}


@pytest.fixture(scope="module")
def attributes():
    return read("attributes.json")


@pytest.fixture(scope="module")
def phrases():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPOSITORY / "scripts"))
        yield importlib.import_module("emoji_cir_phrases")


def state(attributes, name):
    return tuple(attributes[name].get(key, "") for key in KEYS)


def difference(attributes, a, b):
    return {key for key, x, y in zip(KEYS, state(attributes, a), state(attributes, b), strict=True) if x != y}


def words_of(text):
    return set(re.findall(r"[a-z0-9'-]+", text.lower()))


def test_every_image_is_there_small_and_rgb(galleries):
    for split, gallery in galleries.items():
        on_disk = {path.stem for path in (ROOT / "img_raw" / split).iterdir()}
        assert on_disk == set(gallery)
        for name, relative in gallery.items():
            assert relative == f"./{split}/{name}.webp"
            with Image.open(ROOT / "img_raw" / relative) as image:
                assert (image.format, image.mode, image.size) == ("WEBP", "RGB", (96, 96))


def test_size_bounds(captions, galleries):
    total = sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file())
    assert total < 10_000_000
    assert (ROOT / "cirr/captions/cap.rc2.train.json").stat().st_size < 5_000_000
    assert 12_000 <= len(captions["train"]) <= 16_000
    assert 1_200 <= len(captions["val"]) <= 2_000
    assert 1_200 <= len(captions["val_unseen"]) <= 2_000
    assert 400 <= len(galleries["val_unseen"]) <= 600


def test_entries_have_cirrs_form(captions, galleries):
    pair_ids = Counter(entry["pairid"] for entries in captions.values() for entry in entries)
    assert max(pair_ids.values()) == 1
    for split, entries in captions.items():
        for entry in entries:
            reference, target, group = entry["reference"], entry["target_hard"], entry["img_set"]
            assert set(entry) == {"pairid", "reference", "target_hard", "target_soft", "caption", "edit", "img_set"}
            assert reference != target
            assert entry["target_soft"] == {target: 1.0}
            assert len(set(group["members"])) == len(group["members"]) == 6
            assert set(group["members"]) <= set(galleries[split])
            assert group["members"][group["reference_rank"]] == reference
            assert group["members"][group["target_rank"]] == target


def test_splits_share_no_image_and_unseen_concepts_are_new(galleries, attributes):
    names = [name for gallery in galleries.values() for name in gallery]
    assert len(names) == len(set(names))
    assert set(names) == set(attributes)
    concepts = {split: {attributes[name]["concept"] for name in gallery} for split, gallery in galleries.items()}
    assert concepts["val_unseen"].isdisjoint(concepts["train"] | concepts["val"])
    assert concepts["val"] <= concepts["train"]


def test_no_two_images_have_the_same_attributes(attributes):
    states = Counter(state(attributes, name) for name in attributes)
    assert max(states.values()) == 1


def test_the_edit_is_named_and_is_all_that_changes(captions, attributes):
    of_concept = {"pose": "gesture", "hand": "gesture"}
    for split, entries in captions.items():
        for entry in entries:
            target = attributes[entry["target_hard"]]
            changed = difference(attributes, entry["reference"], entry["target_hard"])
            if target["kind"] in ("thing", "colour"):
                assert changed == {"value"}
                assert entry["edit"] == target["kind"]
            else:
                kind = of_concept.get(target["kind"], target["kind"])
                assert {kind if key == "concept" else key for key in changed} == set(entry["edit"].split("+"))
            if split == "val_unseen":
                assert changed <= {"gender", "hair", "tone"}


def test_the_caption_names_what_the_target_has(captions, attributes, phrases):
    """With unique attributes and everything else kept, the named values leave one image of the gallery."""
    for entries in captions.values():
        for entry in entries:
            a, b = attributes[entry["reference"]], attributes[entry["target_hard"]]
            text = entry["caption"].lower()
            changed = difference(attributes, entry["reference"], entry["target_hard"])
            if "concept" in changed:
                known = phrases.CONCEPTS[b["concept"]].words[b["gender"]]
                assert any(word.lower() in text for word in known), entry
            if "value" in changed:
                assert b["value"].lower() in text, entry
            if "hair" in changed:
                assert any(word in text for word in (*phrases.HAIR_WORDS[b["hair"]], "no beard")), entry
            if "gender" in changed:
                table = phrases.CHILD_WORDS if b["concept"] == "child" else phrases.GENDER_WORDS
                assert any(re.search(rf"\b{word}\b", text) for word in table[b["gender"]]), entry
            if "tone" in changed:
                check_tone(text, a["tone"], b["tone"], entry)


def check_tone(text, before, after, entry):
    relative = re.search(r"\b(a|one|two|three|four) shades? (darker|lighter)", text)
    if relative:
        steps = NUMBERS[relative[1]] * (1 if relative[2] == "darker" else -1)
        assert FIVE_TONES.index(after) - FIVE_TONES.index(before) == steps, entry
    elif after == "default":
        assert re.search(r"yellow|no particular skin tone|without any particular skin tone", text), entry
    else:
        named = re.findall(r"(?<![\w-])(?:medium-light|medium-dark|light|medium|dark)(?![\w-])", text)
        assert named == [after], entry


def test_a_reference_and_a_caption_have_one_target(captions):
    for entries in captions.values():
        targets = {}
        for entry in entries:
            key = entry["reference"], entry["caption"].lower().rstrip(string.punctuation)
            assert targets.setdefault(key, entry["target_hard"]) == entry["target_hard"]


def test_no_word_belongs_to_two_concepts(phrases):
    owners = {}
    for concept in phrases.CONCEPTS.values():
        for words in {word for group in concept.words.values() for word in group}:
            assert owners.setdefault(words.lower(), concept.id) == concept.id


def test_held_out_frames_are_new_and_used(captions, phrases):
    def pattern(frame):
        return re.compile(re.sub(r"\\\{\w+\\\}", ".+", re.escape(frame)) + r"\.?", re.IGNORECASE)

    frames = [pattern(frame) for group in phrases.HELD_OUT.values() for frame in group]
    assert not [e for e in captions["train"] if any(frame.fullmatch(e["caption"]) for frame in frames)]
    for split in ("val", "val_unseen"):
        share = sum(any(frame.fullmatch(e["caption"]) for frame in frames) for e in captions[split])
        assert 0.4 < share / len(captions[split]) < 0.6


def test_validation_words_were_read_in_training(captions):
    known = set().union(*(words_of(entry["caption"]) for entry in captions["train"]))
    for split in ("val", "val_unseen"):
        new = set().union(*(words_of(entry["caption"]) for entry in captions[split])) - known
        assert new <= NEW_FRAME_WORDS
