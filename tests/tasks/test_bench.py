"""The speed benchmark on a tiny model: it counts what it says, and the slow forms compute the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import tasks.speed.bench as bench
from checks.evaluation import predict
from checks.predictor import Question
from editors.mechanics.contexts import BARE
from editors.mechanics.settings import LocateEditConfig
from editors.model import EditableModel
from editors.solvers.held_keys import HeldKeys
from editors.targets.values import Site, optimise_values
from tasks.quality.requests import benchmark_requests
from tasks.settings import Settings
from tasks.speed.bench import CASES, measure_case, result_lines, run_case
from tasks.speed.case import BenchContext, Meter, Sizes
from tasks.speed.cases import CASE_BUILDERS
from tasks.speed.plain_forms import plain_answers, plain_directions, plain_grace_values, plain_values
from tests.support import SIX_REQUESTS, tiny_model
from tests.tasks.small_world import knowing_model, small_world
from warehouse.database.connection import Warehouse
from warehouse.lineages.reports import benchmarks
from warehouse.world.probes import make_probe

SIZES = Sizes(edits=3, plain_edits=1, memit_edits=3, plain_memit_edits=1, probes=12, plain_probes=4, few_shot=8, night_edits=4,
              night_probes=20, stream_events=400, held_edits=4, next_edits=3, plain_next_edits=1,
              scale_edits=(2, 6), scale_probes=40, scale_tonight=2)  # fmt: skip


@pytest.fixture(scope="module")
def world() -> Iterator[Warehouse]:
    with small_world() as found:
        yield found


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return knowing_model()


@pytest.fixture(scope="module")
def context(world: Warehouse, model: EditableModel, tmp_path_factory: pytest.TempPathFactory) -> BenchContext:
    return BenchContext(model, world, Settings(home=tmp_path_factory.mktemp("home")), SIZES)


def test_every_promised_case_can_be_built() -> None:
    assert tuple(CASE_BUILDERS) == CASES


@pytest.mark.parametrize("name", ["edit-ledger", "edit-r_rome", "edit-memit-100", "edit-grace"])
def test_an_edit_case_reports_rates_passes_patches_and_a_ratio(name: str, context: BenchContext) -> None:
    before = context.model.state_digest()
    result = measure_case(name, context, repeat=2)
    assert context.model.state_digest() == before
    assert result.edits == 3
    assert result.edits_per_s is not None
    assert result.edits_per_s.median == pytest.approx(3 / result.wall_s.median, rel=0.5)
    assert result.wall_s.low <= result.wall_s.median <= result.wall_s.high
    assert result.forward_passes > 0 and result.suffix_passes > 0 and result.backward_passes > 0
    assert result.patch_bytes > 0
    assert result.ratio is not None and result.ratio > 0
    assert result.peak_rss_mb.median > 10
    assert result.model_mb > 10
    assert ("editor", name.split("-")[1]) in result_lines(result)


def test_the_sequence_case_is_algebra_alone_and_begins_each_repeat_with_as_many_edits(context: BenchContext) -> None:
    result = measure_case("sequence-malmen", context, repeat=2)
    assert (result.editor, result.edits, result.forward_passes) == ("malmen", 3, 0)
    assert result.ratio is not None and result.ratio > 0
    assert result.comparisons[0].items == 1
    assert "4 edits held" in result.comparisons[0].note


@pytest.mark.parametrize("others", [5, 30])
def test_the_plain_least_squares_find_the_same_directions(others: int) -> None:
    earlier, new = (torch.randn(16, n, generator=torch.Generator().manual_seed(n)) for n in (others, 3))
    held = HeldKeys(16, 0.5)
    held.hold(earlier)
    torch.testing.assert_close(held.directions(new), plain_directions(earlier, new, 0.5), rtol=1e-9, atol=1e-11)


def test_the_evaluate_case_packs_probes_and_gets_the_same_answers(context: BenchContext) -> None:
    result = measure_case("evaluate", context, repeat=1)
    assert result.probes == 12
    assert result.probes_per_s is not None
    assert result.forward_passes < 12
    assert result.backward_passes == 0
    assert result.comparisons[0].note == "4 of 4 answers are the same"


def test_the_few_shot_case_runs_examples_once_and_gets_the_same_answers(context: BenchContext) -> None:
    result = measure_case("few-shot", context, repeat=1)
    assert result.probes == result.comparisons[0].items > 3
    assert result.comparisons[0].note == f"packed alike; {result.probes} of {result.probes} answers are the same"
    assert result.backward_passes == 0 and context.model.shares_prefixes


def test_the_ingest_case_stores_what_is_wanted_of_every_event(context: BenchContext) -> None:
    result = measure_case("ingest", context, repeat=1)
    assert result.details["events"] == 400 and 100 < result.details["stored"] < 400
    assert result.details["events/s"] > 0 and result.forward_passes == 0


def test_a_night_goes_through_every_step_and_is_judged(context: BenchContext) -> None:
    result = measure_case("nightly-500", context, repeat=1)
    assert result.edits == 4
    assert result.probes == 20
    assert {"probes", "edit", "evaluate", "gate", "not model arithmetic"} <= set(result.parts)
    # The policy asks for more probes than this world has, and a gate that cannot be measured fails.
    assert result.details["verdict"] == "reject"
    assert result.details["batch_size"] == 4


def test_an_unknown_case_names_the_known_ones(context: BenchContext) -> None:
    with pytest.raises(ValueError, match="edit-r_rome"):
        measure_case("edit-nothing", context)


def test_a_case_is_kept_in_the_warehouse_and_gives_the_threads_back(
    world: Warehouse, model: EditableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "base_model", lambda _: model)
    monkeypatch.setattr(bench, "base_world", lambda _: _Open(world))
    monkeypatch.setattr(bench, "warehouse", lambda s: Warehouse.open(s.warehouse_path))
    settings, before = Settings(home=tmp_path), torch.get_num_threads()
    result = run_case("evaluate", settings, threads=1, repeat=1, sizes=SIZES)
    assert result.threads == 1
    assert torch.get_num_threads() == before
    with Warehouse.open(settings.warehouse_path) as wh:
        (row,) = benchmarks(wh, "speed:evaluate")
    assert row.metrics["probes"] == 12


class _Open:
    """The shared world, not closed behind a run."""

    def __init__(self, world: Warehouse) -> None:
        self._world = world

    def __enter__(self) -> Warehouse:
        return self._world

    def __exit__(self, *_: object) -> None:
        return None


# ---------------------------------------------------------------- counting


def test_a_meter_counts_whole_passes_and_takes_its_hooks_off() -> None:
    model = tiny_model()
    ids = torch.tensor([[1, 2, 3]])
    with Meter(model) as meter:
        model.hf(input_ids=ids)
        model.hf(input_ids=ids)
    model.hf(input_ids=ids)
    assert (meter.passes.forward, meter.passes.suffix, meter.passes.backward) == (2, 0, 0)
    assert 0 < meter.model_s <= meter.wall_s


def test_a_meter_counts_passes_of_the_upper_layers_and_backward_ones() -> None:
    model = tiny_model()
    norm = model.hf.get_submodule(model.anatomy.final_norm)
    hidden = torch.randn(1, 2, 32, requires_grad=True)
    with Meter(model) as meter:
        norm(hidden).sum().backward()
        norm(hidden.detach())
    assert (meter.passes.forward, meter.passes.suffix, meter.passes.backward) == (0, 2, 1)


def test_a_meter_counts_on_after_a_pass_that_stopped_half_way() -> None:
    model = tiny_model()
    block = model.anatomy.block.format(layer=0)

    def stop(*_: object) -> None:
        raise RuntimeError("far enough")

    with Meter(model) as meter:
        undo = model.hook(block, stop)
        with pytest.raises(RuntimeError):
            model.hf(input_ids=torch.tensor([[1, 2]]))
        undo()
        model.hf(input_ids=torch.tensor([[1, 2]]))
    assert (meter.passes.forward, meter.passes.suffix) == (2, 0)


# ---------------------------------------------------------------- the slow forms


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("site", ["mlp", "block"])
def test_the_whole_model_form_finds_the_values_of_the_fast_one(kind: str, site: Site) -> None:
    model, requests = tiny_model(kind), list(SIX_REQUESTS[:4])
    config = LocateEditConfig(value_steps=6, value_lr=0.1, stop_loss=None, clamp_norm=20.0)
    fast = optimise_values(model, requests, BARE, 1, site, config)
    slow = plain_values(model, requests, BARE, 1, site, config, steps=list(fast.steps))
    assert [value.steps for value in slow] == list(fast.steps)
    torch.testing.assert_close(torch.stack([v.delta for v in slow]), fast.deltas, rtol=1e-3, atol=1e-4)
    assert [v.cost for v in slow] == pytest.approx(list(fast.losses), rel=1e-3)


def test_the_published_rule_stops_by_loss_alone() -> None:
    model, requests = tiny_model(), list(SIX_REQUESTS[:1])
    config = LocateEditConfig(value_steps=9, value_lr=0.1, stop_loss=1e9)
    assert [v.steps for v in plain_values(model, requests, BARE, 1, "mlp", config)] == [1]
    never = config.model_copy(update={"stop_loss": None})
    assert [v.steps for v in plain_values(model, requests, BARE, 1, "mlp", never)] == [9]


def test_the_plain_grace_form_takes_the_loss_down() -> None:
    model, request = tiny_model(), SIX_REQUESTS[0]
    site = model.anatomy.block.format(layer=1)
    (change,) = plain_grace_values(model, [request], site, [20], 0.1)
    question = [Question(request.prompt, request.target_new)]
    before = model.score(question)[0].log_prob
    at = len(model.tokenizer(request.prompt)["input_ids"]) - 1

    def add(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        out = output[0] if isinstance(output, tuple) else output
        if out.shape[1] <= at:
            # A step of generation, by which an answer's end is judged: the edited token is in the cache.
            return output
        changed = out.clone()
        changed[:, at] += change
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    undo = model.hook(site, add)
    assert model.score(question)[0].log_prob > before + 1.0
    undo()


def test_one_probe_a_forward_gives_the_packed_answers(world: Warehouse, model: EditableModel) -> None:
    requests = benchmark_requests(world, model, "modification", 4, split="all")
    probes = [make_probe("success", r.prompt, [r.target_new, r.target_true or ""]) for r in requests]
    packed = predict(model, probes)
    for probe, own in zip(probes, plain_answers(model, probes), strict=True):
        assert packed[probe.probe_id].exact == any(answer.exact for answer in own)


def test_the_scale_of_a_night_counts_what_is_proved_and_asked(context: BenchContext) -> None:
    before = context.model.state_digest()
    result = measure_case("night-scale", context, repeat=1)
    assert context.model.state_digest() == before and not context.model.patches
    assert list(result.parts) == ["2 edits", "6 edits"] and result.details["standing probes"] == 40
    few, many = (result.details["proved and asked"][edits] for edits in (2, 6))
    # The standing probes of the base, all of them, and most of the others; what is new tonight is asked.
    assert few[0] > 40 and many[0] >= few[0] + 2 * (6 - 2) and few[1] > 0
    assert result.ratio is not None
