"""llama.cpp as an engine under test, through the prebuilt wheel `xllamacpp`: a `.gguf` file answers prompts greedily."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx


@dataclass(frozen=True)
class Said:
    """An answer in a chat. `ended`: by an end token, not because no more tokens were allowed."""

    text: str
    ended: bool


class LlamaCpp:
    """A server in this process for one file; one thread, no cache between prompts, attention and its cache in float32."""

    def __init__(self, path: Path, *, context: int = 128) -> None:
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path = str(path)
        settings.n_ctx = context
        settings.n_parallel = 1
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
        settings.warmup = False
        settings.verbosity = 0
        settings.fit_params = False
        # The dtype of what is compared is that of the weights; llama.cpp's own default halves keys and values.
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._server = xllamacpp.Server(settings)

    def complete(self, prompt: str, num_tokens: int) -> str:
        """The text that the model says behind a prompt."""
        found = self._server.handle_completions(
            {"prompt": prompt, "max_tokens": num_tokens, "temperature": 0, "cache_prompt": False}
        )
        return str(found["choices"][0]["text"])

    def answers(self, prompts: Sequence[str], num_tokens: int) -> list[str]:
        return [self.complete(prompt, num_tokens) for prompt in prompts]

    def chat(self, messages: Sequence[Mapping[str, str]], num_tokens: int) -> Said:
        """The answer to a chat, in the file's own template."""
        found = self._server.handle_chat_completions({"messages": list(messages), "max_tokens": num_tokens, "temperature": 0})
        (choice,) = found["choices"]
        return Said(str(choice["message"]["content"]), choice["finish_reason"] == "stop")

    def tokens(self, text: str) -> list[int]:
        """Ids of a text as the file's own tokenizer splits it, special tokens that stand in it as themselves."""
        body = {"content": text, "add_special": True, "parse_special": True}
        return list(httpx.post(f"{self._server.listening_address}/tokenize", json=body, timeout=60).json()["tokens"])
