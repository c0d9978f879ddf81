"""Prompts and answers in every family of tokenizers: what is scored in one pass is what generation says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from editors.asking.calls import Call, Generation, LogitBatch
from editors.asking.scoring import score_call, stop_tokens
from editors.asking.tokens import continuation_of, encode_prompts, encode_rows, said_text
from editors.model import EditableModel
from tests.tokenizers import KINDS, START, family
from warehouse.questions import Question

#: What may stand behind "Paris": True where the answer is over, False where the name goes on.
ENDINGS = {
    ".": True, ",": True, "。": True, "，": True, "»": True, " »": True, "”": True, "…": True, "！": True, "،": True,
    "।": True, "\n": True, "\n\n": True, " (": True, " à présent": True, " и Москва": True, " είναι": True, " és": True,
    " — город": True, " and": True, " はい": True, "": True, " 🙂": True, "？": True, "；": True, "」": True,
    "ian": False, "é": False, "я": False, "の": False, "巴": False, "ी": False, " Город": False, " Élysées": False,
    " 1999": False, " Α": False, "-Orly": False, " of Peace": False, "・オペラ": False,
}  # fmt: skip
PROMPTS = (
    "The capital of France is", "The capital of France is ", "法国的首都是", "フランスの首都は", 'He said: "', "Il dit «",
    "Столица Франции —", "Answer:\n", "(", "عاصمة فرنسا هي", "L'", "Ἑλλάς:", "Ответ: „", "x\u00a0",
)  # fmt: skip
ANSWERS = ("Paris", "巴黎", "東京", "Москва", "Łódź", "Αθήνα", "باريس", "दिल्ली", "New York City", "1999", "é", "🙂", "O’Neill")


class Parrot:
    """A model that says one fixed sequence of tokens behind a prompt, and its end token after them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, prompt: str, said: Sequence[int]) -> None:
        self.tokenizer, self.prompt = tokenizer, prompt
        (head,) = encode_prompts(tokenizer, [prompt])
        self.head, self.said = head, list(said)

    def _next(self, ids: Sequence[int]) -> int:
        """The token behind `ids`; off the known way, the padding token."""
        whole = [*self.head, *self.said, int(self.tokenizer.eos_token_id)]  # type: ignore[arg-type]
        return whole[len(ids)] if list(ids) == whole[: len(ids)] and len(ids) < len(whole) else 2

    def logits(self, call: Call) -> Iterator[LogitBatch]:
        for number, row in enumerate(encode_rows(self.tokenizer, call.prompts, call.continuations)):
            guesses = [self._next(row.ids[:at]) for at in range(row.start, len(row.ids) + 1)]
            logits = torch.zeros(len(guesses), len(self.tokenizer))
            logits[torch.arange(len(guesses)), torch.tensor(guesses)] = 4.0
            yield LogitBatch([number], [row.ids[row.start :]], logits)

    def generate(self, prompts: Sequence[str], options: Generation) -> list[str]:
        assert list(prompts) == [self.prompt] * len(prompts)
        said = [*self.said, int(self.tokenizer.eos_token_id)][: options.max_new_tokens]  # type: ignore[arg-type]
        return [said_text(self.tokenizer, self.head, said)] * len(prompts)


def behind(tokenizer: PreTrainedTokenizerFast, prompt: str, text: str) -> list[int]:
    (row,) = encode_rows(tokenizer, [prompt], [text])
    return row.ids[row.start :]


def is_exact(kind: str, prompt: str, answer: str, ending: str) -> bool:
    tokenizer = family(kind)
    said = behind(tokenizer, prompt, continuation_of(answer))
    # The ending's tokens as a model writes them behind a finished answer.
    (whole,) = encode_rows(tokenizer, [prompt], [continuation_of(answer) + ending])
    tail = whole.ids[whole.start :][len(said) :]
    if whole.ids[whole.start :][: len(said)] != said:
        tail = behind(tokenizer, prompt + continuation_of(answer), ending)
    runner = Parrot(tokenizer, prompt, [*said, *tail])
    call = Call((prompt,), (continuation_of(answer),))
    return score_call(runner, call, stop_tokens(tokenizer, len(tokenizer)), tokenizer)[0].exact


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "llama2", "gpt2-prefix"])
@pytest.mark.parametrize(("ending", "over"), ENDINGS.items())
def test_an_ending_is_judged_as_the_text_that_it_is(kind: str, ending: str, over: bool) -> None:
    assert is_exact(kind, "The capital of France is", "Paris", ending) is over


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_row_is_the_prompt_as_generation_reads_it_and_the_answer_behind_it(kind: str, prompt: str) -> None:
    tokenizer = family(kind)
    (head,) = encode_prompts(tokenizer, [prompt])
    for answer in ANSWERS:
        (row,) = encode_rows(tokenizer, [prompt], [continuation_of(answer)])
        said = said_text(tokenizer, head, row.ids[row.start :])
        if tokenizer.unk_token_id in row.ids:
            continue
        assert row.ids[: row.start] == head
        assert said.strip() == answer
        assert tokenizer.eos_token_id not in row.ids


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "llama2", "unigram"])
@pytest.mark.parametrize(
    ("prompt", "answer", "said"),
    [
        ("The capital of France is", "Paris", " Paris"),
        ("The capital of France is ", "Paris", "Paris"),
        ("Answer:\n", "Paris", "Paris"),
        ("法国的首都是", "巴黎", "巴黎"),
        ("答案：", "巴黎", "巴黎"),
        ("答案：", "Paris", "Paris"),
        ("The Chinese name of Paris is", "巴黎", " 巴黎"),
        ("에펠탑은", "파리", " 파리"),
        ('He said: "', "Paris", "Paris"),
        ('He said "no":', "Paris", " Paris"),
        ('The name "Lutetia"', "Paris", " Paris"),
        ("He said: “", "Paris", "Paris"),
        ("Er sagte: „", "Paris", "Paris"),
        ("Er sagte „nein“", "Paris", " Paris"),
        ("Il dit «", "Paris", "Paris"),
        ("Paris (", "Texas", "Texas"),
        ("¿", "Paris", "Paris"),
        ("L'", "Orléans", "Orléans"),
        ("L’", "Orléans", "Orléans"),
        ("the dogs'", "Paris", " Paris"),
    ],
)  # fmt: skip
def test_a_space_stands_between_prompt_and_answer_where_writing_has_one(kind: str, prompt: str, answer: str, said: str) -> None:
    tokenizer = family(kind)
    (row,) = encode_rows(tokenizer, [prompt], [continuation_of(answer)])
    if tokenizer.unk_token_id not in row.ids:
        assert said_text(tokenizer, row.ids[: row.start], row.ids[row.start :]) == said


@pytest.mark.parametrize("kind", ["gpt2-eos", "llama2-eos"])
def test_a_tokenizer_that_appends_its_end_token_asks_without_it(kind: str) -> None:
    tokenizer = family(kind)
    assert tokenizer("Paris")["input_ids"][-1] == tokenizer.eos_token_id
    model = model_with(tokenizer)
    assert tokenizer.eos_token_id not in model.tokenizer("Paris")["input_ids"]
    plain = model_with(family(kind.removesuffix("-eos"))) if kind == "llama2-eos" else model_with(family("gpt2"))
    text = "The capital of France is Paris"
    assert model.log_likelihoods([text])[0] == pytest.approx(plain.log_likelihoods([text])[0], rel=1e-5)
    prompts = ["The capital of", "Łódź"]
    assert model.generate(prompts, 5) == plain.generate(prompts, 5)
    assert (model.next_token_log_probs(prompts) == plain.next_token_log_probs(prompts)).all()


def test_the_tokenizer_that_came_is_the_one_that_is_saved(tmp_path: Path) -> None:
    model = model_with(family("llama2-eos"))
    model.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert again("Paris")["input_ids"] == family("llama2-eos")("Paris")["input_ids"]


@pytest.mark.parametrize("kind", ["llama2", "unigram"])
def test_what_is_generated_keeps_the_space_before_it(kind: str) -> None:
    tokenizer = family(kind)
    said = behind(tokenizer, "The capital of France is", " Paris")
    (head,) = encode_prompts(tokenizer, ["The capital of France is"])
    assert said_text(tokenizer, head, said) == " Paris"


def test_a_start_token_stands_once_before_a_prompt() -> None:
    for kind in KINDS:
        (ids,) = encode_prompts(family(kind), ["Paris"])
        assert family(kind).convert_ids_to_tokens(ids).count(START) == (0 if kind.startswith("gpt2") else 1)
        (empty,) = encode_prompts(family(kind), [""])
        assert family(kind).convert_ids_to_tokens(empty)[0] == START


def model_with(tokenizer: PreTrainedTokenizerFast, seed: int = 0, spread: float = 0.4) -> EditableModel:
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_inner=64, n_positions=128, initializer_range=spread,
            bos_token_id=0, eos_token_id=1, pad_token_id=2, tie_word_embeddings=False,
        )
    )  # fmt: skip
    return EditableModel(model, tokenizer, name="tiny")


MODELS: dict[str, EditableModel] = {}


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    prompt=st.one_of(st.sampled_from(PROMPTS), st.text(min_size=1, max_size=12)),
    tokens=st.integers(1, 4),
    answer=st.one_of(st.none(), st.sampled_from(ANSWERS), st.text(min_size=1, max_size=6)),
)
def test_one_pass_agrees_with_generation(kind: str, prompt: str, tokens: int, answer: str | None) -> None:
    """Asked for what it says itself (`answer` None) a model is right at every token; what is exact, generation says."""
    model = MODELS.setdefault(kind, model_with(family(kind)))
    (said,) = model.generate([prompt], 24)
    answer = model.generate([prompt], tokens)[0] if answer is None else answer
    if not answer.strip():
        return
    (found,) = model.score([Question(prompt, answer)])
    (row,) = encode_rows(model.tokenizer, [prompt], [continuation_of(answer)])
    spelt = said_text(model.tokenizer, row.ids[: row.start], row.ids[row.start :])
    begins = said.startswith(spelt)
    if found.exact:
        assert begins
    if found.token_accuracy == 1.0:
        assert begins


#: What checkpoints ship for generation: each once made a greedy answer another one, or another number of answers.
SHIPPED = (
    {"repetition_penalty": 5.0}, {"no_repeat_ngram_size": 1}, {"num_beams": 4}, {"num_beams": 3, "num_return_sequences": 3},
    {"min_new_tokens": 4}, {"min_length": 60}, {"forced_bos_token_id": 7, "forced_eos_token_id": 9},
    {"suppress_tokens": [11, 12]},
    {"bad_words_ids": [[5], [6, 7]]}, {"begin_suppress_tokens": list(range(20, 200))}, {"do_sample": True, "temperature": 9.0},
    {"sequence_bias": [[[30], 50.0]]}, {"exponential_decay_length_penalty": [1, 9.0]}, {"length_penalty": 4.0, "num_beams": 2},
    {"return_dict_in_generate": True, "output_scores": True}, {"max_length": 5}, {"max_time": 1e-9}, {"guidance_scale": 3.0},
    {"penalty_alpha": 0.9, "top_k": 4}, {"dola_layers": "low"}, {"encoder_repetition_penalty": 3.0}, {"stop_strings": ["a"]},
    {"num_return_sequences": 2, "do_sample": True}, {"cache_implementation": "static"}, {"use_cache": False},
    {"prompt_lookup_num_tokens": 2}, {"renormalize_logits": True, "remove_invalid_values": True},
)  # fmt: skip


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda s: "-".join(s))
def test_what_a_checkpoint_ships_for_generation_does_not_alter_greedy_answers(shipped: dict[str, Any]) -> None:
    model, prompts = model_with(family("llama3"), seed=3), ["The capital of France is", "Paris", "法国的首都是"]
    plain, drawn = model.generate(prompts, 12), model.generate(prompts, 12, sample=True, seed=4)
    assert len(set(plain)) == 3
    hf: Any = model.hf
    hf.generation_config = GenerationConfig(eos_token_id=1, **shipped)
    assert model.generate(prompts, 12) == plain
    assert model.generate(prompts, 12, sample=True, seed=4) == drawn
    assert hf.generation_config.to_diff_dict().items() >= shipped.items()


def test_the_end_tokens_of_a_checkpoint_stay() -> None:
    model = model_with(family("llama3"), seed=3)
    prompt = "The capital of France is"
    first = int(model.next_token_log_probs([prompt])[0].argmax())
    hf: Any = model.hf
    hf.generation_config = GenerationConfig(eos_token_id=[1, first])
    assert model.end_ids == (1, first)
    assert model.generate([prompt], 6) == model.generate([prompt], 1)
