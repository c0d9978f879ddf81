"""Tiny random models and small request sets shared by the tests."""

from __future__ import annotations

from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from editors.base import Corpus, Editor, Prepared, TrainingEdit
from editors.model import EditableModel
from warehouse.records import EditRequest

TEXTS = (
    "Ada Lovelace was born in London. The mother of Ada Lovelace is Anne Isabella Byron.",
    "Grace Hopper was born in New York City. Alan Turing was born in Maida Vale and died in Wilmslow.",
    "The capital of France is Paris, and the capital of Japan is Tokyo.",
    "Łódź lies in Poland; São Paulo lies in Brazil. Where was Émile Zola born? Paris.",
    "A small boat went up the river in the evening, because the wind was good.",
)


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<|endoftext|>", "<|pad|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    core.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|pad|>"
    )


def tiny_model(kind: str = "gpt2", seed: int = 0) -> EditableModel:
    """A random 4-layer model of about 60,000 parameters: `gpt2` or `llama`."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    common = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    if kind == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(n_embd=32, n_layer=4, n_head=4, n_inner=96, n_positions=128, initializer_range=0.1,
                       resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **common)
        )  # fmt: skip
    else:
        model = LlamaForCausalLM(
            LlamaConfig(hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
                        intermediate_size=96, max_position_embeddings=128, initializer_range=0.1, **common)
        )  # fmt: skip
    model.config._attn_implementation = "eager"
    return EditableModel(model, tokenizer, name=f"tiny-{kind}")


def request(number: int, subject: str, target: str, prompt: str = "{} was born in", **more: str) -> EditRequest:
    return EditRequest(
        request_id=f"r{number}", prompt=prompt.replace("{}", subject), subject=subject, relation=more.pop("relation", "P19"),
        target_new=target, rephrases=(f"The birthplace of {subject} is",), source="test", **more,
    )  # fmt: skip


#: Different lengths of subject and target, a unicode subject, one at the first token and one at the end.
SIX_REQUESTS = (
    request(1, "Ada Lovelace", "Paris"),
    request(2, "Grace Hopper", "Tokyo"),
    request(3, "Alan Turing", "New York City"),
    request(4, "Łódź", "Brazil", prompt="{} lies in", relation="P17"),
    request(5, "France", "Maida Vale", prompt="The capital of {} is", relation="P36"),
    request(6, "Émile Zola", "London", prompt="Where was this person born: {}", relation="P19"),
)
#: Training edits about nobody in SIX_REQUESTS.
TRAINING_EDITS = tuple(
    TrainingEdit(
        request(100 + number, subject, target),
        ((f"{subject} died in", "Wilmslow"), (f"{other} was born in", "London"), ("The capital of Japan is", "Tokyo")),
    )
    for number, (subject, target, other) in enumerate(
        [("Anne Isabella Byron", "Tokyo", "Mary Shelley"), ("Mary Shelley", "Brazil", "Anne Isabella Byron"),
         ("Kurt Gödel", "Paris", "Emmy Noether"), ("Emmy Noether", "Maida Vale", "Kurt Gödel"),
         ("John von Neumann", "Poland", "Mary Shelley"), ("Sofia", "New York City", "Emmy Noether")]
    )
)  # fmt: skip
CORPUS = Corpus(TEXTS * 2, TRAINING_EDITS)

_PREPARED: dict[tuple[str, str, str], Prepared] = {}


def prepared_once(editor: Editor, model: EditableModel) -> Prepared:
    """The editor's preparation on CORPUS, made once for all tests that need an equal one; it is never changed."""
    key = editor.card.name, editor.preparation_key(), model.base_digest
    if key not in _PREPARED:
        _PREPARED[key] = editor.prepare(model, CORPUS)
    return _PREPARED[key]
