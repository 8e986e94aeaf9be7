"""The sentences of `emoji-cir`: how an edit is said, in training and, with other frames, in validation only.

A frame is a sentence with slots. `TRAIN` frames occur in every split, `HELD_OUT` frames in `val` and `val_unseen`
alone: their attribute words are known from training, their wording is not. Pronouns follow the reference image:
him, her, or them for people of no particular gender and whenever the gender itself changes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from emoji_cir_concepts import CONCEPTS, TONES


@dataclass(frozen=True)
class Image:
    """One image: `concept` is a people concept's id or a thing's family, `value` a thing's noun or colour."""

    name: str
    concept: str
    kind: str
    gender: str = ""
    tone: str = ""
    hair: str = ""
    value: str = ""


FIVE = TONES[1:]
NUMBER = {1: "one", 2: "two", 3: "three", 4: "four"}
HAIR_WORDS = {
    "none": ("plain hair", "ordinary hair", "the default hair"),
    "red": ("red hair", "ginger hair"),
    "curly": ("curly hair", "curls"),
    "white": ("white hair", "snow-white hair"),
    "bald": ("a bald head", "no hair at all"),
    "blond": ("blond hair", "fair hair"),
    "beard": ("a beard", "a full beard"),
}
GENDER_WORDS = {
    "person": ("a gender-neutral person", "a person of no particular gender", "someone gender-neutral"),
    "man": ("a man",),
    "woman": ("a woman",),
}
CHILD_WORDS = {
    "person": ("a gender-neutral child", "a child of no particular gender"),
    "man": ("a boy",),
    "woman": ("a girl",),
}
OBJECT_PRONOUN = {"man": "him", "woman": "her"}
POSSESSIVE = {"man": "his", "woman": "her"}

TRAIN: dict[str, tuple[str, ...]] = {
    "tone": (
        "with {tone} skin",
        "with a {tone} skin tone",
        "change the skin tone to {tone}",
        "make the skin tone {tone}",
        "{tone} skin instead",
        "the same, but with {tone} skin",
        "the same with a {tone} skin tone",
        "switch to a {tone} skin tone",
        "has {tone} skin now",
        "only the skin tone changes, to {tone}",
        "same picture, {tone} skin tone",
        "a version with {tone} skin",
        "use the {tone} skin tone",
    ),
    "tone.single": (
        "the same person with {tone} skin",
        "give {obj} a {tone} skin tone",
        "show {obj} with {tone} skin",
        "{poss} skin is {tone} now",
    ),
    "tone.hand": ("the same gesture with {tone} skin", "same pose of the hand, {tone} skin"),
    "default": (
        "with the default yellow skin",
        "in the default yellow",
        "with no particular skin tone",
        "without any particular skin tone",
        "make the skin plain yellow",
        "back to the default yellow",
        "the same, but in plain yellow",
        "yellow skin instead",
        "in the standard emoji yellow",
        "with the usual yellow skin",
        "drop the skin tone and use yellow",
        "the plain yellow version",
    ),
    "relative": (
        "{n} {shades} {way}",
        "the same, but {n} {shades} {way}",
        "make the skin {n} {shades} {way}",
        "skin {n} {shades} {way}",
        "with skin that is {n} {shades} {way}",
        "change the skin to {n} {shades} {way}",
        "{n} {shades} {way} than this",
        "same picture, {n} {shades} {way}",
    ),
    "gender": (
        "as {gender}",
        "change to {gender}",
        "the same, but {gender}",
        "{gender} instead",
        "now {gender}",
        "show {gender} here instead",
        "{gender} rather than {was}",
        "not {was} but {gender}",
        "I'd like {gender} instead of {was}",
        "the same picture with {gender}",
        "replace {was} with {gender}",
        "{gender} this time",
        "should be {gender}",
    ),
    "gender.single": ("make them {gender}", "turn them into {gender}", "swap {obj} for {gender}"),
    "hair": (
        "with {hair}",
        "give {obj} {hair}",
        "the same person with {hair}",
        "now with {hair}",
        "same face, but {hair}",
        "{hair} this time",
        "the same, but with {hair}",
        "{hair} instead",
        "show {obj} with {hair}",
        "let {obj} have {hair}",
        "has {hair} now",
        "change the hairstyle: {hair}",
        "should have {hair}",
    ),
    "noun": (
        "as {noun}",
        "make {obj} {noun}",
        "now {noun}",
        "{noun} instead",
        "turn {obj} into {noun}",
        "{noun} instead of {was}",
        "the same person as {noun}",
        "the same, but as {noun}",
        "show {obj} as {noun}",
        "same gender and skin tone, but {noun}",
        "this person is {noun} now",
        "from {was} to {noun}",
        "change {obj} into {noun}",
        "should be {noun}",
    ),
    "verb": (
        "now {verb}",
        "{verb} instead",
        "the same person {verb}",
        "show {obj} {verb}",
        "the same, but {verb}",
        "{verb} this time",
        "same gender and skin tone, but {verb}",
        "I want to see {obj} {verb}",
        "find {obj} {verb}",
        "this person {verb}",
        "{verb}",
        "should be {verb}",
    ),
    "hand": (
        "change it to {noun}",
        "{noun} instead",
        "the same skin tone, but {noun}",
        "{noun} rather than {was}",
        "switch to {noun}",
        "turn it into {noun}",
        "now {noun}",
        "make it {noun}",
        "show {noun} instead",
        "from {was} to {noun}",
        "with the same skin tone, {noun}",
        "{noun}",
        "not {was} but {noun}",
    ),
    "thing": (
        "change it to {noun}",
        "{noun} instead",
        "{noun} rather than {was}",
        "switch to {noun}",
        "turn it into {noun}",
        "now {noun}",
        "make it {noun}",
        "show {noun} instead",
        "from {was} to {noun}",
        "not {was} but {noun}",
        "replace {was} with {noun}",
        "{noun} in place of {was}",
    ),
    "colour": (
        "in {colour}",
        "a {colour} one instead",
        "make it {colour}",
        "the same in {colour}",
        "change the color to {colour}",
        "{colour} instead of {was}",
        "the {colour} version",
        "same shape, but {colour}",
        "{colour} rather than {was}",
        "recolor it {colour}",
        "should be {colour}",
    ),
    "two": (
        "{do1} and {do2}",
        "{do1}, and {do2}",
        "{do1}, then {do2}",
        "the same, but {is1} and {is2}",
        "{is1} and {is2}",
        "{is1}, {is2}",
        "now {is1} and {is2}",
        "first {do1}, then {do2}",
        "{do1}, {is2}",
        "this time {is1}, {is2}",
        "change two things: {is1} and {is2}",
    ),
    # two attributes that one noun phrase can carry: "a woman with dark skin", "a cook with red hair"
    "merged": (
        "{both}",
        "{both} instead",
        "now {both}",
        "the same, but {both}",
        "change to {both}",
        "show {both} instead",
        "I'd like {both}",
        "should be {both}",
        "this time {both}",
        "the same picture with {both}",
    ),
}

HELD_OUT: dict[str, tuple[str, ...]] = {
    "tone": (
        "keep everything except the skin, which turns {tone}",
        "one like this whose skin tone is {tone}",
        "could I have this in a {tone} skin tone?",
        "swap the skin tone for {tone}",
    ),
    "default": (
        "keep everything but return to the emoji yellow",
        "one like this in the default yellow, please",
        "could I have the plain yellow one?",
    ),
    "relative": ("take it {n} {shades} {way}", "could the skin be {n} {shades} {way}?"),
    "gender": (
        "could it be {gender}?",
        "everything alike, except that it shows {gender}",
        "one like this with {gender}",
        "keep the rest and show {gender}",
    ),
    "hair": ("picture {obj} with {hair}", "what about {hair}?", "everything alike except for {hair}"),
    "noun": ("how about {noun}?", "imagine {obj} as {noun}", "one who looks the same but is {noun}"),
    "verb": ("picture {obj} {verb}", "imagine {obj} {verb}", "the very same one, only {verb}"),
    "hand": ("how about {noun}?", "I would rather see {noun}", "keep the skin tone and use {noun}"),
    "two": ("please {do1} and also {do2}", "two edits: {is1}, {is2}", "here is what changes: {is1}, {is2}"),
    "merged": ("how about {both}?", "I am looking for {both}", "one like this, only {both}"),
}


def article(words: str) -> str:
    """Return `words` with a or an before it; names ("Santa Claus") keep none."""
    if words.split()[-1] in ("Claus", "Christmas"):
        return words
    return ("an " if words[0].lower() in "aeiou" else "a ") + words


def concept_words(image: Image, rng: random.Random, gender: str | None = None) -> str:
    """Return one wording of the image's concept: a noun phrase with its article, or a verb phrase."""
    words = rng.choice(CONCEPTS[image.concept].words[gender or image.gender])
    return article(words) if image.kind in ("role", "age") else words


def gender_words(image: Image, rng: random.Random) -> str:
    """Return "a woman", "a boy": the image's gender as a noun phrase."""
    table = CHILD_WORDS if image.concept == "child" else GENDER_WORDS
    return rng.choice(table[image.gender])


def tone_words(tone: str, rng: random.Random) -> str:
    """Return the adjunct that names a skin tone: "with dark skin"."""
    if tone == "default":
        return rng.choice(("with the default yellow skin", "with plain yellow skin", "with no particular skin tone"))
    return rng.choice((f"with {tone} skin", f"with a {tone} skin tone"))


def changed(a: Image, b: Image) -> tuple[str, ...]:
    """Return the attributes in which two people images differ, the concept first."""
    return tuple(key for key in ("concept", "gender", "hair", "tone") if getattr(a, key) != getattr(b, key))


def frame_group(kind: str) -> str:
    """Return the group of frames for a changed concept of this kind."""
    return {"role": "noun", "age": "noun", "hand": "hand"}.get(kind, "verb")


def _single(key: str, a: Image, b: Image, rng: random.Random) -> tuple[str, dict[str, str]]:
    """Return the group of frames and the slots for an edit of one attribute."""
    slots = {"obj": OBJECT_PRONOUN.get(a.gender, "them"), "poss": POSSESSIVE.get(a.gender, "their")}
    if key == "tone":
        if b.tone == "default":
            return "default", slots
        if a.tone != "default" and rng.random() < 0.25:
            steps = FIVE.index(b.tone) - FIVE.index(a.tone)
            way = "darker" if steps > 0 else "lighter"
            n = abs(steps)
            one = "one" if n > 1 or rng.random() < 0.6 else "a"
            number = NUMBER[n] if n > 1 else one
            return "relative", slots | {"n": number, "shades": "shade" if n == 1 else "shades", "way": way}
        return "tone", slots | {"tone": b.tone}
    if key == "gender":
        return "gender", slots | {"gender": gender_words(b, rng), "was": gender_words(a, rng)}
    if key == "hair":
        words = HAIR_WORDS[b.hair] + (("no beard",) if a.hair == "beard" and b.hair == "none" else ())
        return "hair", slots | {"hair": rng.choice(words)}
    group = frame_group(b.kind)
    words = concept_words(b, rng)
    was = concept_words(a, rng)
    return group, slots | ({"verb": words} if group == "verb" else {"noun": words}) | {"was": was}


def _clause(key: str, a: Image, b: Image, rng: random.Random, obj: str) -> tuple[str, str]:
    """Return (imperative, adjunct) that say one of two changes: ("give them red hair", "with red hair")."""
    if key == "tone":
        words = tone_words(b.tone, rng)
        plain = ("make the skin plain yellow", "go back to the default yellow")
        named = (f"change the skin tone to {b.tone}", f"make the skin {b.tone}", f"use {b.tone} skin")
        return rng.choice(plain if b.tone == "default" else named), words
    if key == "gender":
        words = gender_words(b, rng)
        return rng.choice(
            (f"make {obj} {words}", f"change {obj} to {words}", f"turn {obj} into {words}")
        ), f"as {words}"
    if key == "hair":
        words = rng.choice(HAIR_WORDS[b.hair])
        return f"give {obj} {words}", f"with {words}"
    words = concept_words(b, rng)
    if b.kind == "hand":
        return rng.choice((f"change it to {words}", f"switch to {words}")), words
    if frame_group(b.kind) == "noun":
        return rng.choice((f"make {obj} {words}", f"turn {obj} into {words}")), f"as {words}"
    return f"show {obj} {words}", words


def _merged(keys: tuple[str, ...], b: Image, rng: random.Random) -> str | None:
    """Return one noun phrase that carries both changes, or None where English has no good one."""
    if keys == ("gender", "tone"):
        return f"{gender_words(b, rng)} {tone_words(b.tone, rng)}"
    if keys == ("gender", "hair"):
        return f"{gender_words(b, rng)} with {rng.choice(HAIR_WORDS[b.hair])}"
    if keys == ("concept", "gender"):
        words = concept_words(b, rng)
        who = gender_words(b, rng)
        return f"{who} as {words}" if frame_group(b.kind) == "noun" else f"{who} {words}"
    if keys == ("concept", "tone") and frame_group(b.kind) != "verb":
        return f"{concept_words(b, rng)} {tone_words(b.tone, rng)}"
    return None


def _style(text: str, rng: random.Random) -> str:
    """Vary case and final punctuation lightly."""
    roll = rng.random()
    if text.endswith("?"):
        return text[0].upper() + text[1:] if roll < 0.5 else text
    if roll < 0.25:
        return text[0].upper() + text[1:] + "."
    return text[0].upper() + text[1:] if roll < 0.5 else text


def _frames(group: str, a: Image, held_out: bool) -> tuple[str, ...]:
    if held_out:
        return HELD_OUT[group]
    domain = "hand" if a.kind == "hand" else "single"
    return TRAIN[group] + TRAIN.get(f"{group}.{domain}", ())


def caption(a: Image, b: Image, rng: random.Random, *, held_out: bool = False) -> str:
    """Return a sentence that leads from image `a` to image `b`; `held_out` picks a frame never used in training."""
    if a.kind == "thing":
        return _style(rng.choice(TRAIN["thing"]).format(noun=b.value, was=a.value), rng)
    if a.kind == "colour":
        return _style(rng.choice(TRAIN["colour"]).format(colour=b.value, was=a.value), rng)
    keys = changed(a, b)
    if len(keys) == 1:
        group, slots = _single(keys[0], a, b, rng)
        return _style(rng.choice(_frames(group, a, held_out)).format(**slots), rng)
    merged = _merged(keys, b, rng)
    if merged is not None and rng.random() < 0.5:
        return _style(rng.choice(_frames("merged", a, held_out)).format(both=merged), rng)
    obj = "them" if "gender" in keys else OBJECT_PRONOUN.get(a.gender, "them")
    parts = [_clause(key, a, b, rng, obj) for key in keys]
    if "concept" not in keys and rng.random() < 0.5:
        parts.reverse()
    (do1, is1), (do2, is2) = parts
    frame = rng.choice(_frames("two", a, held_out))
    return _style(frame.format(do1=do1, is1=is1, do2=do2, is2=is2), rng)
