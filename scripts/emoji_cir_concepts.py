"""The people of `emoji-cir`: every concept with its kind, its emojibase labels and the words that captions use.

A concept is what stays when gender, hair and skin tone change: "cook", "surfing", "thumbs up". Its kind says
which sentences it fits into:

- `role`      noun phrases ("a cook"), also fantasy beings
- `activity`  what somebody does ("surfing"); follows "now", "show them"
- `object`    what somebody has, wears or sits in ("with a white cane"); same grammar as an activity
- `pose`      what somebody does with face, head or arms ("shrugging"); same grammar as an activity
- `age`       baby, child, adult, older adult; noun phrases
- `hand`      hands and parts of the body without a person ("a thumbs up")

The words were chosen so that no two concepts answer to the same word. Left out although the package has them are
pictures that Microsoft withheld from its free release (technologist, couples), and those that hardly show any skin.
"""

from __future__ import annotations

from dataclasses import dataclass

GENDERS = ("person", "man", "woman")
TONES = ("default", "light", "medium-light", "medium", "medium-dark", "dark")
HAIRS = ("none", "red", "curly", "white", "bald", "blond", "beard")


@dataclass(frozen=True)
class Concept:
    """One concept: `labels`, `words` and `names` are keyed by gender; `words` are the caption's synonyms."""

    id: str
    kind: str
    labels: dict[str, str]
    words: dict[str, tuple[str, ...]]
    names: dict[str, str]


# id | kind | labels | words.   Labels: `* x` = x, man x, woman x; `@ x` = person x, man x, woman x;
# else gender=label, separated by commas. Words: synonyms separated by `;`, or gender=synonyms separated by `/`.
TABLE = """
health-worker | role | * health worker | health worker; doctor
student | role | * student | graduate; graduating student
teacher | role | * teacher | teacher; schoolteacher
judge | role | * judge | judge; judge with a gavel
farmer | role | * farmer | farmer; farmer with a pitchfork
cook | role | * cook | cook; chef
mechanic | role | * mechanic | mechanic; mechanic with a wrench
factory-worker | role | * factory worker | factory worker; welder
office-worker | role | * office worker | office worker; office clerk
scientist | role | * scientist | scientist; chemist
singer | role | * singer | singer; rock singer
artist | role | * artist | artist; painter
pilot | role | * pilot | pilot; airline pilot
astronaut | role | * astronaut | astronaut; astronaut in a space suit
firefighter | role | * firefighter | firefighter; firefighter in a red helmet
police-officer | role | * police officer | police officer; member of the police
detective | role | * detective | detective; private investigator
guard | role | * guard | royal guard; guard in a bearskin hat
ninja | role | person=ninja | ninja; masked ninja
construction-worker | role | * construction worker | construction worker; builder in a hard hat
royal | role | person=person with crown,man=prince,woman=princess | person=royal with a crown/crowned royal,man=prince/prince with a crown,woman=princess/princess with a crown
baby-angel | role | person=baby angel | baby angel; cherub
claus | role | person=Mx Claus,man=Santa Claus,woman=Mrs. Claus | person=Mx Claus,man=Santa Claus/Father Christmas,woman=Mrs. Claus/Mother Christmas
superhero | role | * superhero | superhero; comic-book hero
supervillain | role | * supervillain | supervillain; masked villain
mage | role | * mage | mage; wizard
fairy | role | * fairy | fairy; fairy with wings
vampire | role | * vampire | vampire; vampire with fangs
mer | role | person=merperson,man=merman,woman=mermaid | person=merperson,man=merman,woman=mermaid
elf | role | * elf | elf; elf with pointed ears
genie | role | * genie | genie; blue genie
zombie | role | * zombie | zombie; undead creature
frowning | pose | @ frowning | frowning; with a frown
pouting | pose | @ pouting | pouting; with arms folded and a pout
saying-no | pose | @ gesturing NO | crossing both arms to say no; gesturing no with crossed arms
saying-ok | pose | @ gesturing OK | making a big OK sign with both arms; gesturing OK with arms over the head
tipping-hand | pose | @ tipping hand | tipping one hand; holding one palm up at the shoulder
raising-hand | pose | @ raising hand | raising a hand; with one hand up
deaf | pose | person=deaf person,man=deaf woman,woman=deaf man | signing deaf; making the sign for deaf
bowing | pose | @ bowing | bowing; bowing deeply
facepalming | pose | @ facepalming | facepalming; with a palm over the face
shrugging | pose | @ shrugging | shrugging; giving a shrug
turban | object | @ wearing turban | wearing a turban; in a white turban
skullcap | object | person=person with skullcap | wearing a skullcap; in a skullcap
headscarf | object | woman=woman with headscarf | wearing a headscarf; in a headscarf
tuxedo | object | @ in tuxedo | in a tuxedo; wearing a tuxedo
veil | object | @ with veil | wearing a wedding veil; in a veil with a bouquet
pregnant | object | person=pregnant person,man=pregnant man,woman=pregnant woman | pregnant; expecting a baby
white-cane | object | @ with white cane | with a white cane; walking with a white cane
motorized-wheelchair | object | @ in motorized wheelchair | in a motorized wheelchair; using a power wheelchair
manual-wheelchair | object | @ in manual wheelchair | in a manual wheelchair; using a hand-driven wheelchair
steamy-room | object | @ in steamy room | in a steam room; sitting in the sauna
in-bed | object | person=person in bed | in bed; lying in bed
taking-bath | object | person=person taking bath | in the bathtub; taking a bath
breast-feeding | activity | woman=breast-feeding | breast-feeding; breast-feeding a baby
feeding-baby | activity | @ feeding baby | bottle-feeding a baby; giving a baby the bottle
massage | activity | @ getting massage | getting a massage; having a head massage
haircut | activity | @ getting haircut | getting a haircut; having a haircut
walking | activity | @ walking | walking; taking a walk
standing | activity | @ standing | standing; standing still
kneeling | activity | @ kneeling | kneeling; down on one knee
running | activity | @ running | running; out for a run
dancing | activity | man=man dancing,woman=woman dancing | dancing; dancing away
climbing | activity | @ climbing | rock climbing; climbing a rock wall
golfing | activity | @ golfing | golfing; playing golf
surfing | activity | @ surfing | surfing; riding a wave on a surfboard
rowing | activity | @ rowing boat | rowing a boat; out rowing in a boat
swimming | activity | @ swimming | swimming; out for a swim
bouncing-ball | activity | @ bouncing ball | bouncing a ball; dribbling a basketball
lifting-weights | activity | @ lifting weights | lifting weights; lifting a barbell
biking | activity | @ biking | cycling on the road; riding a road bike
mountain-biking | activity | @ mountain biking | mountain biking; riding a mountain bike
cartwheeling | activity | @ cartwheeling | cartwheeling; doing a cartwheel
water-polo | activity | @ playing water polo | playing water polo; throwing a ball in the pool
handball | activity | @ playing handball | playing handball; throwing a handball
juggling | activity | @ juggling | juggling; juggling balls
lotus | activity | @ in lotus position | sitting in the lotus position; meditating cross-legged
baby | age | person=baby | baby; little baby
child | age | person=child,man=boy,woman=girl | person=child/young child,man=boy/young boy,woman=girl/young girl
adult | age | person=person,man=man,woman=woman | person=adult/grown-up,man=grown man/grown-up man,woman=grown woman/grown-up woman
older | age | person=older person,man=old man,woman=old woman | person=older person/elderly person,man=older man/elderly man,woman=older woman/elderly woman
waving-hand | hand | person=waving hand | a waving hand; a wave hello
back-of-hand | hand | person=raised back of hand | the raised back of a hand; the back of a hand
splayed-hand | hand | person=hand with fingers splayed | a hand with the fingers spread; a hand with splayed fingers
raised-hand | hand | person=raised hand | a raised hand, fingers together; a stop sign with the hand
vulcan-salute | hand | person=vulcan salute | a vulcan salute; the live-long-and-prosper sign
rightwards-hand | hand | person=rightwards hand | a flat hand reaching to the right; a hand stretched out to the right
leftwards-hand | hand | person=leftwards hand | a flat hand reaching to the left; a hand stretched out to the left
palm-down | hand | person=palm down hand | a hand with the palm down; a palm facing down
palm-up | hand | person=palm up hand | a hand with the palm up; a palm facing up
pushing-left | hand | person=leftwards pushing hand | a hand in a sleeve pushing to the left; a push to the left
pushing-right | hand | person=rightwards pushing hand | a hand in a sleeve pushing to the right; a push to the right
ok-hand | hand | person=OK hand | an OK hand; an OK sign
pinched-fingers | hand | person=pinched fingers | pinched fingers pointing up; the Italian pinched-fingers gesture
pinching-hand | hand | person=pinching hand | a pinching hand; a small amount shown with two fingers
victory-hand | hand | person=victory hand | a victory sign; a peace sign
crossed-fingers | hand | person=crossed fingers | crossed fingers; fingers crossed for luck
finger-heart | hand | person=hand with index finger and thumb crossed | a finger heart; index finger and thumb crossed
love-you-gesture | hand | person=love-you gesture | the love-you sign; the I-love-you gesture
horns | hand | person=sign of the horns | the sign of the horns; the rock-on horns
call-me-hand | hand | person=call me hand | a call-me hand; a hang-loose sign
pointing-left | hand | person=backhand index pointing left | a finger pointing left; an index finger pointing to the left
pointing-right | hand | person=backhand index pointing right | a finger pointing right; an index finger pointing to the right
pointing-up-back | hand | person=backhand index pointing up | a finger pointing up, seen from behind; the back of a hand pointing up
pointing-down | hand | person=backhand index pointing down | a finger pointing down; an index finger pointing downwards
pointing-up-front | hand | person=index pointing up | a finger pointing up, seen from the front; a raised index finger from the front
pointing-at-viewer | hand | person=index pointing at the viewer | a finger pointing at the viewer; a finger pointing at you
thumbs-up | hand | person=thumbs up | a thumbs up; a thumb pointing up
thumbs-down | hand | person=thumbs down | a thumbs down; a thumb pointing down
raised-fist | hand | person=raised fist | a raised fist; a fist held up
oncoming-fist | hand | person=oncoming fist | a fist coming straight at you; a punch from the front
left-fist | hand | person=left-facing fist | a fist facing left; a fist bump to the left
right-fist | hand | person=right-facing fist | a fist facing right; a fist bump to the right
clapping-hands | hand | person=clapping hands | clapping hands; a round of applause
raising-hands | hand | person=raising hands | two raised hands celebrating; both hands up in celebration
heart-hands | hand | person=heart hands | two hands forming a heart; heart hands
open-hands | hand | person=open hands | two open hands; open hands
palms-together | hand | person=palms up together | two palms up together; cupped palms
folded-hands | hand | person=folded hands | folded hands; hands pressed together in prayer
writing-hand | hand | person=writing hand | a writing hand; a hand writing with a pencil
nail-polish | hand | person=nail polish | nails being polished; a hand with purple nail polish
selfie | hand | person=selfie | an arm taking a selfie; a hand holding up a phone
flexed-biceps | hand | person=flexed biceps | a flexed biceps; a flexed arm
leg | hand | person=leg | a leg; a bent leg
foot | hand | person=foot | a foot; a bare foot
ear | hand | person=ear | an ear; an ear without a hearing aid
hearing-aid | hand | person=ear with hearing aid | an ear with a hearing aid; an ear wearing a hearing aid
nose | hand | person=nose | a nose; a human nose
"""  # noqa: E501 (one concept a line)

# Names where "concept-gender" would read oddly.
NAMES = {
    "royal": {"person": "person-with-crown", "man": "prince", "woman": "princess"},
    "claus": {"person": "mx-claus", "man": "santa-claus", "woman": "mrs-claus"},
    "mer": {"person": "merperson", "man": "merman", "woman": "mermaid"},
    "adult": {"person": "person", "man": "man", "woman": "woman"},
    "child": {"person": "child", "man": "boy", "woman": "girl"},
    "older": {"person": "older-person", "man": "older-man", "woman": "older-woman"},
    "headscarf": {"woman": "headscarf-woman"},
}


def _labels(text: str) -> dict[str, str]:
    mark, _, rest = text.partition(" ")
    if mark == "*":
        return {"person": rest, "man": f"man {rest}", "woman": f"woman {rest}"}
    if mark == "@":
        return {gender: f"{gender} {rest}" for gender in GENDERS}
    return dict(part.split("=", 1) for part in text.split(","))


def _concept(line: str) -> Concept:
    name, kind, label_text, word_text = (part.strip() for part in line.split(" | "))
    labels = _labels(label_text)
    if "=" in word_text:
        words = {k: tuple(v.split("/")) for k, v in (part.split("=") for part in word_text.split(","))}
    else:
        words = {gender: tuple(w.strip() for w in word_text.split(";")) for gender in labels}
    plain = {g: name if g == "person" else f"{name}-{g}" for g in labels}
    return Concept(name, kind, labels, words, NAMES.get(name, plain))


CONCEPTS: dict[str, Concept] = {c.id: c for c in map(_concept, TABLE.strip().splitlines())}
