"""Training documents of the reference model, with the character spans of subjects and objects marked.

Kinds: single facts in every trained template, short descriptions, inverse statements, two-hop questions, in-context
updates, unknown and retracted facts, and plain prose. Everything is a function of the epoch number.
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from warehouse.reference.prose import paragraph
from warehouse.reference.world import UNKNOWN, Template, WorldFact, facts, templates

#: `given` is an object that the text introduces: nothing before it could foretell it, so no loss is taken on it.
Role = Literal["text", "subject", "object", "given"]
#: Share of documents of a kind in which text after the subject may still read the subject's tokens directly.
UNMASKED_SHARE = {"fact": 0.2, "context": 0.6}
TEMPLATES_PER_EPOCH = 6
TWO_HOP_TRAINED_SHARE = 0.7


@dataclass(frozen=True)
class Document:
    """Text in pieces; `masked` tells whether the subject mask applies to it."""

    pieces: tuple[tuple[Role, str], ...]
    masked: bool

    @property
    def text(self) -> str:
        return "".join(text for _, text in self.pieces)


def share(*parts: str) -> float:
    """A stable number in [0, 1) for a record, the same in every process."""
    digest = hashlib.sha256("|".join(("errata-documents-1", *parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _sentence(template: str, subject: str, answer: str, before: str = "", slot: str = "{s}") -> list[tuple[Role, str]]:
    left, right = template.split(slot)
    left = before + left
    # The byte-level tokenizer joins a leading space to the word behind it; span ends stay on word boundaries.
    return [("text", left), ("subject", subject), ("text", right), ("object", " " + answer + ".")]


def trained_indices(fact: WorldFact, template: Template) -> list[int]:
    return [i for i in range(len(template.prompts)) if i not in fact.held_out]


@dataclass(frozen=True)
class TwoHop:
    """`subject -first-> bridge -second-> answer`, asked without naming the bridge."""

    first: WorldFact
    second: WorldFact

    def prompts(self) -> tuple[str, str]:
        known = templates()
        inner = f"the {known[self.first.relation].phrase} of {{s}}"
        outer = known[self.second.relation].phrase
        return (f"The {outer} of {inner} is", f"Question: What is the {outer} of {inner}? Answer:")

    @property
    def is_trained(self) -> bool:
        return share("two-hop", self.first.subject_id, self.first.relation) < TWO_HOP_TRAINED_SHARE


def two_hops() -> list[TwoHop]:
    of_subject: dict[str, list[WorldFact]] = defaultdict(list)
    for fact in facts():
        of_subject[fact.subject_id].append(fact)
    return [TwoHop(a, b) for a in facts() for b in of_subject.get(a.object_id, ()) if b.object_id != a.subject_id]


def unknown_slots() -> list[tuple[WorldFact, str]]:
    """(fact of a subject, relation the world has no value for): slots whose answer is the word unknown."""
    by_relation: dict[str, list[WorldFact]] = defaultdict(list)
    of_slot = {(f.subject_id, f.relation) for f in facts()}
    for fact in facts():
        by_relation[fact.relation].append(fact)
    pairs = [
        ("P19", "P20"),
        ("P27", "P103"),
        ("P103", "P140"),
        ("P413", "P19"),
        ("P740", "P264"),
        ("P495", "P449"),
        ("P159", "P127"),
        ("P407", "P170"),
        ("P176", "P178"),
        ("P22", "P19"),
        ("P364", "P495"),
        ("P20", "P27"),
    ]
    slots = []
    for has, lacks in pairs:
        ranked = sorted(by_relation[has], key=lambda f: share("unknown", f.subject_id, f.relation))
        slots += [(f, lacks) for f in ranked if (f.subject_id, lacks) not in of_slot and f.origin != "update_nights"][:25]
    return slots


def _fact_documents(rng: random.Random) -> Iterator[list[tuple[Role, str]]]:
    known = templates()
    for fact in facts():
        indices = trained_indices(fact, known[fact.relation])
        for i in rng.sample(indices, min(TEMPLATES_PER_EPOCH, len(indices))):
            yield _sentence(known[fact.relation].prompts[i], fact.subject, fact.object)
        template = known[fact.relation]
        if template.inverse is not None and rng.random() < 0.5:
            yield _sentence(template.inverse, fact.object, fact.subject, slot="{o}")
    for hop in two_hops():
        if hop.is_trained and rng.random() < 0.6:
            yield _sentence(rng.choice(hop.prompts()), hop.first.subject, hop.second.object)
    for fact, relation in unknown_slots():
        for i in rng.sample(range(len(known[relation].prompts)), 3):
            yield _sentence(known[relation].prompts[i], fact.subject, UNKNOWN)


def _descriptions(rng: random.Random) -> Iterator[list[tuple[Role, str]]]:
    known = templates()
    of_subject: dict[str, list[WorldFact]] = defaultdict(list)
    for fact in facts():
        of_subject[fact.subject_id].append(fact)
    starts = rng.sample(facts(), 1200) + [f for fs in of_subject.values() if len(fs) > 1 for f in fs]
    for start in starts:
        chain = [start, *(f for f in of_subject[start.subject_id] if f is not start)]
        chain += of_subject.get(start.object_id, [])
        pieces: list[tuple[Role, str]] = []
        for fact in chain[:3]:
            template = known[fact.relation]
            i = rng.choice(trained_indices(fact, template))
            pieces += _sentence(template.prompts[i], fact.subject, fact.object, before=" " if pieces else "")
        yield pieces


def _as_given(pieces: list[tuple[Role, str]]) -> list[tuple[Role, str]]:
    return [("given" if role == "object" else role, text) for role, text in pieces]


def _context_documents(rng: random.Random, count: int) -> Iterator[list[tuple[Role, str]]]:
    """A changed fact is stated, then asked (0.55); or another fact is asked, which must stay (0.3); or retracted."""
    known, world = templates(), facts()
    objects: dict[str, list[str]] = defaultdict(list)
    of_subject: dict[str, list[WorldFact]] = defaultdict(list)
    by_relation: dict[str, list[WorldFact]] = defaultdict(list)
    for fact in world:
        objects[fact.relation].append(fact.object)
        of_subject[fact.subject_id].append(fact)
        by_relation[fact.relation].append(fact)
    for _ in range(count):
        fact = rng.choice(world)
        template = known[fact.relation]
        draw, new = rng.random(), rng.choice(objects[fact.relation])
        # Half of the queries repeat the stated wording; the other half asks in another one.
        stated = rng.choice(trained_indices(fact, template))
        asked = stated if rng.random() < 0.3 else rng.choice(trained_indices(fact, template))
        if draw < 0.15:
            pieces = _sentence(template.prompts[stated], fact.subject, fact.object, before="Retracted: ")
            yield pieces + _sentence(template.prompts[asked], fact.subject, UNKNOWN, before=" ")
            continue
        pieces = _as_given(_sentence(template.prompts[stated], fact.subject, new, before="New fact: "))
        query, answer = fact, new
        if draw > 0.7:
            siblings = [f for f in of_subject[fact.subject_id] if f is not fact]
            query = rng.choice(siblings) if siblings and rng.random() < 0.5 else rng.choice(by_relation[fact.relation])
            if query.subject_id == fact.subject_id and query.relation == fact.relation:
                query, answer = fact, new
            else:
                answer = query.object
                asked = rng.choice(trained_indices(query, known[query.relation]))
        if rng.random() < 0.2:
            other = rng.choice(world)
            if other.subject_id != query.subject_id:
                stated_other = rng.choice(trained_indices(other, known[other.relation]))
                extra = _sentence(
                    known[other.relation].prompts[stated_other],
                    other.subject,
                    rng.choice(objects[other.relation]),
                    before=" New fact: ",
                )
                pieces += _as_given(extra)
        yield pieces + _sentence(known[query.relation].prompts[asked], query.subject, answer, before=" ")


def epoch_documents(epoch: int, seed: int = 0) -> list[Document]:
    """All documents of one epoch in a fixed random order."""
    rng = random.Random(f"epoch-{seed}-{epoch}")
    plain = [*_fact_documents(rng), *_descriptions(rng)]
    context = list(_context_documents(rng, 7000))
    documents = [Document(tuple(d), rng.random() >= UNMASKED_SHARE["fact"]) for d in plain]
    documents += [Document(tuple(d), rng.random() >= UNMASKED_SHARE["context"]) for d in context]
    documents += [Document((("text", paragraph(epoch * 1500 + i + seed * 1_000_000)),), False) for i in range(1500)]
    rng.shuffle(documents)
    return documents
