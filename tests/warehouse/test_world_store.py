"""The world: seeding, facts in two times, and what a night brings, each once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pandas as pd
import pytest

from tests.warehouse.world import NIGHT, NOON, intake, request, update, verdict
from warehouse.database.connection import Warehouse
from warehouse.errors import Conflict, IntegrityError, NotFound, WarehouseError
from warehouse.nights.order import register
from warehouse.records import Fact
from warehouse.reference import world
from warehouse.world.facts import (
    BASE_NIGHT,
    apply_fact_changes,
    facts_as_of,
    nights,
    receive,
    record_verdicts,
    request_digest,
    requests_by_id,
    requests_of,
    seed_world,
    updates_of,
    verdicts_of,
    with_other_relations,
)


@pytest.fixture
def wh():
    with Warehouse.open(":memory:") as opened:
        yield opened


def fact(obj: str, subject: str = "Q1", **changes: object) -> Fact:
    known = Fact(subject_id=subject, subject="Ada", relation="P19", object_id=obj, object=f"label {obj}", source="test")
    return known.model_copy(update=changes)


def objects(wh: Warehouse, night: str) -> list[str]:
    return facts_as_of(wh, night).object_id.tolist()


def small_world(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the embedded files that a test may change."""
    for name in ("facts.csv", "templates.yaml", "properties.csv"):
        (folder / name).write_bytes((world.HERE / name).read_bytes())
    monkeypatch.setattr(world, "HERE", folder)


# ---------------------------------------------------------------- seeding


def test_seeding_loads_every_fact_template_and_property_once(wh: Warehouse) -> None:
    assert seed_world(wh) == len(world.facts())
    assert seed_world(wh) == 0
    counts = {name: wh.scalar(f"SELECT count(*) FROM {name}") for name in ("facts", "templates", "properties")}
    assert counts["facts"] == len(world.facts())
    assert counts["templates"] == sum(len(t.prompts) for t in world.templates().values())
    assert counts["properties"] == len((world.HERE / "properties.csv").read_text().splitlines()) - 1
    assert wh.rows("SELECT single_in_practice, inverse_pid, temporal FROM properties WHERE pid = 'P19'") == [
        {"single_in_practice": True, "inverse_pid": None, "temporal": False}
    ]


def test_seeding_brings_back_no_fact_that_a_night_has_ended(wh: Warehouse) -> None:
    seed_world(wh)
    first = world.facts()[0]
    apply_fact_changes(wh, NIGHT, [], [(first.subject_id, first.relation, first.object_id)])
    wh.execute("DELETE FROM store_meta WHERE key = 'reference_files_digest'")
    assert seed_world(wh) == 0
    assert len(facts_as_of(wh, NIGHT)) == len(world.facts()) - 1


def test_other_base_facts_are_refused_in_a_seeded_warehouse(
    wh: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed_world(wh)
    small_world(tmp_path, monkeypatch)
    with (tmp_path / "facts.csv").open("a") as handle:
        handle.write("Q0,Nobody,P19,Q1,Nowhere,test,\n")
    with pytest.raises(IntegrityError, match="ERRATA_HOME"):
        seed_world(wh)


def test_aliases_are_loaded_where_the_file_exists(wh: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_world(tmp_path, monkeypatch)
    (tmp_path / "aliases.csv").write_text("entity_id,alias\nQ1,Ada L.\nQ1,Countess\n")
    seed_world(wh)
    assert wh.scalar("SELECT count(*) FROM aliases") == 2


def test_stored_templates_follow_the_shipped_ones(wh: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seed_world(wh)
    small_world(tmp_path, monkeypatch)
    (tmp_path / "templates.yaml").write_text("P19:\n  phrase: birth town\n  prompts: ['{s} hails from']\n")
    monkeypatch.setattr(world, "templates", lambda: world.read_templates(tmp_path / "templates.yaml"))
    seed_world(wh)
    assert wh.rows("SELECT relation, idx, prompt, phrase FROM templates") == [
        {"relation": "P19", "idx": 0, "prompt": "{s} hails from", "phrase": "birth town"}
    ]


# ---------------------------------------------------------------- facts in two times


def test_each_night_sees_the_facts_as_they_were_believed_then(wh: Warehouse) -> None:
    apply_fact_changes(wh, "night-01", [fact("Q10")])
    apply_fact_changes(wh, "night-02", [fact("Q20")], [("Q1", "P19", "Q10")])
    apply_fact_changes(wh, "night-03", [fact("Q10")], [("Q1", "P19", "Q20")])
    assert [objects(wh, night) for night in (BASE_NIGHT, "night-01", "night-02", "night-03")] == [
        [], ["Q10"], ["Q20"], ["Q10"],
    ]  # fmt: skip


def test_what_was_believed_on_a_night_about_a_moment_is_one_query(wh: Warehouse) -> None:
    spring, summer, autumn = (datetime(2026, month, 1, tzinfo=UTC) for month in (3, 6, 9))
    apply_fact_changes(wh, "night-01", [fact("Q10", valid_from=spring)])
    # Only in the second night it becomes known that this ended in June.
    apply_fact_changes(wh, "night-02", [], [("Q1", "P19", "Q10")])
    apply_fact_changes(wh, "night-03", [fact("Q10", valid_from=spring, valid_to=summer), fact("Q20", valid_from=summer)])
    believed = {
        (night, at.month): facts_as_of(wh, night, at).object_id.tolist()
        for night in ("night-01", "night-02", "night-03") for at in (spring - timedelta(days=1), spring, summer, autumn)
    }  # fmt: skip
    assert believed == {
        ("night-01", 2): [], ("night-01", 3): ["Q10"], ("night-01", 6): ["Q10"], ("night-01", 9): ["Q10"],
        ("night-02", 2): [], ("night-02", 3): [], ("night-02", 6): [], ("night-02", 9): [],
        ("night-03", 2): [], ("night-03", 3): ["Q10"], ("night-03", 6): ["Q20"], ("night-03", 9): ["Q20"],
    }  # fmt: skip


def test_applying_a_night_again_changes_nothing_even_after_later_nights(wh: Warehouse) -> None:
    assert apply_fact_changes(wh, "night-01", [fact("Q10")]) == (1, 0)
    assert apply_fact_changes(wh, "night-01", [fact("Q10")]) == (0, 0)
    assert apply_fact_changes(wh, "night-02", [fact("Q20")], [("Q1", "P19", "Q10")]) == (1, 1)
    assert apply_fact_changes(wh, "night-02", [fact("Q20")], [("Q1", "P19", "Q10")]) == (0, 0)
    assert apply_fact_changes(wh, "night-01", [fact("Q10")]) == (0, 0)
    assert len(wh.query("SELECT * FROM facts")) == 2


def test_an_earlier_night_cannot_be_changed_behind_a_later_one(wh: Warehouse) -> None:
    register(wh, ["night-01", "night-02"])
    apply_fact_changes(wh, "night-02", [fact("Q10")])
    with pytest.raises(Conflict, match="night night-01 cannot be applied behind it"):
        apply_fact_changes(wh, "night-01", [fact("Q20")])
    assert objects(wh, "night-02") == ["Q10"]


def test_a_fact_believed_already_is_left_as_it_is(wh: Warehouse) -> None:
    apply_fact_changes(wh, "night-01", [fact("Q10")])
    assert apply_fact_changes(wh, "night-02", [fact("Q10", source="another")]) == (0, 0)


def test_facts_without_ids_are_told_apart_by_their_labels(wh: Warehouse) -> None:
    text = [
        Fact(subject_id="", subject=name, relation="P19", object_id="", object="Oslo", source="test") for name in ("Ada", "Bo")
    ]
    assert apply_fact_changes(wh, "night-01", text) == (2, 0)
    assert apply_fact_changes(wh, "night-02", [], [("Bo", "P19", "Oslo")]) == (0, 1)
    assert facts_as_of(wh, "night-02").subject.tolist() == ["Ada"]


def test_a_triple_both_added_and_ended_is_an_error(wh: Warehouse) -> None:
    with pytest.raises(ValueError, match="both adds and ends"):
        apply_fact_changes(wh, "night-01", [fact("Q10")], [("Q1", "P19", "Q10")])


def test_facts_as_a_frame_may_bring_rank_statement_and_revision(wh: Warehouse) -> None:
    frame = pd.DataFrame([fact("Q10", valid_from=NOON).model_dump(), fact("Q20").model_dump()])
    frame = frame.assign(rank=["preferred", None], statement_id=["S", None], revision=[2_300_000_001, None])
    apply_fact_changes(wh, "night-01", frame)
    rows = wh.rows('SELECT "rank", statement_id, revision, valid_from FROM facts ORDER BY object_id')
    assert rows == [
        {"rank": "preferred", "statement_id": "S", "revision": 2_300_000_001, "valid_from": NOON},
        {"rank": "normal", "statement_id": None, "revision": None, "valid_from": None},
    ]


# ---------------------------------------------------------------- a night's records


def test_records_come_back_as_received_and_in_order(wh: Warehouse) -> None:
    records = [update("z"), update("a", raw='{"broken": '), update("m", raw="\x00 é 漢")]
    assert receive(wh, records) == 3
    assert updates_of(wh, NIGHT) == records


def test_records_may_come_from_a_generator(wh: Warehouse) -> None:
    assert receive(wh, (update(name) for name in "ab")) == 2
    assert [record.record_id for record in updates_of(wh, NIGHT)] == ["a", "b"]


def test_receiving_a_night_again_adds_nothing(wh: Warehouse) -> None:
    receive(wh, [update("a"), update("b")])
    assert receive(wh, [update("a"), update("b"), update("b")]) == 0
    assert receive(wh, [update("c", "night-02"), update("a")]) == 1
    assert nights(wh) == ["night-01", "night-02"]


@pytest.mark.parametrize("at_once", [True, False])
def test_one_record_id_for_two_texts_is_two_records(wh: Warehouse, at_once: bool) -> None:
    first, second = [update("a", raw="one")], [update("b"), update("a", raw="two")]
    if not at_once:
        receive(wh, first)
    receive(wh, first + second if at_once else second)
    found = {r.record_id: r.raw for r in updates_of(wh, NIGHT)}
    (later,) = (name for name in found if name.startswith("a~"))
    assert (found["a"], found[later], set(found)) == ("one", "two", {"a", "b", later})
    assert receive(wh, first + second) == 0


def test_half_a_surrogate_pair_is_refused_by_name(wh: Warehouse) -> None:
    with pytest.raises(WarehouseError, match="'bad' of source 'recorded'"):
        receive(wh, [update("good"), update("bad", raw="\ud800")])
    assert updates_of(wh, NIGHT) == []


def test_a_ten_megabyte_record_is_kept(wh: Warehouse) -> None:
    receive(wh, [update("a", raw="x" * 10_000_000)])
    assert len(updates_of(wh, NIGHT)[0].raw) == 10_000_000


def test_verdicts_and_requests_come_back_equal(wh: Warehouse) -> None:
    requests = intake(wh, "b", "a")
    assert requests_of(wh, NIGHT) == requests
    assert verdicts_of(wh, NIGHT) == [verdict("rec-b", "req-b"), verdict("rec-a", "req-a")]
    assert requests_by_id(wh, ["req-a", "req-b"]) == requests[::-1]


def test_recording_verdicts_again_adds_nothing(wh: Warehouse) -> None:
    requests = intake(wh, "a")
    assert record_verdicts(wh, NIGHT, "recorded", [verdict("rec-a", "req-a")], requests) == 0


def test_a_recorded_verdict_does_not_change(wh: Warehouse) -> None:
    intake(wh, "a")
    with pytest.raises(Conflict, match=r"'rec-a' of 'recorded' was judged accept already and is now judged reject"):
        record_verdicts(wh, NIGHT, "recorded", [verdict("rec-a")], [])


def test_a_request_id_cannot_be_used_for_other_content(wh: Warehouse) -> None:
    intake(wh, "a")
    receive(wh, [update("rec-b")])
    with pytest.raises(Conflict, match="'req-a' is there already"):
        record_verdicts(wh, NIGHT, "recorded", [verdict("rec-b", "req-a")], [request("req-a", "Paris")])
    assert len(verdicts_of(wh)) == 1


def test_a_verdict_on_an_unknown_record_or_request_stores_nothing(wh: Warehouse) -> None:
    receive(wh, [update("rec-a")])
    with pytest.raises(NotFound, match="'rec-x'"):
        record_verdicts(wh, NIGHT, "recorded", [verdict("rec-x")], [request("req-a")])
    with pytest.raises(NotFound, match="'req-x'"):
        record_verdicts(wh, NIGHT, "recorded", [verdict("rec-a", "req-x")], [request("req-a")])
    assert requests_of(wh, NIGHT) == []


def test_a_missing_request_is_named(wh: Warehouse) -> None:
    with pytest.raises(NotFound, match="'req-x'"):
        requests_by_id(wh, ["req-x"])


def test_the_digest_of_a_request_does_not_depend_on_the_zone_of_its_time() -> None:
    there = request("a").model_copy(update={"received_at": NOON.astimezone(timezone(timedelta(hours=9)))})
    naive = request("a").model_copy(update={"received_at": datetime(2026, 10, 1, 12)})
    later = request("a").model_copy(update={"received_at": datetime(2026, 10, 1, 13, tzinfo=UTC)})
    assert request_digest(there) == request_digest(naive) == request_digest(request("a")) != request_digest(later)


# ---------------------------------------------------------------- what else is known of a subject


def test_a_request_names_the_other_relations_that_are_believed_of_its_subject(wh: Warehouse) -> None:
    rows = [fact("Q10"), fact("Q11", relation="P27"), fact("Q12", relation="P20"), fact("Q13", relation="P20"),
            fact("Q14", relation="P26"), fact("Q15", relation="P22"),
            fact("Q16", subject="Q2", relation="P103")]  # fmt: skip
    ranks = ["deprecated" if row.relation == "P26" else "normal" for row in rows]
    apply_fact_changes(wh, "night-00", pd.DataFrame([row.model_dump() for row in rows]).assign(rank=ranks))
    apply_fact_changes(wh, NIGHT, [], [("Q1", "P22", "Q15")])
    (by_id,) = with_other_relations(wh, [request("a")])
    assert by_id.other_relations == ("P20", "P27")
    (by_label,) = with_other_relations(wh, [request("a").model_copy(update={"subject_id": ""})])
    assert by_label.other_relations == ("P103", "P20", "P27")
    (unheard,) = with_other_relations(wh, [request("a").model_copy(update={"subject_id": "Q99"})])
    assert unheard.other_relations == ()
    assert with_other_relations(wh, []) == []


def test_a_request_without_other_relations_keeps_its_old_digest() -> None:
    assert request_digest(request("a")) == "b1da32d118f310374408b763d8af0588507018a11cfca20016dd79fdf6dd8f3b"
    assert request_digest(request("a").model_copy(update={"other_relations": ("P20",)})) != request_digest(request("a"))
