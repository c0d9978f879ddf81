"""The note of a night or a revert: nested in memory, and on disk as homes of earlier releases have it."""

from __future__ import annotations

import json

from tasks.candidate import Candidate, TakenOut
from tasks.isolation.culprits import Isolated
from tasks.isolation.group_testing import Isolation
from warehouse.digests import canonical_json

#: `edited.json` of a revert, as it was written when its fields stood among the night's own.
REVERT = (
    b'{"base_digest":"b","config_digest":"c","edit_seconds":0.5,"edited":["r2"],"editor":"grace","joined":[],'
    b'"measured":["r3"],"new_patches":["p2"],"night":"revert-1","parent":"above","parent_patches":["p1"],"patch_bytes":7,'
    b'"reason":"the source took it back","remade":["e2"],"reverted":["e1"],"right_after":[],"skipped":[["r9","no_op"]]}'
)


def test_the_note_of_an_earlier_release_is_read_and_written_again_byte_for_byte() -> None:
    done = Candidate.model_validate_json(REVERT)
    wanted = TakenOut(reverted=("e1",), remade=("e2",), measured=("r3",), reason="the source took it back")
    assert done.revert == wanted
    assert canonical_json(done) == REVERT


def test_a_note_from_before_there_were_reverts_is_read() -> None:
    old = {k: v for k, v in json.loads(REVERT).items() if k not in {*TakenOut.model_fields, "joined"}}
    done = Candidate.model_validate_json(json.dumps(old))
    assert (done.revert, done.joined, done.edited) == (TakenOut(), (), ("r2",))


def test_the_note_is_as_flat_inside_another_record() -> None:
    isolation = Isolation(culprits=(), unexplored=(), kept=("r2",), evaluations=1, exact=True, smallest=True)
    found = Isolated(isolation=isolation, culprits=(), rest=Candidate.model_validate_json(REVERT))
    held = json.loads(canonical_json(found))
    assert canonical_json(held["rest"]) == REVERT
    assert Isolated.model_validate_json(canonical_json(found)) == found
