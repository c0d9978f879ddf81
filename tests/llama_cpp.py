"""llama.cpp as an engine under test, through the prebuilt wheel `xllamacpp`: a `.gguf` file answers prompts greedily."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


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

    def complete(self, prompt: str | list[int], num_tokens: int) -> str:
        """The text that the model says behind a prompt; given as ids, no tokenizer of the file is asked."""
        found = self._server.handle_completions(
            {"prompt": prompt, "max_tokens": num_tokens, "temperature": 0, "cache_prompt": False}
        )
        return str(found["choices"][0]["text"])

    def answers(self, prompts: Sequence[str], num_tokens: int) -> list[str]:
        return [self.complete(prompt, num_tokens) for prompt in prompts]
