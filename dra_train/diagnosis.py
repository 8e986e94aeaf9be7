"""Read a training log and say in words what goes wrong, with what to try.

`diagnose` takes the entries of log.jsonl as far as they go, one an epoch, and returns a sentence for each sign of
trouble that the last entry shows. A field that is missing or null is not judged. The thresholds stand at the top,
each with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Entries = Sequence[Mapping[str, Any]]

#: A mean loss over a whole epoch varies by a few percent, over a handful of batches by a fifth. A rise by a quarter
#: (and by a tenth of a nat, a tenth of the right answer's probability) in two epochs running is no such variation,
#: nor is a loss that doubles (and costs the right answer two thirds of its probability) in one.
#: Where losses have gone up and down before, three times what they rose then is asked for.
RISE, RISE_NATS, RISE_NOISE = 1.25, 0.1, 3.0
LEAP, LEAP_NATS = 2.0, 1.0
EXPLOSION = 10.0  #: gradients that grow by an order of magnitude from one epoch to the next
CLIP = 1.0  #: gradients below the norm that training clips at change no step
HIGHEST_SCALE, LOWEST_SCALE = 99.0, 1.5  #: training bounds the factor on cosines by 100; near 1 all answers are alike
FEW = 2.0  #: effective rank at which a cosine says little more than the sign of one direction
SHRUNK, NARROW = 0.25, 10.0  #: a fall to a quarter is more than learning does, but 10 dimensions may be enough
STUCK = 0.97  #: of an even guess and of the epochs before: nothing was learnt, and nothing is being learnt
VANISHING = 0.01  #: share of the implicit loss below which one step in a hundred would notice it
CANDIDATES = 100  #: among fewer, a low loss is no sign of anything
READ_OFF, NOT_LEARNT = 0.25, 4.0  #: the compensated view answers (probability > 0.78); the plain view's loss is 4 times
FALLEN, SINCE = 2.0, 2  #: points of recall below the best, for so many epochs: beyond the noise of a thousand queries
STEEP, SLOPE_EPOCHS = (
    0.8,
    3,
)  #: a fall by a fifth in the last epoch; the first epoch holds the warm-up and tells no slope
GAIN = 1.0  #: points of recall won in the last epoch


def effective_rank(features: Tensor) -> float:
    """Return over how many directions features (N, D) spread: 1 when all point one way, at most min(N, D).

    exp of the entropy of the singular values, normalised to sum 1 (Roy & Vetterli, "The effective rank", EUSIPCO
    2007). Rows are brought to unit length first, because only cosines are compared. They are not centred: the
    differences between features that have collapsed onto one point are rounding errors, which have full rank. Returns
    0 without any feature above zero, and NaN where a feature isn't finite.
    """
    if not features.isfinite().all():
        return math.nan
    values = torch.linalg.svdvals(F.normalize(features.detach().double(), dim=-1))
    if not values.sum() > 0:
        return 0.0
    share = values / values.sum()
    return math.exp(torch.special.entr(share).sum().item())


def diagnose(entries: Entries) -> list[str]:
    """Return what the last entry of a log shows to be wrong, and what to try; an empty list where nothing is.

    ``entries`` are the log's lines from the first to the last. Only those of the last one's stage are compared.
    """
    if not entries:
        return []
    name = entries[-1].get("stage")
    stage = [entry for entry in entries if entry.get("stage") == name]
    checks = (
        _not_finite,
        _diverging,
        _guessing,
        _exploding,
        _temperature,
        _collapsed,
        _relation_alone,
        _read_off,
        _over,
        _under,
    )
    key = str(name or "stage 2").replace(" ", "")  # "stage 2" is [stage2] in the settings
    when = f"{name or 'training'}, epoch {entries[-1].get('epoch', len(stage))}"
    return [f"{when}: {sentence}" for check in checks for sentence in check(stage, key)]


def _not_finite(stage: Entries, key: str) -> list[str]:
    wrong = [f"losses.{part}" for part in _losses(stage[-1]) if not math.isfinite(_losses(stage[-1])[part])]
    wrong += [field for field in ("grad_norm.mean", "grad_norm.max") if _odd(_value(stage[-1], *field.split(".")))]
    if not wrong:
        return []
    return [
        f"{', '.join(wrong)} isn't finite: the run has diverged and its weights are of no use; start again with "
        f"a lower {key}.learning_rate (try {_tenth(stage)})"
    ]


def _diverging(stage: Entries, key: str) -> list[str]:
    totals = [t for entry in stage if (t := _total(entry)) is not None]
    if len(totals) < 2 or _total(stage[-1]) is None:
        return []
    last = totals[-1]
    noise = [after - before for before, after in pairwise(totals[:-2]) if after > before]
    nats = max(RISE_NATS, RISE_NOISE * median(noise) if noise else 0.0)

    def above(earlier: list[float], factor: float, nats: float, risen: float) -> bool:
        return bool(earlier) and risen > factor * min(earlier) and risen > min(earlier) + nats

    if not above(totals[:-1], LEAP, LEAP_NATS, last) and not above(totals[:-2], RISE, nats, min(totals[-2:])):
        return []
    return [
        f"the loss rose from {_short(min(totals))} to {_short(last)}: the run diverges; lower {key}.learning_rate (try "
        f"{_tenth(stage)}), with more epochs for a longer warm-up"
    ]


def _guessing(stage: Entries, key: str) -> list[str]:
    """Find an explicit loss that stays at that of an even guess: where too large steps lead, or too small ones stay."""
    pairs = [(_losses(entry).get("explicit"), _value(entry, "chance", "explicit")) for entry in stage[-2:]]
    if len(pairs) < 2 or not all(loss and guess and STUCK < loss / guess < 1 / STUCK for loss, guess in pairs):
        return []
    return [
        f"the explicit loss is {_short(pairs[-1][0])}, that of an even guess {_short(pairs[-1][1])}: the model tells "
        f"no candidates apart; lower {key}.learning_rate (try {_tenth(stage)}), or raise it if the run began like this"
    ]


def _exploding(stage: Entries, key: str) -> list[str]:
    last = _value(stage[-1], "grad_norm", "mean")
    earlier = [n for entry in stage[:-1] if (n := _value(entry, "grad_norm", "mean")) is not None and math.isfinite(n)]
    if last is None or not earlier or last <= CLIP or not EXPLOSION * median(earlier) < last < math.inf:
        return []
    return [
        f"the gradient's norm is {_short(last)}, in earlier epochs {_short(median(earlier))}: it explodes; "
        f"lower {key}.learning_rate (try {_tenth(stage)})"
    ]


def _temperature(stage: Entries, key: str) -> list[str]:
    found = []
    for field, loss in (("logit_scale", "explicit"), ("implicit_logit_scale", "implicit")):
        scales = [s for entry in stage if (s := _value(entry, field)) is not None]
        if not scales or _value(stage[-1], field) is None:
            continue
        if scales[-1] >= HIGHEST_SCALE > scales[0]:  # one that starts there was set there, as CLIP's is
            found.append(
                f"{field} has risen from {_short(scales[0])} to its bound, {_short(scales[-1])}: the {loss} "
                f"loss now falls by sharper answers alone, not by better features; lower {key}.learning_rate, or "
                f"regularise with model.dropout or loss.feature_noise"
            )
        elif scales[-1] <= LOWEST_SCALE:
            found.append(
                f"{field} is down to {_short(scales[-1])} (CLIP's starts at 14): all answers are "
                f"equally likely to the {loss} loss; lower {key}.learning_rate (try {_tenth(stage)})"
            )
    return found


def _collapsed(stage: Entries, key: str) -> list[str]:
    found = []
    for name in ("query", "relation", "image", "text"):
        ranks = [r for entry in stage if (r := _value(entry, "effective_rank", name)) is not None and math.isfinite(r)]
        now = _value(stage[-1], "effective_rank", name)
        if now is None or not math.isfinite(now) or len(ranks) < 2:
            continue
        lately = max(ranks[-2:])  # one batch an epoch is looked at, and one may happen to hold few texts
        shrunk = lately < SHRUNK * max(ranks) and lately < NARROW
        if lately < FEW or shrunk:
            before = f", down from {_short(max(ranks))}" if shrunk else ""
            cure = "raise loss.implicit_weight, or " if name == "relation" else ""
            found.append(
                f"the {name} features spread over {_short(now)} dimensions (effective rank){before}: they "
                f"collapse; {cure}lower {key}.learning_rate (try {_tenth(stage)})"
            )
    return found


def _relation_alone(stage: Entries, key: str) -> list[str]:
    losses = [v for entry in stage if (v := _losses(entry).get("implicit")) is not None and math.isfinite(v)]
    last = _losses(stage[-1]).get("implicit")
    if last is None or not math.isfinite(last):
        return []
    found = []
    guess = _value(stage[-1], "chance", "implicit")
    # Without an even guess to compare with, only a loss that never fell says it.
    never_fell = len(losses) > 1 and last > STUCK * (losses[0] if guess is None else min(losses[:-1]))
    if never_fell and (guess is None or last > STUCK * guess):
        than = f"at first it was {_short(losses[0])}" if guess is None else f"that of an even guess is {_short(guess)}"
        found.append(
            f"the implicit loss is {_short(last)}, {than}: TAC learns nothing, training collapses onto the explicit "
            f"relation; raise loss.implicit_weight, or change {key}.learning_rate"
        )
    share, earlier = _value(stage[-1], "implicit_share"), _value(stage[0], "implicit_share")
    # A share that was larger once has vanished because TAC has learnt its texts: no fault.
    if not found and share is not None and share < VANISHING and (earlier is None or earlier < VANISHING):
        found.append(
            f"the implicit loss is {100 * share:.2g} % of the whole: training learns the explicit relation alone; "
            "raise loss.implicit_weight"
        )
    return found


def _read_off(stage: Entries, key: str) -> list[str]:
    compensated = _value(stage[-1], "views", "compensated")
    plain = _value(stage[-1], "views", "plain")
    if compensated is None or compensated > READ_OFF:
        return []
    why = "the model reads the answer off F_v, which has seen the target and isn't there at test time"
    if plain is not None:
        if plain < NOT_LEARNT * max(compensated, READ_OFF):
            return []
        seen = f"the loss is {_short(compensated)} with the relation and {_short(plain)} without it"
        return [f"{seen}: {why}; train the plain view alone (--set loss.views=plain)"]
    recall, guess = _value(stage[-1], "train", "R@1"), _value(stage[-1], "chance", "explicit")
    if recall is None or guess is None or guess < math.log(CANDIDATES) or recall > 50 * math.exp(-compensated):
        return []
    seen = f"the loss is {_short(compensated)} with the relation, but without it train R@1 is {_short(recall)}"
    return [f"{seen}: {why}; train both views (--set loss.views=both)"]


def _over(stage: Entries, key: str) -> list[str]:
    metric = next((m for m in _mapping(stage[-1], "val")), None)
    if metric is None:
        return []
    scores = [(i, v) for i, entry in enumerate(stage) if (v := _value(entry, "val", metric)) is not None]
    if not scores or scores[-1][0] != len(stage) - 1:
        return []
    best, highest = max(scores, key=lambda pair: pair[1])
    since = [v for i, v in scores if i > best]
    if len(since) < SINCE or max(since[-SINCE:]) > highest - FALLEN:
        return []
    then, now = _value(stage[best], "train", metric), _value(stage[-1], "train", metric)
    if then is not None and now is not None:
        rose, seen = now > then, f"train {metric} rose from {_short(then)} to {_short(now)}"
    else:
        before, after = _total(stage[best]), _total(stage[-1])
        if before is None or after is None:
            return []
        rose, seen = after < before, f"the training loss fell from {_short(before)} to {_short(after)}"
    if not rose:
        return []
    return [
        f"validation {metric} fell from {_short(highest)} in epoch {best + 1} to {_short(since[-1])} while "
        f"{seen}: over-fitting; stop earlier (--set {key}.epochs={best + 1}), or raise model.dropout or "
        "loss.feature_noise"
    ]


def _under(stage: Entries, key: str) -> list[str]:
    epoch, epochs = _value(stage[-1], "epoch"), _value(stage[-1], "epochs")
    if epoch is None or epochs is None or epoch < epochs or len(stage) < SLOPE_EPOCHS:
        return []
    before, last = _total(stage[-2]), _total(stage[-1])
    if before is None or last is None or last > STEEP * before:
        return []
    gained = ""
    if metric := next((m for m in _mapping(stage[-1], "val")), None):
        scores = [v for entry in stage if (v := _value(entry, "val", metric)) is not None]
        if len(scores) > 1:
            if scores[-1] < max(scores[:-1]) + GAIN:
                return []  # the loss falls, but what it buys has stopped
            gained = f", and validation {metric} rose from {_short(max(scores[:-1]))} to {_short(scores[-1])}"
    return [
        f"in the last epoch the loss still fell from {_short(before)} to {_short(last)}{gained}: "
        f"under-trained; raise {key}.epochs (try {round(2 * epochs)})"
    ]


def _mapping(entry: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    value = entry.get(field)
    return value if isinstance(value, Mapping) else {}


def _value(entry: Mapping[str, Any], *path: str) -> float | None:
    """Return a number of an entry by its path; None where it is missing, null or no number."""
    value: Any = entry
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _losses(entry: Mapping[str, Any]) -> dict[str, float]:
    return {part: v for part in _mapping(entry, "losses") if (v := _value(entry, "losses", part)) is not None}


def _total(entry: Mapping[str, Any]) -> float | None:
    """Return the sum of an entry's losses; None without any, or where one isn't finite."""
    total = sum(_losses(entry).values())
    return total if _losses(entry) and math.isfinite(total) else None


def _tenth(stage: Entries) -> str:
    """Return a tenth of the stage's highest learning rate, to be tried; the last one has mostly decayed."""
    rates = [r for entry in stage if (r := _value(entry, "learning_rate")) is not None and math.isfinite(r)]
    return f"{max(rates) / 10:.1g}" if rates and max(rates) > 0 else "a tenth of it"


def _odd(value: float | None) -> bool:
    return value is not None and not math.isfinite(value)


def _short(value: float | None) -> str:
    return "?" if value is None else f"{value:.3g}"
