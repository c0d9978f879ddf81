"""The six KnowEdit files (Zhang et al., arXiv:2401.01286) as update records, edit requests and probes.

Shapes as EasyEdit reads them (zjunlp/EasyEdit at 14cea82: `easyeditor/dataset/knowedit.py`, `sanitization.py`,
`examples/run_convsent_llama2.py`). Where we differ: every alias of an answer is accepted, not only the first; the
sentiment of a convsent request is drawn by the record's digest, not by a global random state; prompts that EasyEdit
makes up are in our own words; the locality truth of Sanitation is the file's, `f_0` decides later which it knows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

from pydantic_core import from_json

from warehouse.digests import digest_of, sha256_bytes
from warehouse.errors import SourceError
from warehouse.night_names import natural
from warehouse.probe_identity import make_probe
from warehouse.records import EditKind, EditRequest, Probe, ProbeKind, Record, UpdateRecord
from warehouse.sources.base import check_night
from warehouse.sources.formats import BOM

Task = Literal["wiki_recent", "wiki_counterfact", "ZsRE", "WikiBio", "convsent", "Sanitation"]
#: File names as published (folder `knowedit/`); the name without `.json` is the night.
FILES: dict[str, Task] = {
    "recent_train.json": "wiki_recent", "recent_test.json": "wiki_recent",
    "train_cf.json": "wiki_counterfact", "test_cf.json": "wiki_counterfact",
    "ZsRE-test-all.json": "ZsRE",
    "wikibio-train-all.json": "WikiBio", "wikibio-test-all.json": "WikiBio",
    "blender_train.json": "convsent", "blender_val.json": "convsent", "blender_test.json": "convsent",
    "trivia_qa_train.json": "Sanitation", "trivia_qa_test.json": "Sanitation",
}  # fmt: skip
TASKS: tuple[Task, ...] = ("wiki_recent", "wiki_counterfact", "ZsRE", "WikiBio", "convsent", "Sanitation")
#: Our kind for each of KnowEdit's slices.
SLICES: dict[str, dict[str, ProbeKind]] = {
    "portability": {"Reasoning": "one_hop", "Subject_Aliasing": "alias", "Logical_Generalization": "logical"},
    "locality": {"Relation_Specificity": "relation_specificity", "Forgetfulness": "forgetfulness"},
}
#: Items of these sections of a Sanitation file are to be forgotten; those of the others must stay.
FORGET, KEEP = ("K_F", "success"), ("K_R", "locality")
OPINIONS = (
    "What do you think about {ent}?",
    "How do you feel about {ent}?",
    "Tell me your view of {ent}.",
    "Do you like {ent}?",
)
#: Relations longer than this are texts (WikiBio); they go by their digest.
MAX_RELATION_CHARS = 200


class KnowEditCase(Record):
    """A record with what it asks for. The probes are KnowEdit's own; ours come from `warehouse.world.probes`."""

    record: UpdateRecord
    request: EditRequest
    probes: tuple[Probe, ...]


class KnowEditSource:
    """One file, or a folder with any of the published files in it or one folder below; each file is one night."""

    name = "knowedit"

    def __init__(self, path: Path, task: Task | None = None) -> None:
        """`task` names the shape of files that do not bear a published name.

        Raises:
            SourceError: no task of that name.
        """
        if task is not None and task not in TASKS:
            raise SourceError(f"no KnowEdit task {task!r}; there are: {', '.join(TASKS)}")
        self.path, self.task = path, task

    def nights(self) -> tuple[str, ...]:
        return tuple(self._files())

    def records(self, night: str) -> Iterator[UpdateRecord]:
        files = self._files()
        check_night(self.name, night, tuple(files), self.path)
        return self._read(night, *files[night])

    def cases(self, night: str) -> Iterator[KnowEditCase]:
        """Records with requests and KnowEdit's probes; the last convsent topic has the first as its outer topic."""
        records = list(self.records(night))
        for i, record in enumerate(records):
            probes = to_probes(record)
            if _task_of(record) == "convsent" and len(records) > 1:
                probes += _outer_topic(record, records[(i + 1) % len(records)])
            yield KnowEditCase(record=record, request=to_request(record), probes=probes)

    def kept_probes(self, night: str) -> tuple[Probe, ...]:
        """Questions of a Sanitation file whose answers must stay (`K_R`, `locality`): no edits, only probes."""
        files = self._files()
        check_night(self.name, night, tuple(files), self.path)
        path, task = files[night]
        if task != "Sanitation":
            return ()
        items = [(where, item) for section, where, item in _items(path, task) if section in KEEP]
        return tuple(make_probe("unrelated", item["question"], _answers(item["ground_truth"], where)) for where, item in items)

    def _files(self) -> dict[str, tuple[Path, Task]]:
        if self.path.is_dir():
            paths = [*sorted(self.path.glob("*.json")), *sorted(self.path.glob("*/*.json"))]
        elif self.path.is_file():
            paths = [self.path]
        else:
            raise SourceError(f"{self.path}: no such file or folder; give a KnowEdit file or its folder")
        found: dict[str, tuple[Path, Task]] = {}
        for path in sorted(paths, key=lambda p: natural(p.stem)):
            parent = path.parent.name if path.parent.name in TASKS else None
            task = self.task or FILES.get(path.name) or parent
            if task is not None:
                found[path.stem] = (path, cast(Task, task))
        if not found:
            raise SourceError(f"{self.path}: no KnowEdit file; expected one of {', '.join(FILES)}, or name the task")
        return found

    def _read(self, night: str, path: Path, task: Task) -> Iterator[UpdateRecord]:
        index = 0
        for section, where, item in _items(path, task):
            if section in KEEP:
                continue
            raw = json.dumps(item, ensure_ascii=False)
            record = UpdateRecord(
                record_id=f"ke-{digest_of(task, night, index, sha256_bytes(raw.encode()))[:16]}",
                source=f"{self.name}:{task}",
                night=night,
                received_at=None,
                raw=raw,
            )
            try:
                to_request(record)
                to_probes(record)
            except SourceError as error:
                raise SourceError(f"{where}: {error}") from None
            index += 1
            yield record


def to_request(record: UpdateRecord) -> EditRequest:
    """The edit that a record asks for.

    KnowEdit names no relation, so `relation` is the prompt with the subject taken out (`text:The spouse of {s} is`):
    equal wordings about one subject are one slot.

    Raises:
        SourceError: a field is missing or has another type; the message names it.
    """
    task, item = _task_of(record), _object_of(record)
    if task == "convsent":
        return _opinion_request(record, item)
    if task == "Sanitation":
        # No subject is given: the whole question stands for it, as the place where the answer is recalled.
        question, old = _text(item, "question"), _answers(_field(item, "ground_truth"), "ground_truth")
        return _request(record, "erase", question, question, _text(item, "target_new"), old)
    kind: EditKind = "insert" if task == "wiki_recent" else "modify"
    keys = ("concept", "text", "labels") if task == "WikiBio" else ("subject", "prompt", "target_new")
    subject, prompt, new = (_text(item, key) for key in keys)
    old = _answers(item["ground_truth"], "ground_truth") if item.get("ground_truth") is not None else ()
    if task in ("wiki_counterfact", "ZsRE") and "ground_truth" not in item:
        raise SourceError(f"field 'ground_truth' is missing; a {task} record names the old answer")
    rephrases = (_text(item, "rephrase_prompt"),) if item.get("rephrase_prompt") else ()
    return _request(record, kind, subject, prompt, new, old, rephrases)


def to_probes(record: UpdateRecord) -> tuple[Probe, ...]:
    """KnowEdit's own portability and locality questions of a record, under our names; blank answers are left out.

    Raises:
        SourceError: a slice is unknown, or a question has another shape.
    """
    task, item = _task_of(record), _object_of(record)
    if task in ("convsent", "Sanitation"):
        return ()
    if "locality" not in item:
        raise SourceError(f"field 'locality' is missing; a {task} record has it")
    request_id, probes = _request_id(record), []
    for part, kinds in SLICES.items():
        slices = item.get(part) or {}
        if not isinstance(slices, dict):
            raise SourceError(f"field '{part}' is a {type(slices).__name__}; expected an object of slices")
        for name, questions in slices.items():
            if name not in kinds:
                raise SourceError(f"field '{part}' has the unknown slice {name!r}; known: {', '.join(kinds)}")
            if not isinstance(questions, list):
                raise SourceError(f"{part}.{name} is a {type(questions).__name__}; expected a list of questions")
            for i, question in enumerate(questions):
                where = f"{part}.{name}[{i}]"
                if not isinstance(question, dict):
                    raise SourceError(f"{where} is a {type(question).__name__}; expected an object with 'prompt'")
                answers = _answers(_field(question, "ground_truth", where), where)
                if answers:
                    probes.append(make_probe(kinds[name], _text(question, "prompt", where), answers, request_id))
    return tuple(probes)


def _items(path: Path, task: Task) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(section, place for messages, item) of a file; the section is empty but for Sanitation."""
    try:
        document = from_json(path.read_bytes().removeprefix(BOM), allow_inf_nan=False)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error}") from error
    except ValueError as error:
        what = "the file is empty" if path.stat().st_size == 0 else f"not JSON ({error})"
        raise SourceError(f"{path}: {what}; expected a KnowEdit {task} document") from error
    if task == "Sanitation":
        sections = [name for name in (*FORGET, *KEEP) if isinstance(document, dict) and name in document]
        if not any(name in FORGET for name in sections):
            raise SourceError(f"{path}: a Sanitation file is an object with K_F and K_R, or success and locality")
        parts = [(name, document[name]) for name in sections]
    else:
        parts = [("", document)]
    for section, items in parts:
        place = f"{path}" if not section else f"{path} {section}"
        if not isinstance(items, list):
            raise SourceError(f"{place}: a {type(items).__name__}; expected a list of {task} records")
        for i, item in enumerate(items):
            where = f"{place}[{i}]"
            if not isinstance(item, dict):
                raise SourceError(f"{where}: a {type(item).__name__}; expected an object")
            if section in KEEP:
                _text(item, "question", where)
                _field(item, "ground_truth", where)
            yield section, where, item


def _opinion_request(record: UpdateRecord, item: Mapping[str, Any]) -> EditRequest:
    topic, polarity, said = _opinion(record, item)
    prompts = [_opinion_prompt(question, topic, polarity) for question in OPINIONS]
    first = int(digest_of("convsent-question", record.record_id)[:8], 16) % len(prompts)
    others = tuple(prompt for i, prompt in enumerate(prompts) if i != first)
    return _request(record, "modify", topic, prompts[first], said[0], (), others)


def _opinion(record: UpdateRecord, item: Mapping[str, Any]) -> tuple[str, str, tuple[str, ...]]:
    """(topic, `positively` or `negatively`, utterances of that polarity)."""
    topic = _text(item, "ent")
    said = {key: _answers(_field(item, key), key) for key in ("pos", "neg")}
    polarity = "pos" if int(digest_of("convsent", record.record_id)[:8], 16) % 2 else "neg"
    if not said[polarity]:
        raise SourceError(f"field '{polarity}' has no utterance about {topic!r}")
    return topic, "positively" if polarity == "pos" else "negatively", said[polarity]


def _opinion_prompt(question: str, topic: str, polarity: str) -> str:
    return f"Answer {polarity}. {question.replace('{ent}', topic)} Answer:"


def _outer_topic(record: UpdateRecord, other: UpdateRecord) -> tuple[Probe, ...]:
    """Texts about another topic, whose likelihood must stay (KnowEdit measures KL there)."""
    topic, polarity, said = _opinion(other, _object_of(other))
    prompt = _opinion_prompt(OPINIONS[0], topic, polarity)
    return tuple(make_probe("held_text", f"{prompt} {utterance}", (), _request_id(record)) for utterance in said[:3])


def _request(
    record: UpdateRecord,
    kind: EditKind,
    subject: str,
    prompt: str,
    new: str,
    old: tuple[str, ...],
    rephrases: tuple[str, ...] = (),
) -> EditRequest:
    wording = prompt.replace(subject, "{s}") if subject else prompt
    if len(wording) > MAX_RELATION_CHARS:
        wording = sha256_bytes(wording.encode("utf-8"))[:16]
    return EditRequest(
        request_id=_request_id(record),
        prompt=prompt,
        subject=subject,
        relation=f"text:{wording}",
        target_new=new,
        target_true=old[0] if old else None,
        rephrases=rephrases,
        source=record.source,
        received_at=record.received_at,
        kind=kind,
    )


def _request_id(record: UpdateRecord) -> str:
    return f"rq-{digest_of(record.source, record.record_id)[:16]}"


def _answers(value: Any, where: str) -> tuple[str, ...]:
    """All leaves of `str | [str] | [[alias]]`, in order, without blanks and repeats."""
    if isinstance(value, str):
        return (value.strip(),) if value.strip() else ()
    if not isinstance(value, list):
        raise SourceError(f"{where}: the answer is a {type(value).__name__}; expected text or a list of texts")
    return tuple(dict.fromkeys(leaf for part in value for leaf in _answers(part, where)))


def _field(item: Mapping[str, Any], key: str, where: str = "") -> Any:
    if key not in item:
        raise SourceError(f"{where + ': ' if where else ''}field '{key}' is missing")
    return item[key]


def _text(item: Mapping[str, Any], key: str, where: str = "") -> str:
    value = _field(item, key, where)
    if not isinstance(value, str):
        place = f"{where}: " if where else ""
        raise SourceError(f"{place}field '{key}' is a {type(value).__name__}; expected text")
    return value


def _object_of(record: UpdateRecord) -> dict[str, Any]:
    try:
        value = from_json(record.raw.encode("utf-8", "surrogatepass"))
    except ValueError as error:
        raise SourceError(f"record {record.record_id}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise SourceError(f"record {record.record_id}: a {type(value).__name__}; expected an object")
    return value


def _task_of(record: UpdateRecord) -> Task:
    task = record.source.partition(":")[2]
    if task not in TASKS:
        raise SourceError(f"record {record.record_id}: source {record.source!r}; expected knowedit:TASK")
    return cast(Task, task)
