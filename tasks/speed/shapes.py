"""What a device does with a model of a size: edits, probes and memory on random weights of Llama's shape, no file needed."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from checks.predictor import Question
from editors.base import Corpus, Editor, Patch, Prepared, TrainingEdit
from editors.catalogue import editor_class
from editors.model import EditableModel
from editors.session import batch_of
from tasks.settings import EMBEDDED
from tasks.speed.memory import PeakMemory
from tasks.speed.untuned import costed_editor
from warehouse.digests import digest_of
from warehouse.errors import UsageError
from warehouse.records import EditRequest, Record
from warehouse.whole_files import write_whole

log = logging.getLogger(__name__)

#: Editors and how many edits they make at once, beside a single one.
EDITORS = {"ledger": 16, "r_rome": 8, "memit": 32, "ultraedit": 64, "ft_m": 8, "grace": 8}
FORMS = ("{} was born in the city of", "The birthplace of {} is", "{} first saw the light in", "The town where {} was born is",
         "{} comes from")  # fmt: skip
GIVEN = ("Anna", "Boris", "Clara", "Dmitri", "Elena", "Farid", "Greta", "Hugo")
FAMILY = ("Lindqvist", "Okafor", "Tanaka", "Moreau", "Silva", "Novak", "Haddad", "Keller", "Rossi", "Ivanova", "Mbeki",
          "Larsen", "Castro")  # fmt: skip
CITIES = ("Paris", "Tokyo", "Rome", "Cairo", "Lima", "Oslo")
TRAINING_FROM = 64


class ModelShape(Record):
    """Sizes of a Llama: widths of states and of the feed-forward, blocks, heads, heads of keys, tokens."""

    d_model: int
    d_mlp: int
    layers: int
    heads: int
    key_heads: int
    vocab: int


#: Llama 3.1 8B, Llama 3.2 1B (here with a head of its own), and one for a test.
SHAPES = {
    "8b": ModelShape(d_model=4096, d_mlp=14_336, layers=32, heads=32, key_heads=8, vocab=128_256),
    "1b": ModelShape(d_model=2048, d_mlp=8192, layers=16, heads=32, key_heads=8, vocab=128_256),
    "tiny": ModelShape(d_model=64, d_mlp=128, layers=6, heads=4, key_heads=2, vocab=8192),
}


class ShapeCost(Record):
    """One editor at one number of edits, or why it stopped.

    Attributes:
        prepare_s, edit_s, apply_s, rollback_s: seconds; of all edits together.
        peak_share: the most that stood beside the model while it edited, preparation in it, over the model's bytes.
        prepare_share: the same while it prepared.
    """

    editor: str
    edits: int
    prepare_s: float = 0.0
    edit_s: float = 0.0
    apply_s: float = 0.0
    rollback_s: float = 0.0
    peak_share: float = 0.0
    prepare_share: float = 0.0
    failed: str = ""


class ShapeResult(Record):
    """What a device did with one shape.

    Attributes:
        matmul_flops: of a square bf16 product, a second: what the device reaches here.
        matmul_share: of it that probing reached, counted as two operations a parameter and token.
        probe_share: memory beside the model while it was asked, over the model's bytes.
    """

    shape: str
    device: str
    machine: str
    model_bytes: int
    matmul_flops: float
    probes_per_s: float
    tokens_per_s: float
    matmul_share: float
    probe_share: float
    edits: tuple[ShapeCost, ...]
    environment: dict[str, str]
    created_at: datetime


def random_model(name: str, device: torch.device, seed: int = 0) -> EditableModel:
    """A bf16 model of a shape with random weights, made on the device, with the embedded model's tokenizer.

    Its digest is of its recipe, not of its weights, which nobody can have elsewhere.

    Raises:
        UsageError: no such shape.
    """
    if name not in SHAPES:
        raise UsageError(f"no shape {name!r}; there are {', '.join(SHAPES)}")
    shape = SHAPES[name]
    config = LlamaConfig(
        hidden_size=shape.d_model, intermediate_size=shape.d_mlp, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.key_heads, vocab_size=shape.vocab,
        max_position_embeddings=4096, bos_token_id=0, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    # As models of a folder are loaded.
    config._attn_implementation = "eager"
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), _default_dtype(torch.bfloat16), device:
        torch.manual_seed(seed)
        hf = LlamaForCausalLM(config)
    digest = digest_of("random", name, shape, str(device), seed)
    return EditableModel(hf, AutoTokenizer.from_pretrained(EMBEDDED), name=f"random-{name}", base_digest=digest)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def requests_of() -> list[EditRequest]:
    """A birthplace for each of 104 made-up people, in four wordings and one more that is only measured."""
    people = [f"{given} {family}" for given in GIVEN for family in FAMILY]
    return [
        EditRequest(
            request_id=f"shape-{i}", prompt=FORMS[0].format(who), subject=who, relation="P19", target_new=CITIES[i % 6],
            wordings=tuple(form.format(who) for form in FORMS[1:4]), rephrases=(FORMS[4].format(who),), source="shape",
        )
        for i, who in enumerate(people)
    ]  # fmt: skip


def corpus_of(requests: Sequence[EditRequest]) -> Corpus:
    """Four texts about each person, and the last people as training edits."""
    people = [r.subject for r in requests] * 4
    story = "A short piece of prose about {}, who travelled widely and wrote of rivers, tables and trains."
    texts = [f"{FORMS[i % 5].format(who)} {CITIES[i % 6]}. {story.format(who)}" for i, who in enumerate(people)]
    return Corpus(tuple(texts), tuple(TrainingEdit(r) for r in requests[TRAINING_FROM:]))


def measure_shape(
    name: str,
    device: torch.device,
    editors: Mapping[str, int] = EDITORS,
    probes: int | None = None,
    report: Callable[[str], None] = log.info,
) -> ShapeResult:
    """Make a model of the shape on the device and measure it; an editor that fails is written down, and the next one begins.

    Args:
        editors: name -> edits made at once, beside a single one.
        probes: how many are asked; None: 832 on CUDA, 64 elsewhere.
        report: called with a line for people as each part ends.

    Raises:
        UsageError: no such shape.
        UnknownEditor: no such editor.
    """
    for editor in editors:
        editor_class(editor)
    start = time.perf_counter()
    model = random_model(name, device)
    total, requests = model.num_bytes, requests_of()
    report(f"{name}: {total / 2**30:.2f} GiB of weights on {device}, made in {time.perf_counter() - start:.0f} s")
    flops = matmul_flops(device, 8192 if device.type == "cuda" else 512)
    count = probes or (832 if device.type == "cuda" else 64)
    questions = [Question(r.prompt, r.target_new) for r in requests for _ in range(8)][:count]
    model.score(questions[:8])
    with PeakMemory(device) as asked:
        seconds = _timed(device, lambda: model.score(questions))
    tokens = sum(len(model.tokenizer(q.prompt)["input_ids"]) + 1 for q in questions)
    share = 2 * sum(p.numel() for p in model.hf.parameters()) * tokens / seconds / flops
    report(f"{len(questions) / seconds:.0f} probes/s, {tokens / seconds:.0f} tokens/s, {share:.1%} of the matmul's rate")
    costs: list[ShapeCost] = []
    for editor, many in editors.items():
        for cost in edit_costs(model, editor, many, requests):
            costs.append(cost)
            report(_line(cost))
    return ShapeResult(
        shape=name, device=str(device), machine=machine_of(device), model_bytes=total, matmul_flops=flops,
        probes_per_s=len(questions) / seconds, tokens_per_s=tokens / seconds, matmul_share=share,
        probe_share=asked.rise / total, edits=tuple(costs),
        environment={"torch": version("torch"), "transformers": version("transformers"), "python": platform.python_version()},
        created_at=datetime.now(UTC),
    )  # fmt: skip


def edit_costs(model: EditableModel, name: str, many: int, requests: Sequence[EditRequest]) -> Iterator[ShapeCost]:
    """A single edit and `many` of them; where one fails, a row with the reason ends the editor's rows."""
    device, total = model.device, model.num_bytes
    corpus, count = corpus_of(requests), 0
    try:
        with PeakMemory(device) as before:
            editor, _ = costed_editor(name, model)
            start = time.perf_counter()
            prepared = editor.prepare(model, corpus)
            _wait(device)
            prepare_s = time.perf_counter() - start
        for count in (1, many):
            # The first edit loads code and the preparation.
            patches = _edited(model, editor, requests[-1:], prepared)
            with PeakMemory(device) as during:
                start = time.perf_counter()
                patches = _edited(model, editor, requests[:count], prepared)
                _wait(device)
                edit_s = time.perf_counter() - start
            apply_s = _timed(device, lambda patches=patches: [model.push(patch) for patch in patches])
            rollback_s = _timed(device, lambda: model.rollback(0))
            yield ShapeCost(
                editor=name, edits=count, prepare_s=prepare_s, edit_s=edit_s, apply_s=apply_s, rollback_s=rollback_s,
                peak_share=max(0, during.peak - before.start) / total, prepare_share=before.rise / total,
            )  # fmt: skip
    except Exception as error:  # one editor's failure, out of memory among them, is a line of the table
        model.rollback(0)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        log.debug("%s failed", name, exc_info=True)
        yield ShapeCost(editor=name, edits=count, failed=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _edited(model: EditableModel, editor: Editor, requests: Sequence[EditRequest], prepared: Prepared) -> list[Patch]:
    """One batch where the editor takes batches of this size, else edits of their own."""
    if editor.card.max_batch is not None and len(requests) > editor.card.max_batch:
        return editor.edit_each(model, requests, prepared)
    return [editor.edit(model, batch_of(requests), prepared)]


def matmul_flops(device: torch.device, size: int) -> float:
    """Operations a second of a square bf16 product."""
    left = torch.randn(size, size, device=device).bfloat16()
    for _ in range(3):
        torch.mm(left, left)
    rounds = 10
    return rounds * 2 * size**3 / _timed(device, lambda: [torch.mm(left, left) for _ in range(rounds)])


def machine_of(device: torch.device) -> str:
    """The name that people know the device by."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return f"{names[0] if names else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timed(device: torch.device, work: Callable[[], Any]) -> float:
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def _line(cost: ShapeCost) -> str:
    if cost.failed:
        return f"{cost.editor}: {cost.failed}"
    rate = f"{cost.edits} edits in {cost.edit_s:.2f} s, {cost.edits / cost.edit_s:.2f} edits/s"
    return f"{cost.editor}: {rate}, {cost.peak_share:.1%} of the model beside it; prepared in {cost.prepare_s:.1f} s"


def shape_markdown(result: ShapeResult) -> str:
    """The result as a page: the machine, what it reached, and a row for each editor and number of edits."""
    versions = ", ".join(f"{name} {value}" for name, value in result.environment.items())
    lines = [
        f"# Shape {result.shape} on {result.machine}",
        "",
        f"`errata device --shape {result.shape} --device {result.device}`, {result.created_at:%Y-%m-%d}, {versions}.",
        f"Random bf16 weights of Llama's shape, {result.model_bytes / 2**30:.2f} GiB; numbers of editors that nobody tuned, so "
        "this says what edits cost, not how well they hold. Memory is what stood beside the model, as a share of it "
        "(docs/PERFORMANCE.md).",
        "",
        f"- bf16 product: {result.matmul_flops / 1e12:.3g} TFLOP/s",
        f"- probes: {result.probes_per_s:.3g}/s, {result.tokens_per_s:.3g} tokens/s, {result.matmul_share:.1%} of the "
        f"product's rate, {result.probe_share:.1%} of the model in memory",
        "",
        "| editor | edits | edits/s | memory | preparation | memory of it | applied | taken off |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for c in result.edits:
        if c.failed:
            cells = [c.editor, str(c.edits or ""), c.failed.replace("|", "/"), *[""] * 5]
        else:
            shares = (f"{c.peak_share:.1%}", f"{c.prepare_s:.3g} s", f"{c.prepare_share:.1%}")
            cells = [
                c.editor,
                str(c.edits),
                f"{c.edits / c.edit_s:.3g}",
                *shares,
                f"{c.apply_s:.2g} s",
                f"{c.rollback_s:.2g} s",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_shape(result: ShapeResult, out: Path) -> None:
    """Write the page there, whole or not at all."""
    write_whole(out, shape_markdown(result).encode())
