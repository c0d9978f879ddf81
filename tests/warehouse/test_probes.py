"""Probe sets over a small world of our own, and over the embedded one for size and time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pandas as pd
import pytest

from warehouse.database.connection import Warehouse
from warehouse.errors import IntegrityError, NotFound
from warehouse.records import EditRequest, Probe, ProbeSet
from warehouse.reference.build import held_out_templates
from warehouse.reference.world import UNKNOWN, facts, templates
from warehouse.world.changes import Value
from warehouse.world.facts import seed_world
from warehouse.world.probes import (
    PER_REQUEST,
    build_edit_probes,
    load_probe_set,
    make_probe,
    make_probe_set,
    night_counts,
    save_probe_set,
    standing_probes,
)
from warehouse.world.verbalise import state

#: (subject, relation, object); an id is `Q:` and the label.
SMALL = [
    ("Ada", "P19", "Rome"), ("Ada", "P22", "Otto"), ("Ada", "P27", "Italy"), ("Bea", "P19", "Oslo"),
    ("Bea", "P22", "Ivo"),
    ("Cid", "P19", "Bonn"), ("Cid", "P22", "Nils"), ("Rome", "P30", "Europe"), ("Oslo", "P30", "Europe"),
    ("Lima", "P30", "South America"), ("Nils", "P20", "Riga"), ("Kurt", "P20", "Kyiv"), ("Kurt", "P19", "Brno"),
    ("Edda", "P26", "Finn"), ("Edda", "P136", "jazz"), ("Edda", "P136", "folk"), ("Dee {s}", "P19", "Graz"),
    ("Twin", "P19", "Cork"),
]  # fmt: skip


def rows(triples: list[tuple[str, str, str]], prefix: str = "Q:", **more: object) -> list[dict[str, object]]:
    return [
        {"fact_id": f"{prefix}{s}{r}{o}{more}", "subject_id": f"{prefix}{s}", "subject": s, "relation": r,
         "object_id": f"Q:{o}", "object": o, "source": "test", "known_from_night": "", **more}
        for s, r, o in triples
    ]  # fmt: skip


@contextmanager
def small_world() -> Iterator[Warehouse]:
    known = templates()
    with Warehouse.open(":memory:") as warehouse:
        warehouse.append("facts", rows(SMALL))
        warehouse.append("facts", rows([("Ada", "P19", "Nowhere")], known_to_night="night-00"))
        warehouse.append("facts", rows([("Twin", "P19", "Bern")], prefix="Q:other-"))
        warehouse.append(
            "templates",
            [{"relation": t.relation, "idx": i, "prompt": p, "phrase": t.phrase, "inverse": t.inverse}
             for t in known.values() for i, p in enumerate(t.prompts)],
        )  # fmt: skip
        for pid, cardinality, inverse, symmetric in [
            ("P19", "single", None, False), ("P22", "single", "P40", False), ("P26", "multi", "P26", True),
            ("P136", "multi", None, False), ("P40", "multi", "P22|P25", False),
        ]:  # fmt: skip
            row = {"pid": pid, "label": pid, "cardinality": cardinality, "single_in_practice": False,
                   "inverse_pid": inverse, "symmetric": symmetric, "temporal": False}  # fmt: skip
            warehouse.append("properties", [row])
        warehouse.append("aliases", [{"entity_id": "Q:Ada", "alias": "A. Byron"}, {"entity_id": "Q:Ada", "alias": "Ada"}])
        yield warehouse


@pytest.fixture(scope="module")
def wh() -> Iterator[Warehouse]:
    """For reading only: shared by the tests of this file."""
    with small_world() as warehouse:
        yield warehouse


@pytest.fixture
def fresh() -> Iterator[Warehouse]:
    with small_world() as warehouse:
        yield warehouse


def ask(subject: str, relation: str, new: str, old: str | None = None, **more: object) -> EditRequest:
    kind = "modify" if old else "insert"
    request = state(
        templates()[relation], record_id="r", subject_id=f"Q:{subject}", subject=subject,
        target=Value(type="item", id=f"Q:{new}", label=new), old=old, kind=kind,
    )  # fmt: skip
    return request.model_copy(update=more)


def of(kind: str, probes: ProbeSet) -> set[tuple[str, tuple[str, ...]]]:
    return {(probe.prompt, probe.targets) for probe in probes.probes if probe.kind == kind}


def prompts(kind: str, probes: ProbeSet) -> set[str]:
    return {prompt for prompt, _ in of(kind, probes)}


def test_the_edit_is_asked_in_its_own_prompt_and_in_its_rephrases(wh: Warehouse) -> None:
    request = ask("Ada", "P19", "Oslo", "Rome")
    probes = build_edit_probes(wh, [request])
    assert of("success", probes) == {("Ada was born in", ("Oslo",))}
    found = of("rephrase", probes)
    assert len(found) == 3 and found <= {(prompt, ("Oslo",)) for prompt in request.rephrases}
    assert {p.request_id for p in probes.probes} == {request.request_id}


def test_the_old_answer_is_asked_for_as_obsolete(wh: Warehouse) -> None:
    assert of("obsolete", build_edit_probes(wh, [ask("Ada", "P19", "Oslo", "Rome")])) == {("Ada was born in", ("Rome",))}
    assert not of("obsolete", build_edit_probes(wh, [ask("Ada", "P19", "Oslo")]))


def test_neighbours_are_other_subjects_of_the_relation_that_nothing_touches(wh: Warehouse) -> None:
    requests = [ask("Ada", "P19", "Oslo", "Rome"), ask("Bea", "P22", "Kurt", "Ivo")]
    probes = build_edit_probes(wh, requests, per_request={"neighbourhood": 9}, excluded_subjects={"Q:Cid"})
    # Not Kurt, who becomes a father tonight; not Twin, a label of two subjects.
    assert of("neighbourhood", probes) == {("Dee {s} was born in", ("Graz",))}
    freed = build_edit_probes(wh, requests[:1], per_request={"neighbourhood": 9})
    assert prompts("neighbourhood", freed) == {f"{s} was born in" for s in ("Bea", "Cid", "Kurt", "Dee {s}")}


def test_exclusion_works_by_label_too(wh: Warehouse) -> None:
    probes = build_edit_probes(wh, [ask("Ada", "P19", "Rome")], excluded_subjects={"Cid", "Kurt", "Bea"})
    assert prompts("neighbourhood", probes) == {"Dee {s} was born in"}


def test_requests_share_neighbours_only_when_there_are_no_others(wh: Warehouse) -> None:
    requests = [ask(f"New {i}", "P19", "Ulm") for i in range(5)]
    probes = build_edit_probes(wh, requests, per_request={"neighbourhood": 1})
    # Ada, Bea, Cid, Kurt and Dee: five neighbours, one for each request.
    assert len(of("neighbourhood", probes)) == 5
    assert len({p.request_id for p in probes.probes if p.kind == "neighbourhood"}) == 5


def test_other_relations_of_the_subject_are_asked_unless_edited(wh: Warehouse) -> None:
    probes = build_edit_probes(wh, [ask("Ada", "P19", "Oslo"), ask("Ada", "P22", "Ivo")])
    assert of("relation_specificity", probes) == {("Ada is a citizen of", ("Italy",))}


def test_the_other_objects_of_a_slot_are_asked_by_shutting_out_the_new_one(wh: Warehouse) -> None:
    probes = build_edit_probes(wh, [ask("Edda", "P136", "punk")])
    assert of("forgetfulness", probes) == {("The genre of Edda, which is not punk, is", ("folk", "jazz"))}
    replaced = build_edit_probes(wh, [ask("Edda", "P136", "punk", "jazz")])
    assert of("forgetfulness", replaced) == {("The genre of Edda, which is not punk, is", ("folk",))}
    assert not of("forgetfulness", build_edit_probes(wh, [ask("Ada", "P19", "Oslo")]))


def test_a_hop_leads_over_the_new_object_to_its_fact(wh: Warehouse) -> None:
    probes = build_edit_probes(wh, [ask("Ada", "P22", "Nils", "Otto")])
    assert of("one_hop", probes) == {("The place of death of the father of Ada is", ("Riga",))}
    edited = build_edit_probes(wh, [ask("Ada", "P22", "Nils", "Otto"), ask("Nils", "P20", "Bonn")])
    assert not of("one_hop", edited)


def test_the_inverse_is_asked_from_the_new_object(wh: Warehouse) -> None:
    probes = build_edit_probes(wh, [ask("Ada", "P22", "Kurt", "Otto")], per_request={"logical": 3})
    assert of("logical", probes) == {("Kurt is the father of", ("Ada",)), ("Kurt is a parent of", ("Ada",))}
    spouse = build_edit_probes(wh, [ask("Edda", "P26", "Kurt", "Finn")], per_request={"logical": 3})
    assert of("logical", spouse) == {("Kurt is married to", ("Edda",))}


def test_no_inverse_is_asked_that_has_two_right_answers(wh: Warehouse) -> None:
    assert not of("logical", build_edit_probes(wh, [ask("Ada", "P22", "Nils", "Otto")]))
    both = [ask("Ada", "P22", "Kurt", "Otto"), ask("Bea", "P22", "Kurt", "Ivo")]
    assert not of("logical", build_edit_probes(wh, both))


def test_an_alias_takes_the_place_of_the_subject(wh: Warehouse) -> None:
    probes = build_edit_probes(wh, [ask("Ada", "P19", "Oslo")])
    assert of("alias", probes) == {("A. Byron was born in", ("Oslo",))}


def test_unrelated_facts_have_another_relation_and_another_subject(wh: Warehouse) -> None:
    probes = build_edit_probes(wh, [ask("Ada", "P19", "Oslo", "Rome")], per_request={"unrelated": 20})
    found = prompts("unrelated", probes)
    assert {"The father of Bea is", "Kurt died in", "Edda is married to"} <= found
    # Oslo is the new answer and Rome the old one: both take part.
    assert not any("born in" in p or "Ada" in p or "Oslo" in p or "Rome" in p for p in found)


def test_an_erasure_has_no_consequences_to_carry_over(wh: Warehouse) -> None:
    request = ask("Edda", "P26", UNKNOWN, "Finn", kind="erase", target_new_id="")
    probes = build_edit_probes(wh, [request])
    assert of("success", probes) == {("Edda is married to", (UNKNOWN,))}
    assert not {"one_hop", "logical", "forgetfulness"} & {p.kind for p in probes.probes}


def test_ids_that_a_user_leaves_out_are_found_by_label(wh: Warehouse) -> None:
    request = ask("Ada", "P22", "Nils", "Otto", subject_id="", target_new_id="")
    probes = build_edit_probes(wh, [request])
    assert of("one_hop", probes) and of("alias", probes) and of("relation_specificity", probes)


def test_an_unknown_relation_still_gets_the_probes_of_its_own(wh: Warehouse) -> None:
    request = ask("Ada", "P19", "Oslo").model_copy(update={"relation": "text:{s} came from"})
    kinds = Counter(p.kind for p in build_edit_probes(wh, [request]).probes)
    assert kinds["success"] == 1 and kinds["unrelated"] == 1 and kinds["neighbourhood"] == 0


def test_a_set_depends_on_seed_and_content_alone(wh: Warehouse) -> None:
    requests = [ask("Ada", "P19", "Oslo"), ask("Edda", "P136", "punk")]
    first = build_edit_probes(wh, requests, seed=3)
    assert build_edit_probes(wh, requests, seed=3) == first
    assert build_edit_probes(wh, requests[::-1], seed=3).digest == first.digest
    assert any(build_edit_probes(wh, requests, seed=seed).digest != first.digest for seed in range(4, 9))


def test_the_order_of_requests_does_not_decide_who_owns_a_shared_neighbour(wh: Warehouse) -> None:
    requests = [ask(f"New {i}", "P19", "Ulm") for i in range(4)]
    every = {"neighbourhood": 5}
    assert build_edit_probes(wh, requests, per_request=every) == build_edit_probes(wh, requests[::-1], per_request=every)


def test_a_probe_id_is_its_content_and_not_its_request() -> None:
    one, other = make_probe("success", "p", ("t",), "r1"), make_probe("success", "p", ("t",), "r2")
    assert one.probe_id == other.probe_id
    assert make_probe("obsolete", "p", ("t",)).probe_id != one.probe_id
    assert make_probe_set("a", [one]).digest != make_probe_set("a", [other]).digest
    assert make_probe_set("a", [one, other]).probes == (one,)


def test_counts_can_be_set_and_wrong_ones_are_refused(wh: Warehouse) -> None:
    only = {kind: 0 for kind in PER_REQUEST if kind != "success"}
    assert len(build_edit_probes(wh, [ask("Ada", "P19", "Oslo")], per_request=only).probes) == 1
    with pytest.raises(ValueError, match="drawdown"):
        build_edit_probes(wh, [], per_request={"drawdown": 1})
    with pytest.raises(ValueError, match="same request_id"):
        build_edit_probes(wh, [ask("Ada", "P19", "Oslo")] * 2)
    assert build_edit_probes(wh, []).probes == ()


# ---------------------------------------------------------------- standing sets


def test_drawdown_asks_subjects_that_take_part_in_nothing(wh: Warehouse) -> None:
    request = ask("Ada", "P22", "Kurt", "Otto")
    probes = standing_probes(wh, kind="drawdown", limit=99, excluded_subjects={"Q:Bea"}, requests=[request])
    subjects = {p.prompt for p in probes.probes}
    assert "Cid was born in" in subjects and "Lima lies on the continent of" in subjects
    assert not any(name in prompt for prompt in subjects for name in ("Ada", "Bea", "Kurt", "Twin"))
    assert of("drawdown", probes) >= {("The genre of Edda is", ("folk", "jazz"))}


def test_what_is_no_longer_believed_is_no_answer(wh: Warehouse) -> None:
    assert ("Ada was born in", ("Rome",)) in of("drawdown", standing_probes(wh, kind="drawdown", limit=99))


def test_drawdown_keeps_its_probes_when_one_subject_leaves(wh: Warehouse) -> None:
    before = standing_probes(wh, kind="drawdown", limit=5)
    after = standing_probes(wh, kind="drawdown", limit=5, excluded_subjects={"Q:Cid"})
    kept = {p.probe_id for p in before.probes if "Cid" not in p.prompt}
    assert len(before.probes) == 5 and kept <= {p.probe_id for p in after.probes}


def test_retain_asks_every_edit_in_force_and_its_rephrases(wh: Warehouse) -> None:
    requests = [ask("Ada", "P19", "Oslo"), ask("Bea", "P22", "Kurt")]
    probes = standing_probes(wh, kind="retain", limit=10, requests=requests)
    assert of("retain", probes) == {("Ada was born in", ("Oslo",)), ("The father of Bea is", ("Kurt",))}
    assert Counter(p.kind for p in probes.probes) == {"retain": 2, "rephrase": 6}
    tonight = {p.probe_id for p in build_edit_probes(wh, requests).probes if p.kind == "rephrase"}
    assert tonight == {p.probe_id for p in probes.probes if p.kind == "rephrase"}
    assert standing_probes(wh, kind="retain", limit=10).probes == ()


def test_held_text_is_the_prompt(wh: Warehouse) -> None:
    probes = standing_probes(wh, kind="held_text", limit=4)
    assert len(probes.probes) == 4 and all(len(p.prompt) > 80 and p.targets == () for p in probes.probes)


def test_an_unknown_standing_set_is_refused(wh: Warehouse) -> None:
    with pytest.raises(ValueError, match="no standing set 'other'"):
        standing_probes(wh, kind="other", limit=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="-1"):
        standing_probes(wh, kind="drawdown", limit=-1)


# ---------------------------------------------------------------- storage


def test_a_saved_set_is_loaded_as_it_was(fresh: Warehouse) -> None:
    probes = build_edit_probes(fresh, [ask("Ada", "P19", "Oslo", "Rome")])
    mixed = make_probe_set("night", [*probes.probes, *standing_probes(fresh, kind="held_text", limit=2).probes])
    save_probe_set(fresh, mixed)
    save_probe_set(fresh, mixed)
    assert load_probe_set(fresh, mixed.digest) == mixed
    assert fresh.scalar("SELECT count(*) FROM probes") == len(mixed.probes)


def test_a_set_that_is_missing_or_altered_is_refused(fresh: Warehouse) -> None:
    with pytest.raises(NotFound, match="no probe set abc"):
        load_probe_set(fresh, "abc")
    probes = build_edit_probes(fresh, [ask("Ada", "P19", "Oslo")])
    save_probe_set(fresh, probes)
    fresh.execute("DELETE FROM probes WHERE kind = 'success'")
    with pytest.raises(IntegrityError, match="rebuild the set"):
        load_probe_set(fresh, probes.digest)


# ---------------------------------------------------------------- the embedded world


@pytest.fixture(scope="module")
def world() -> Iterator[Warehouse]:
    with Warehouse.open(":memory:") as warehouse:
        seed_world(warehouse)
        yield warehouse


def counterfactuals(count: int) -> list[EditRequest]:
    """One request for each of `count` subjects: its answer becomes that of another subject of the relation."""
    frame = pd.DataFrame([(f.subject_id, f.subject, f.relation, f.object_id, f.object) for f in facts()],
                         columns=["subject_id", "subject", "relation", "object_id", "object"])  # fmt: skip
    requests = []
    for row in frame.drop_duplicates("subject_id").sample(count, random_state=0).itertuples():
        other = frame[(frame.relation == row.relation) & (frame.object != row.object)].iloc[row.Index % 7]
        target = Value(type="item", id=other.object_id, label=other.object)
        requests.append(state(templates()[row.relation], record_id="r", subject_id=row.subject_id, subject=row.subject,
                              target=target, old=row.object, kind="modify"))  # fmt: skip
    return requests


def test_five_hundred_requests_take_a_moment(world: Warehouse) -> None:
    requests = counterfactuals(500)
    started = time.perf_counter()
    probes = build_edit_probes(world, requests)
    # 0.4 s on an idle core; the bound is for a machine that does something else beside.
    assert time.perf_counter() - started < 5
    kinds = Counter(p.kind for p in probes.probes)
    assert len(probes.probes) > 4000
    assert kinds["success"] == kinds["unrelated"] == 500 and kinds["rephrase"] == kinds["neighbourhood"] == 1500
    assert kinds["one_hop"] > 100


def test_locality_is_asked_of_untouched_subjects_in_a_trained_template(world: Warehouse) -> None:
    requests = counterfactuals(100)
    calibration = {fact.subject_id for fact in facts()[::5]}
    probes = build_edit_probes(world, requests, excluded_subjects=calibration)
    standing = standing_probes(world, kind="drawdown", limit=600, excluded_subjects=calibration, requests=requests)
    trained = {
        templates()[f.relation].prompt(i, f.subject): f.subject_id
        for f in facts()
        for i in range(10)
        if i not in held_out_templates(f.subject_id, f.relation)
    }
    banned = calibration | {r.subject_id for r in requests} | {r.target_new_id for r in requests}
    asked: list[Probe] = [p for p in (*probes.probes, *standing.probes) if p.kind in ("neighbourhood", "unrelated", "drawdown")]
    assert len(standing.probes) == 600 and len(asked) > 900
    assert all(trained[probe.prompt] not in banned for probe in asked)


def test_rephrases_of_a_fact_with_held_out_templates_were_never_trained(world: Warehouse) -> None:
    requests = [r for r in counterfactuals(100) if held_out_templates(r.subject_id, r.relation)]
    probes = build_edit_probes(world, requests)
    unseen = {
        templates()[r.relation].prompt(i, r.subject) for r in requests for i in held_out_templates(r.subject_id, r.relation)
    }
    found = prompts("rephrase", probes)
    assert len(found) == 3 * len(requests) and found <= unseen


# ---------------------------------------------------------------- a night of any size


@pytest.mark.parametrize("num", [1, 2, 7, 10, 30, 100])
def test_bystanders_do_not_depend_on_the_size_of_the_night(num: int) -> None:
    counts = night_counts(num)
    assert counts["neighbourhood"] * num >= 30 and counts["unrelated"] * num >= 20
    if num >= 20:
        assert counts == PER_REQUEST


def test_facts_of_any_relation_stand_in_where_a_relation_has_too_few_subjects(wh: Warehouse) -> None:
    request = ask("Ada", "P19", "Oslo").model_copy(update={"relation": "mascot", "prompt": "The mascot of Ada is"})
    assert not of("neighbourhood", build_edit_probes(wh, [request]))
    found = build_edit_probes(wh, [request], least={"neighbourhood": 5})
    assert len(of("neighbourhood", found)) == 5
    assert found.digest == build_edit_probes(wh, [request], least={"neighbourhood": 5}).digest
    assert not any("Ada" in prompt or "Oslo" in prompt for prompt in prompts("neighbourhood", found))
    everything = build_edit_probes(wh, [request], least={"neighbourhood": 500})
    assert 5 < len(of("neighbourhood", everything)) < 20


def test_stand_ins_are_left_out_where_the_relation_has_enough(wh: Warehouse) -> None:
    request = ask("Ada", "P19", "Oslo", "Rome")
    counts = {"neighbourhood": 9}
    own = build_edit_probes(wh, [request], per_request=counts)
    assert build_edit_probes(wh, [request], per_request=counts, least={"neighbourhood": 4}).digest == own.digest
