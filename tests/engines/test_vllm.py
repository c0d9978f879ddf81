"""How a server of vLLM gets what was promoted, and what proves it: swapped in place, taken back, and as an adapter.

Minutes for each server, in an environment of 3.4 GB: asked by `make serving`, which sets ASK_VLLM.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest
import torch
from transformers import AutoTokenizer

from checks.canaries import answer_in
from editors.base import RetractingEditor
from editors.export.adapter import write_adapter
from editors.export.constant import read_constants
from editors.export.form import PlainForm
from editors.export.plain import export_plain, sites_beside
from editors.patches.weight import LowRank, WeightPatch
from editors.session import batch_of
from tasks.proving.check import ask_server
from tasks.proving.engine import engine_facts
from tasks.settings import configure
from tests.architectures import model_of
from tests.engines import plain, vllm
from tests.engines.models import NUM_TOKENS, RECIPES, TINY
from tests.support import TEXTS
from warehouse.lineages.serving import ServingCheck
from warehouse.records import Canary, CanarySet, EngineFacts

pytestmark = [
    pytest.mark.skipif(os.environ.get("ASK_VLLM") != "1", reason="`make serving` asks vLLM"),
    pytest.mark.timeout(3600),
]
#: vLLM's endpoints for development: the digests of its weights, and the methods of its workers.
DEVELOPMENT = {"VLLM_SERVER_DEV_MODE": "1"}
BASE, PROMOTED = "base", "promoted"


def reload(address: str, folder: Path) -> httpx.Response:
    """Load a folder's weights in place of those that a server has, as docs/SERVING.md says; gives the answer to that step."""
    body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder.resolve())}}
    httpx.post(f"{address}/pause", timeout=300).raise_for_status()
    answer = httpx.post(f"{address}/collective_rpc", json=body, timeout=300)
    httpx.post(f"{address}/reset_prefix_cache", timeout=300)
    # Also after a refusal: a paused server would look like a broken one.
    httpx.post(f"{address}/resume", timeout=300).raise_for_status()
    return answer


def asked(address: str, canaries: CanarySet, facts: EngineFacts, tmp_path: Path) -> ServingCheck:
    return ask_server(configure({"home": str(tmp_path)}), canaries, address, "model", facts)


def test_a_swap_in_place_is_proved_and_so_is_a_revert_and_another_width_is_refused(tmp_path: Path) -> None:
    recipe = RECIPES["reference, slots"]
    model = recipe.base()
    editor, corpus = recipe.editor(model), recipe.corpus()
    assert isinstance(editor, RetractingEditor)
    prepared, prompts = editor.prepare(model, corpus), [r.prompt for r in recipe.requests] + list(recipe.others)
    model.save_pretrained(tmp_path / "narrow")
    base = model.generate(prompts, NUM_TOKENS)
    model.push(editor.edit(model, batch_of(recipe.requests), prepared))
    promoted = model.generate(prompts, NUM_TOKENS)
    form = PlainForm(constants=read_constants(model, corpus, sites_beside(model)) if model.anatomy.gated else {})
    export_plain(model, tmp_path / "promoted", form)
    model.push(editor.retract(model, [r.request_id for r in recipe.requests], prepared))
    export_plain(model, tmp_path / "reverted", form)
    facts = {name: engine_facts(tmp_path / name, model.anatomy) for name in ("promoted", "reverted")}
    canaries = canaries_of(prompts, len(recipe.requests), base, promoted)

    with vllm.serving(tmp_path / "promoted", "float32", tmp_path / "log", environment=DEVELOPMENT) as address:
        found = asked(address, canaries, facts["promoted"], tmp_path)
        assert found.verdict == "agrees", found.sentence
        seen = found.body["weights"]
        assert seen["equal"] and not seen["different"], seen
        print(found.sentence)

        # Taken back: the engine answers as the base, and holds what it shows of the base's tensors.
        assert reload(address, tmp_path / "reverted").is_success
        found = asked(address, canaries, facts["promoted"], tmp_path)
        assert (found.verdict, found.body["answers_as"]) == ("differs", [BASE])
        print(found.sentence)
        back = asked(address, canaries_of(prompts, len(recipe.requests), base, base), facts["reverted"], tmp_path)
        assert back.verdict == "agrees", back.sentence
        assert back.body["weights"]["equal"] and not back.body["weights"]["different"]

        # And made again, in place.
        assert reload(address, tmp_path / "promoted").is_success
        assert asked(address, canaries, facts["promoted"], tmp_path).verdict == "agrees"

        # Another width does not fit, and what was loaded by then is gone.
        refused = reload(address, tmp_path / "narrow")
        assert refused.status_code == 500, refused.text
        body = {"model": "model", "prompt": prompts[0], "max_tokens": 1}
        assert httpx.post(f"{address}/v1/completions", json=body, timeout=300).status_code == 500
        assert asked(address, canaries, facts["promoted"], tmp_path).verdict == "unreachable"


def canaries_of(prompts: Sequence[str], edits: int, base: Sequence[str], expected: Sequence[str]) -> CanarySet:
    """Questions whose answers are those of the hooked model; the first ones ask for its edits."""
    return CanarySet(
        checkpoint_id=PROMOTED,
        line=(BASE,),
        max_tokens=NUM_TOKENS,
        canaries=tuple(
            Canary(
                kind="edit" if number < edits else "bystander",
                prompt=prompt,
                form="",
                expected=answer_in(said),
                base=None if before == said else answer_in(before),
                previous=None if before == said else answer_in(before),
                since=PROMOTED if number < edits else None,
            )
            for number, (prompt, before, said) in enumerate(zip(prompts, base, expected, strict=True))
        ),
    )


def test_an_adapter_is_put_on_and_taken_off_a_running_base(tmp_path: Path) -> None:
    model = model_of("qwen3", **TINY["qwen3"])
    model.save_pretrained(tmp_path / "base")
    drawn = torch.Generator().manual_seed(0)
    name = model.anatomy.mlp_out.format(layer=2) + ".weight"
    rows, columns = model.parameter(name).shape
    model.push(WeightPatch({name: LowRank(torch.randn(rows, 3, generator=drawn), torch.randn(columns, 3, generator=drawn))}))
    write_adapter(model, tmp_path / "adapter", base=str(tmp_path / "base"))
    model.save_pretrained(tmp_path / "edited")
    prompts = [text[:length] for text in TEXTS for length in (20, 40)]
    base, edited = (plain.answers(tmp_path / which, prompts, NUM_TOKENS) for which in ("base", "edited"))
    assert base != edited
    options = ("--enable-lora", "--max-lora-rank", "8")
    able = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    with vllm.serving(tmp_path / "base", "float32", tmp_path / "log", *options, environment=able) as address:
        assert says(address, "model", tmp_path / "base", prompts) == base
        body = {"lora_name": "night", "lora_path": str(tmp_path / "adapter")}
        httpx.post(f"{address}/v1/load_lora_adapter", json=body, timeout=300).raise_for_status()
        assert says(address, "night", tmp_path / "base", prompts) == edited
        assert says(address, "model", tmp_path / "base", prompts) == base
        httpx.post(f"{address}/v1/unload_lora_adapter", json={"lora_name": "night"}, timeout=300).raise_for_status()
        gone = httpx.post(f"{address}/v1/completions", json={"model": "night", "prompt": "a", "max_tokens": 1}, timeout=300)
        assert gone.status_code == 404


def says(address: str, model: str, folder: Path, prompts: Sequence[str]) -> list[str]:
    """Greedy answers as the folder's tokenizer spells their tokens, which the server may cut inside a character."""
    tokenizer, found = AutoTokenizer.from_pretrained(folder), []
    for prompt in prompts:
        body = {"model": model, "prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0, "return_token_ids": True}
        reply = httpx.post(f"{address}/v1/completions", json=body, timeout=300)
        reply.raise_for_status()
        found.append(tokenizer.decode(reply.json()["choices"][0]["token_ids"], skip_special_tokens=True))
    return found
