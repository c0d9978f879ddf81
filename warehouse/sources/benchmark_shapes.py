"""The published shapes of editing benchmarks: how a row of each is told by its fields, and what it asks for.

Read from the public descriptions and loaders: zsRE and CounterFact as kmeng01/rome (`dsets/`) and zjunlp/EasyEdit
(`easyeditor/dataset/`) load them, MQuAKE from princeton-nlp/MQuAKE and henryzhongsc/MQuAKE-Remastered, RippleEdits from
edenbiran/RippleEdits, WikiBigEdit from ExplainableML/WikiBigEdit, WikiFactDiff from Orange-OpenSource/WikiFactDiff, QAEdit
from its authors' editing script. Fields that say nothing about an edit or a question (`case_id`, `pred`, `cond`,
`generation_prompts`, `orig`) are not read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from warehouse.errors import SourceError
from warehouse.records import ProbeKind
from warehouse.reference.world import UNKNOWN
from warehouse.sources.benchmark_fields import (
    Asked,
    Question,
    answers,
    cloze,
    entries,
    field,
    filled,
    maybe_text,
    questions,
    text,
    texts,
)
from warehouse.sources.ripple import read_ripple

Row = Mapping[str, Any]
Reader = Callable[[Row], list[Asked]]

#: Our kind for each name of a slice, in lower case; a name that is not here is a row's fault, not a loss.
PORTABILITY: dict[str, ProbeKind] = {
    "reasoning": "one_hop", "one_hop": "one_hop", "onehop": "one_hop", "mhop": "one_hop", "multi_hop": "one_hop",
    "subject_aliasing": "alias", "subject_replace": "alias", "synonym": "alias", "alias": "alias",
    "logical_generalization": "logical", "inverse_relation": "logical", "personas": "rephrase",
}  # fmt: skip
LOCALITY: dict[str, ProbeKind] = {
    "relation_specificity": "relation_specificity", "other_attribution": "relation_specificity",
    "forgetfulness": "forgetfulness", "neighborhood": "neighbourhood", "neighbourhood": "neighbourhood",
    "distracting_neighbor": "neighbourhood", "distracting": "neighbourhood", "locality": "unrelated", "unrelated": "unrelated",
}  # fmt: skip


def slices(value: Any, kinds: Mapping[str, ProbeKind], where: str) -> list[Question]:
    """Questions of an object of slices, `{name: questions}`.

    Raises:
        SourceError: an unknown slice, or a question of another shape.
    """
    if value in (None, {}, []):
        return []
    if not isinstance(value, dict):
        raise SourceError(f"field '{where}' is a {type(value).__name__}; expected an object of slices")
    found: list[Question] = []
    for name, asked in value.items():
        kind = kinds.get(name.casefold().replace(" ", "_"))
        if kind is None:
            raise SourceError(f"field '{where}' has the unknown slice {name!r}; known: {', '.join(kinds)}")
        if asked:
            found += questions(asked, kind, f"{where}.{name}")
    return found


def _pair(row: Row, kind: ProbeKind, prompt: tuple[str, ...], truth: tuple[str, ...]) -> list[Question]:
    """A question that stands in two fields of the row; none where the prompt is missing.

    Raises:
        SourceError: the prompt has no answer.
    """
    asked = maybe_text(row, *prompt)
    return [] if asked is None else [(kind, asked, answers(field(row, *truth), truth[0]))]


def _portability(row: Row) -> list[Question]:
    """Slices, or EasyEdit's one-hop question (`New Question`, `New Answer`)."""
    value = row.get("portability")
    if isinstance(value, dict) and "New Question" in value:
        return [("one_hop", text(value, "New Question"), answers(field(value, "New Answer"), "New Answer"))]
    return slices(value, PORTABILITY, "portability")


def _zsre(row: Row) -> list[Asked]:
    """MEND's way and EasyEdit's: the edit is towards `alt`, and `answers` says what was true."""
    old = texts(row, "answers")
    asked = (*_pair(row, "unrelated", ("loc",), ("loc_ans",)), *_portability(row))
    return [
        Asked(
            text(row, "src"),
            text(row, "subject"),
            text(row, "alt"),
            old[0] if old else None,
            texts(row, "rephrase"),
            questions=asked,
        )
    ]


def _zsre_answers(row: Row) -> list[Asked]:
    """ROME's way: the edit is towards the first of `answers`, and nothing is said of what was true."""
    right = answers(field(row, "answers"), "answers")
    if not right:
        raise SourceError("field 'answers' is blank")
    asked = (*_pair(row, "unrelated", ("loc",), ("loc_ans",)), *_portability(row))
    return [
        Asked(text(row, "src"), text(row, "subject"), right[0], None, texts(row, "rephrase"), kind="insert", questions=asked)
    ]


def _side(rewrite: Row, name: str) -> tuple[str, str]:
    """(label, id) of `target_new` or `target_true`: an object, or fields with `_str` and `_id` behind the name."""
    value = rewrite.get(name)
    if isinstance(value, dict):
        return text(value, "str", "label"), maybe_text(value, "id") or ""
    return text(rewrite, f"{name}_str", name), maybe_text(rewrite, f"{name}_id") or ""


def _rewrite(rewrite: Any) -> Asked:
    if not isinstance(rewrite, dict):
        raise SourceError(f"field 'requested_rewrite' has a {type(rewrite).__name__}; expected an object")
    subject = text(rewrite, "subject")
    new, new_id = _side(rewrite, "target_new")
    known = any(rewrite.get(name) for name in ("target_true", "target_true_str"))
    old = _side(rewrite, "target_true")[0] if known else None
    # ROME's own zsRE writes an end mark where the old answer is not known.
    old = None if old == "<|endoftext|>" else old
    return Asked(
        filled(text(rewrite, "prompt"), subject),
        subject,
        new,
        old,
        texts(rewrite, "question"),
        relation=maybe_text(rewrite, "relation_id") or "",
        new_id=new_id,
    )


def _counterfact(row: Row) -> list[Asked]:
    """Neighbours keep `target_true`; `attribute_prompts` are about others whose answer is `target_new` already."""
    edit = _rewrite(row["requested_rewrite"])
    asked: list[Question] = []
    for i, prompt in enumerate(entries(row, "neighborhood_prompts")):
        if isinstance(prompt, dict):
            place = f"neighborhood_prompts[{i}]"
            truth = field(prompt, "expected_object", "target_true", "target", "ground_truth")
            asked.append(("neighbourhood", text(prompt, "prompt"), answers(truth, place)))
        elif edit.old is not None:
            asked.append(("neighbourhood", text({"neighborhood_prompts": prompt}, "neighborhood_prompts"), (edit.old,)))
        else:
            raise SourceError("field 'neighborhood_prompts' has prompts, but no 'target_true' says their answer")
    asked.extend(("neighbourhood", prompt, (edit.new,)) for prompt in texts(row, "attribute_prompts"))
    asked += _portability(row)
    return [_with(edit, texts(row, "paraphrase_prompts"), asked)]


def _with(edit: Asked, rephrases: tuple[str, ...], asked: list[Question]) -> Asked:
    return replace(edit, rephrases=(*edit.rephrases, *rephrases), questions=tuple(asked))


def _mquake(row: Row) -> list[Asked]:
    """Every rewrite of the case is an edit of its own; the multi-hop questions belong to them all.

    Single hops behind the edit that no rewrite of the case states are facts that must stay.
    """
    edits = [_rewrite(rewrite) for rewrite in row["requested_rewrite"]]
    if not edits:
        raise SourceError("field 'requested_rewrite' is an empty list; a case edits at least one fact")
    hops = entries(row, "questions")
    if not hops:
        raise SourceError("field 'questions' is missing or empty; a MQuAKE case asks multi-hop questions")
    right = answers([field(row, "new_answer"), row.get("new_answer_alias") or []], "new_answer")
    if not right:
        raise SourceError("field 'new_answer' is blank")
    asked: list[Question] = [("one_hop", text({"questions": one}, "questions"), right) for one in hops]
    stated = {prompt for edit in edits for prompt in (edit.prompt, *edit.rephrases)}
    for i, hop in enumerate(entries(row, "new_single_hops")):
        if not isinstance(hop, dict):
            raise SourceError(f"field 'new_single_hops[{i}]' is a {type(hop).__name__}; expected an object")
        prompt = text(hop, "question", "cloze")
        if not {prompt, maybe_text(hop, "cloze")} & stated:
            truth = answers([field(hop, "answer"), hop.get("answer_alias") or []], f"new_single_hops[{i}]")
            asked.append(("unrelated", prompt, truth))
    return [_with(edit, (), asked) for edit in edits]


def _easyedit(row: Row) -> list[Asked]:
    """`counterfact-edit.json` (flat), `ZsRE-test-all.json` and its like (slices), by what is there."""
    old = texts(row, "ground_truth", "target_true")
    asked = _pair(row, "neighbourhood", ("locality_prompt",), ("locality_ground_truth",))
    asked += slices(row.get("locality"), LOCALITY, "locality")
    asked += _pair(row, "one_hop", ("portability_prompt",), ("portability_ground_truth",))
    asked += _portability(row)
    subject = text(row, "subject")
    return [
        Asked(
            filled(text(row, "prompt"), subject),
            subject,
            text(row, "target_new"),
            old[0] if old else None,
            texts(row, "rephrase_prompt", "rephrase_prompts", "rephrase"),
            kind="modify" if old else "insert",
            questions=tuple(asked),
        )
    ]


def _qaedit(row: Row) -> list[Asked]:
    asked: list[Question] = []
    if row.get("locality"):
        asked += questions(row["locality"], "unrelated", "locality")
    old = texts(row, "ground_truth", "answers")
    return [
        Asked(
            text(row, "prompt"),
            text(row, "subject"),
            text(row, "target"),
            old[0] if old else None,
            texts(row, "rephrase"),
            kind="modify" if old else "insert",
            questions=tuple(asked),
        )
    ]


def _wikibigedit(row: Row) -> list[Asked]:
    new = text(row, "ans", "alt")
    old = texts(row, "ground_truth")
    asked = _pair(row, "neighbourhood", ("loc",), ("loc_ans",))
    asked += _pair(row, "one_hop", ("mhop",), ("mhop_ans",))
    persona = maybe_text(row, "personas", "genv2_mixed")
    if persona is not None:
        asked.append(("rephrase", persona, (new,)))
    return [
        Asked(
            text(row, "update", "src"),
            text(row, "subject"),
            new,
            old[0] if old else None,
            texts(row, "rephrase"),
            kind="modify" if old else "insert",
            questions=tuple(asked),
        )
    ]


def _wikifactdiff(row: Row) -> list[Asked]:
    """A new value beside an obsolete one replaces it, a new one alone is an insertion, an obsolete one alone an erasure."""
    subject, relation = field(row, "subject"), row.get("relation") or {}
    objects = field(row, "objects")
    if not isinstance(subject, dict) or not isinstance(relation, dict) or not isinstance(objects, list):
        raise SourceError("fields 'subject', 'relation' and 'objects' are objects and a list of objects")
    by_decision: dict[str, list[Row]] = {"new": [], "obsolete": []}
    for i, one in enumerate(objects):
        if not isinstance(one, dict):
            raise SourceError(f"field 'objects[{i}]' is a {type(one).__name__}; expected an object")
        by_decision.setdefault(text(one, "decision"), []).append(one)
    new, old = by_decision["new"], by_decision["obsolete"]
    if not new and not old:
        raise SourceError("no object is new or obsolete; the row asks for no edit")
    if len(new) > 1 or (not new and len(old) > 1):
        raise SourceError(f"the row has {len(new)} new and {len(old)} obsolete objects; a request states one")
    prompt = cloze(text(row, "update_prompt"), "update_prompt")
    asked: list[Question] = []
    for i, near in enumerate(entries(row, "neighborhood")):
        place = f"neighborhood[{i}]"
        if not isinstance(near, dict) or not isinstance(near.get("objects"), list):
            raise SourceError(f"field '{place}': expected an object with a list 'objects'")
        right: dict[str, list[str]] = {}
        for one in near["objects"]:
            if not isinstance(one, dict):
                raise SourceError(f"field '{place}.objects' has a {type(one).__name__}; expected an object")
            label = one["object"] if isinstance(one.get("object"), dict) else one
            right.setdefault(cloze(text(one, "prompt"), f"{place}.prompt"), []).append(text(label, "label"))
        asked.extend(("neighbourhood", near_prompt, tuple(dict.fromkeys(labels))) for near_prompt, labels in right.items())
    rephrases = tuple(cloze(one, "generalization_prompts") for one in texts(row, "generalization_prompts"))
    return [
        Asked(
            prompt,
            text(subject, "label"),
            text(new[0], "label") if new else UNKNOWN,
            text(old[0], "label") if old else None,
            rephrases,
            maybe_text(relation, "id") or "",
            maybe_text(subject, "id") or "",
            (maybe_text(new[0], "id") or "") if new else "",
            "erase" if not new else "modify" if old else "insert",
            tuple(asked),
        )
    ]


#: How each format is read. `zsre-answers` has the fields of `zsre`: a setting has to name it.
READERS: dict[str, Reader] = {
    "zsre": _zsre, "zsre-answers": _zsre_answers, "counterfact": _counterfact, "mquake": _mquake, "ripple": read_ripple,
    "wikibigedit": _wikibigedit, "wikifactdiff": _wikifactdiff, "qaedit": _qaedit, "easyedit": _easyedit,
}  # fmt: skip


def format_of(row: Any) -> str | None:
    """Name of the format that a row's fields belong to, or None."""
    if not isinstance(row, dict):
        return None
    if "requested_rewrite" in row:
        return "mquake" if isinstance(row["requested_rewrite"], list) else "counterfact"
    if isinstance(row.get("edit"), dict):
        return "ripple"
    if "update_prompt" in row and "objects" in row:
        return "wikifactdiff"
    if ("update" in row and "ans" in row) or ("src" in row and ("mhop" in row or "genv2_mixed" in row)):
        return "wikibigedit"
    if "src" in row and "alt" in row:
        return "zsre"
    if "prompt" in row and "target" in row and "target_new" not in row:
        return "qaedit"
    return "easyedit" if "prompt" in row and "target_new" in row else None
