"""Plain connected English text, made from a small grammar of our own: for perplexity, fluency and held text.

The people, places and events are invented and share no name with the fact table, so this text can neither teach
nor untell a fact.
"""

from __future__ import annotations

import random

NAMES = [
    "Anna",
    "Tom",
    "Mira",
    "Jonas",
    "Clara",
    "Ben",
    "Lena",
    "Oskar",
    "Nora",
    "Felix",
    "Ida",
    "Paul",
    "Rosa",
    "Emil",
]
PLACES = [
    "the harbour",
    "the old mill",
    "the market",
    "the library",
    "the station",
    "the bakery",
    "the river bank",
    "the workshop",
    "the school",
    "the garden",
    "the bridge",
    "the lighthouse",
    "the town hall",
    "the forest",
]
THINGS = [
    "a letter",
    "a lamp",
    "a basket of apples",
    "an old map",
    "a wooden box",
    "a blue coat",
    "a bicycle",
    "a loaf of bread",
    "a clock",
    "a violin",
    "a pair of boots",
    "a jar of honey",
    "a small boat",
    "a book",
]
WEATHER = [
    "It was raining",
    "The sun was shining",
    "A cold wind blew",
    "Snow lay on the roofs",
    "The air was warm",
    "Fog hung over the water",
    "Clouds moved in from the west",
    "The night was clear",
]
TIMES = [
    "In the morning",
    "At noon",
    "In the evening",
    "After the holidays",
    "On the first day of spring",
    "Late in the autumn",
    "One summer",
    "Before sunrise",
    "That winter",
    "The next day",
]
VERBS = ["repaired", "carried", "found", "sold", "lost", "painted", "borrowed", "wrapped", "cleaned", "hid"]
FEELINGS = [
    "was pleased",
    "felt tired",
    "laughed",
    "said nothing",
    "was surprised",
    "sang a quiet song",
    "wanted to go home",
    "thought about it for a long time",
]
REASONS = [
    "because the road was long",
    "because nobody else had time",
    "although it was late",
    "since the shop was about to close",
    "because a friend had asked",
    "although the work was hard",
    "so that the others could rest",
    "before the boat left",
]
CRAFTS = ["baker", "teacher", "sailor", "carpenter", "gardener", "printer", "weaver", "miller", "doctor", "fisher"]
GENERAL = ["Bread rises because yeast makes gas in the dough", "A bridge must carry its own weight first",
           "Rivers are slow where the land is flat", "A good lamp needs clean glass and dry oil",
           "Trees grow faster in wet years than in dry ones", "A map is smaller than the land that it shows",
           "Salt keeps fish from going bad", "Clocks run slower when the oil is thick", "Bees find their way by the sun",
           "Wool is warm even when it is wet", "Sound travels faster in water than in air",
           "Old wood is harder to cut than young wood"]  # fmt: skip


def paragraph(seed: int) -> str:
    """One paragraph of four to seven sentences about one or two people; the same seed gives the same text."""
    rng = random.Random(f"prose-{seed}")
    who, friend = rng.sample(NAMES, 2)
    where, there = rng.sample(PLACES, 2)
    thing, craft = rng.choice(THINGS), rng.choice(CRAFTS)
    it = "the " + thing.split(" ", 1)[1]
    sentences = [f"{rng.choice(TIMES)} {who} the {craft} went to {where}", rng.choice(WEATHER)]
    middle = [
        f"{who} {rng.choice(VERBS)} {thing} {rng.choice(REASONS)}",
        f"At {there} {friend} was waiting with {rng.choice(THINGS)}",
        f"{friend} asked about {it}, and {who} {rng.choice(FEELINGS)}",
        f"Together they {rng.choice(VERBS)} {it} near {there}",
        rng.choice(GENERAL),
        f"From {where} one can see {there}",
        f"{friend} {rng.choice(FEELINGS)} {rng.choice(REASONS)}",
    ]
    sentences += rng.sample(middle, rng.randint(2, 5))
    sentences.append(f"{rng.choice(TIMES)} {who} {rng.choice(FEELINGS)}")
    return ". ".join(sentences) + "."


def held_text(count: int) -> list[str]:
    """Paragraphs that no training run has seen: their seeds start where training never goes."""
    return [paragraph(10_000_000 + i) for i in range(count)]
