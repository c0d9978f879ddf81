"""What is exported as a `.gguf` answers in llama.cpp as the plain folder does in transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from editors.base import RetractingEditor
from editors.export.constant import read_constants
from editors.export.form import PlainForm
from editors.export.formats import GgufType
from editors.export.gguf.write import write_gguf
from editors.export.plain import export_plain, sites_beside
from editors.model import EditableModel
from editors.session import batch_of
from editors.stored_tensors import StoredTensors
from tests.architectures import plain_model
from tests.engines import plain
from tests.engines.llama_cpp import LlamaCpp
from tests.engines.models import NUM_TOKENS, RECIPES, Asked, holds, make, num_held
from tests.real import NEEDS_REAL
from tests.support import TEXTS, tiny_model, tiny_tokenizer
from tests.tokenizers import UNICODE_TEXTS, family

KINDS: tuple[GgufType, ...] = get_args(GgufType)
#: Longer than the windows of the tiny models.
PROMPTS = [text[:length] for text in TEXTS for length in (12, 40)]
FULL: dict[str, Any] = {"sliding_window": None}
#: What llama.cpp runs as transformers does: Mistral and Phi-3 without windows, Gemma 3 without a cap on its logits.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("mistral", FULL),
    "phi3": ("phi3", FULL),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma2": ("gemma2", {}),
    "gemma3": ("gemma3_text", {"final_logit_softcapping": None, "num_hidden_layers": 6, "layer_types": None,
                               "sliding_window_pattern": 3}),
    "gemma3, usual layers": ("gemma3_text", {"final_logit_softcapping": None, "num_hidden_layers": 7, "layer_types": None}),
    "untied": ("qwen3", {"tie_word_embeddings": False}),
    "tied": ("mistral", {**FULL, "tie_word_embeddings": True}),
}  # fmt: skip
SCALED: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 10000.0,
               "original_max_position_embeddings": 16},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 32},
}  # fmt: skip


def answers(folder: Path, kind: GgufType = "F32", prompts: list[str] = PROMPTS) -> list[str]:
    write_gguf(folder, folder / "model.gguf", kind)
    return LlamaCpp(folder / "model.gguf").answers(prompts, NUM_TOKENS)


def saved(hf: Any, folder: Path) -> Path:
    hf.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_a_tiny_model_answers_alike(name: str, tmp_path: Path) -> None:
    shape, entries = MODELS[name]
    folder = saved(plain_model(shape, **entries), tmp_path)
    assert answers(folder) == plain.answers(folder, PROMPTS, NUM_TOKENS)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_two_first_architectures_answer_alike(kind: str, tmp_path: Path) -> None:
    tiny_model(kind).save_pretrained(tmp_path)
    assert answers(tmp_path) == plain.answers(tmp_path, PROMPTS, NUM_TOKENS)


def test_biases_beside_the_feed_forward_travel(tmp_path: Path) -> None:
    """A Llama has room for them in llama.cpp as in transformers."""
    torch.manual_seed(0)
    entries: dict[str, Any] = dict(
        vocab_size=len(tiny_tokenizer()), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=80, initializer_range=0.2, max_position_embeddings=128, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    hf = LlamaForCausalLM(LlamaConfig(mlp_bias=True, attention_bias=True, **entries)).eval()
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    folder = saved(hf, tmp_path)
    assert answers(folder) == plain.answers(folder, PROMPTS, NUM_TOKENS)


@pytest.mark.parametrize("way", SCALED)
def test_scaled_positions_are_scaled_alike(way: str, tmp_path: Path) -> None:
    hf = plain_model("mistral", **FULL, rope_parameters=SCALED[way], max_position_embeddings=128)
    torch.manual_seed(0)
    llama = LlamaForCausalLM(LlamaConfig(**{**hf.config.to_dict(), "architectures": ["LlamaForCausalLM"]})).eval()
    llama.load_state_dict(hf.state_dict())
    folder = saved(llama, tmp_path)
    long = [" ".join(TEXTS)[:length] for length in (60, 110, 140)] + PROMPTS
    found = answers(folder, prompts=long)
    assert found == plain.answers(folder, long, NUM_TOKENS)
    llama.config.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0}
    assert found != plain.answers(saved(LlamaForCausalLM(llama.config), tmp_path / "other"), long, NUM_TOKENS)


@pytest.mark.parametrize("kind", ["gpt2", "gpt2-eos", "llama3", "llama2", "llama2-eos"])
def test_its_tokenizer_splits_alike(kind: str, tmp_path: Path) -> None:
    tokenizer = family(kind)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 3, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4,
        intermediate_size=32, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    write_gguf(tmp_path, tmp_path / "model.gguf")
    own, engine = AutoTokenizer.from_pretrained(tmp_path), LlamaCpp(tmp_path / "model.gguf")
    texts = [*UNICODE_TEXTS, "  two  spaces\n\n and 123456 lines\t", " leading", "a<|pad|>b"]
    assert [engine.tokens(text) for text in texts] == [own(text).input_ids for text in texts]


# ------------------------------------------------------------ with edits


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module", params=[name for name in RECIPES if not name.startswith("smollm2")])
def edited(request: pytest.FixtureRequest, home: Path) -> Iterator[tuple[str, Path, Asked]]:
    _, folder, asked = make(request.param, home)
    assert asked.edits
    yield request.param, folder, asked


def test_an_edited_model_answers_alike(edited: tuple[str, Path, Asked]) -> None:
    _, folder, asked = edited
    found = answers(folder, prompts=asked.prompts)
    assert found == plain.answers(folder, asked.prompts, NUM_TOKENS)
    # Behind an edit's object a random model goes on with bytes, at which slots open a little.
    first = len(asked.edits)
    assert tuple(found[first:]) == asked.audited[first:]
    assert num_held(asked, found) == len(asked.edits)


@pytest.mark.parametrize("kind", ["BF16", "F16", "Q8_0"])
def test_no_edit_is_lost_to_narrower_numbers(edited: tuple[str, Path, Asked], kind: GgufType) -> None:
    name, folder, asked = edited
    found = answers(folder, kind, asked.prompts)
    assert num_held(asked, found) == len(asked.edits)
    if name.startswith("reference"):
        # Of the trained model; random ones are full of ties.
        assert found == plain.answers(folder, asked.prompts, NUM_TOKENS)


# ------------------------------------------------------------ and without them again


@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith("slots") and not name.startswith("smollm2")])
def test_a_revert_is_the_base_again_in_the_engine(name: str, tmp_path: Path) -> None:
    """Where the base has tensors, the export has their bits, and beside them zeros; the engine's answers are the base's."""
    recipe = RECIPES[name]
    model = recipe.base()
    editor, corpus = recipe.editor(model), recipe.corpus()
    assert isinstance(editor, RetractingEditor)
    model.save_pretrained(tmp_path / "base")
    prepared, prompts = editor.prepare(model, corpus), [r.prompt for r in recipe.requests] + list(recipe.others)
    model.push(editor.edit(model, batch_of(recipe.requests), prepared))
    form = PlainForm(constants=read_constants(model, corpus, sites_beside(model)) if model.anatomy.gated else {})
    base = answers(tmp_path / "base", prompts=prompts)

    export_plain(model, tmp_path / "edited", form)
    edited = answers(tmp_path / "edited", prompts=prompts)
    assert all(a != b for a, b in list(zip(edited, base, strict=True))[: len(recipe.requests)])

    first = recipe.requests[0]
    model.push(editor.retract(model, [first.request_id], prepared))
    export_plain(model, tmp_path / "less", form)
    less = answers(tmp_path / "less", prompts=prompts)
    assert less == model.generate(prompts, NUM_TOKENS)
    held = [holds(text, r.target_new) for text, r in zip(less, recipe.requests, strict=False)]
    assert held == [False] + [True] * (len(recipe.requests) - 1)

    model.push(editor.retract(model, [r.request_id for r in recipe.requests[1:]], prepared))
    export_plain(model, tmp_path / "none", form)
    assert answers(tmp_path / "none", prompts=prompts) == base
    own, left = StoredTensors(tmp_path / "base"), StoredTensors(tmp_path / "none")
    assert list(own) == list(left)
    for tensor, found in left.items():
        corner = tuple(slice(n) for n in own.shape(tensor))
        assert torch.equal(found[corner], own[tensor])
        found[corner] = 0
        assert not found.any()


class TestSmolLM2:
    pytestmark = NEEDS_REAL

    @pytest.fixture(scope="class")
    def folders(self, home: Path) -> tuple[Path, Path, Asked]:
        return make("smollm2", home)

    @pytest.mark.parametrize("which", ["base", "edited"])
    def test_it_answers_alike(self, folders: tuple[Path, Path, Asked], which: str) -> None:
        base, edited, asked = folders
        folder = base if which == "base" else edited
        prompts = asked.prompts[:10]
        assert answers(folder, prompts=prompts) == plain.answers(folder, prompts, NUM_TOKENS)

    @pytest.mark.parametrize("kind", KINDS)
    def test_its_edits_hold(self, folders: tuple[Path, Path, Asked], kind: GgufType) -> None:
        _, edited, asked = folders
        assert len(asked.edits) == 3
        assert num_held(asked, answers(edited, kind, list(asked.edits))) == 3

    def test_its_chat_ends_where_the_model_ends_it(self, folders: tuple[Path, Path, Asked]) -> None:
        """The end token and the chat template are in the file: an answer is a sentence, not as much as is allowed."""
        base, _, _ = folders
        write_gguf(base, base / "model.gguf")
        model = EditableModel.from_pretrained(str(base))
        asked = [{"role": "user", "content": "Say hello."}]
        text = model.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        found = LlamaCpp(base / "model.gguf").chat(asked, 60)
        assert found.ended and found.text.strip()
        (ids,) = model.hf.generate(**model.tokenizer(text, return_tensors="pt"), max_new_tokens=60, do_sample=False).tolist()
        said = model.tokenizer.decode(ids[len(model.tokenizer(text).input_ids) :], skip_special_tokens=True)
        assert found.text == said
