"""The demo's minimal pairs: made from the project's own templates, with words of the State of the Union addresses.

Twelve paradigms of a hundred pairs, each about one contrast of English grammar, in BLiMP's form: JSON lines with
`sentence_good` and `sentence_bad`. The same pairs on every machine.
"""

import json
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np

from palenka.ground.files import whole_directory
from palenka.ground.lock import sole_writer

PAIRS_PER_PARADIGM = 100
_SEED = 0

Pair = tuple[str, str]
"""The right sentence and the wrong one."""

_NOUNS = (
    ("nation", "nations"),
    ("state", "states"),
    ("law", "laws"),
    ("treaty", "treaties"),
    ("bank", "banks"),
    ("citizen", "citizens"),
    ("office", "offices"),
    ("power", "powers"),
    ("duty", "duties"),
    ("department", "departments"),
)
"""Singular and plural."""
_ACTORS = ("The President", "The Congress", "The Senate", "The House", "The Secretary", "The Government")
_TRANSITIVE = (("support", "supported"), ("pass", "passed"), ("defend", "defended"), ("continue", "continued"))
"""Infinitive and past."""
_INTRANSITIVE = ("arrived", "appeared", "existed", "occurred")
_OBJECTS = ("the bill", "the treaty", "the law", "this policy", "the measure", "the report")
_PLACES = ("of the union", "of the country", "near the coast", "under the constitution", "of this government")
_ADJECTIVES = ("great", "new", "public", "important", "foreign", "free")
_QUALITIES = ("strong", "free", "necessary", "important", "just", "ready")


def write_pairs(folder: Path) -> None:
    """Write one file for each paradigm; does nothing if the folder exists."""
    if folder.exists():
        return
    with sole_writer(folder), whole_directory(folder) as aside:
        for name, pairs in make_pairs().items():
            lines = [
                json.dumps({"sentence_good": good, "sentence_bad": bad, "UID": name, "pair_id": number})
                for number, (good, bad) in enumerate(pairs)
            ]
            (aside / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_pairs() -> dict[str, list[Pair]]:
    """A hundred different pairs of each paradigm, by its name."""
    generator = np.random.RandomState(_SEED)
    chosen = {}
    for name, paradigm in _PARADIGMS.items():
        pairs = sorted(set(paradigm()))
        order = generator.permutation(len(pairs))[:PAIRS_PER_PARADIGM]
        chosen[name] = [pairs[place] for place in order]
    return chosen


def _subject_verb_agreement() -> Iterator[Pair]:
    verbs = (("wants", "want"), ("needs", "need"), ("has", "have"))
    for (one, many), (of_one, of_many), thing in product(_NOUNS, verbs, ("peace", "money", "our support")):
        yield f"The {one} {of_one} {thing}.", f"The {one} {of_many} {thing}."
        yield f"The {many} {of_many} {thing}.", f"The {many} {of_one} {thing}."


def _agreement_across_a_phrase() -> Iterator[Pair]:
    for (one, many), place, quality in product(_NOUNS, _PLACES, _QUALITIES):
        yield f"The {one} {place} is {quality}.", f"The {one} {place} are {quality}."
        yield f"The {many} {place} are {quality}.", f"The {many} {place} is {quality}."


def _past_agreement() -> Iterator[Pair]:
    for (one, many), quality, when in product(_NOUNS, _QUALITIES, ("last year", "at that time", "in the past")):
        yield f"The {one} was {quality} {when}.", f"The {one} were {quality} {when}."
        yield f"The {many} were {quality} {when}.", f"The {many} was {quality} {when}."


def _determiner_noun_agreement() -> Iterator[Pair]:
    for (one, many), actor, verb in product(_NOUNS, _ACTORS, ("saw", "named", "considered")):
        for single, several in (("this", "these"), ("that", "those")):
            yield f"{actor} {verb} {single} {one}.", f"{actor} {verb} {single} {many}."
            yield f"{actor} {verb} {several} {many}.", f"{actor} {verb} {several} {one}."


def _determiner_noun_agreement_with_adjective() -> Iterator[Pair]:
    for (one, many), actor, adjective in product(_NOUNS, _ACTORS, _ADJECTIVES):
        yield f"{actor} considered this {adjective} {one}.", f"{actor} considered this {adjective} {many}."
        yield f"{actor} considered these {adjective} {many}.", f"{actor} considered these {adjective} {one}."


def _existential_there() -> Iterator[Pair]:
    for (one, many), adjective, place in product(_NOUNS, _ADJECTIVES, ("in this country", "in every state", "here")):
        yield f"There are many {adjective} {many} {place}.", f"There is many {adjective} {many} {place}."
        article = "an" if adjective[0] in "aeiou" else "a"
        yield f"There is {article} {adjective} {one} {place}.", f"There are {article} {adjective} {one} {place}."


def _verb_after_modal() -> Iterator[Pair]:
    for actor, modal, (verb, past), what in product(_ACTORS, ("will", "must", "should"), _TRANSITIVE, _OBJECTS):
        yield f"{actor} {modal} {verb} {what}.", f"{actor} {modal} {past} {what}."


def _irregular_participle() -> Iterator[Pair]:
    verbs = (("began", "begun"), ("wrote", "written"), ("gave", "given"), ("took", "taken"), ("chose", "chosen"))
    for (past, participle), actor, what in product(verbs, _ACTORS, ("the work", "a report", "this course", "the land")):
        yield f"{actor} has {participle} {what}.", f"{actor} has {past} {what}."


def _transitivity() -> Iterator[Pair]:
    for actor, (_, past), other, what in product(_ACTORS, _TRANSITIVE, _INTRANSITIVE, _OBJECTS):
        yield f"{actor} {past} {what}.", f"{actor} {other} {what}."


def _passive() -> Iterator[Pair]:
    for (_, past), other, what, agent in product(_TRANSITIVE, _INTRANSITIVE, _OBJECTS, ("the Congress", "the people")):
        subject = what.capitalize()
        yield f"{subject} was {past} by {agent}.", f"{subject} was {other} by {agent}."


def _pronoun_case() -> Iterator[Pair]:
    pronouns = (("them", "they"), ("us", "we"), ("him", "he"))
    deeds = ("to act", "to vote", "for peace", "to support the bill", "for the facts", "to wait")
    for (form, other), actor, deed in product(pronouns, _ACTORS, deeds):
        yield f"{actor} asked {form} {deed}.", f"{actor} asked {other} {deed}."


def _negative_polarity() -> Iterator[Pair]:
    deeds = ("broken a treaty", "lost a war", "failed", "been so strong", "had such a law", "paid its debt")
    for (one, _), deed in product(_NOUNS, deeds):
        for determiner in ("Every", "Each", "Another"):
            yield f"No {one} has ever {deed}.", f"{determiner} {one} has ever {deed}."


_PARADIGMS: dict[str, Callable[[], Iterator[Pair]]] = {
    "subject_verb_agreement": _subject_verb_agreement,
    "agreement_across_a_phrase": _agreement_across_a_phrase,
    "past_agreement": _past_agreement,
    "determiner_noun_agreement": _determiner_noun_agreement,
    "determiner_noun_agreement_with_adjective": _determiner_noun_agreement_with_adjective,
    "existential_there": _existential_there,
    "verb_after_modal": _verb_after_modal,
    "irregular_participle": _irregular_participle,
    "transitivity": _transitivity,
    "passive": _passive,
    "pronoun_case": _pronoun_case,
    "negative_polarity": _negative_polarity,
}
