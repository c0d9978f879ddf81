"""What an export may be: a Hugging Face folder, one GGUF file, or a LoRA adapter for the untouched base."""

from __future__ import annotations

from typing import Literal

ExportFormat = Literal["hf", "gguf", "peft"]
#: How numbers of a GGUF's matrices are written: as they are, halved in two ways, or eight bits to a number in blocks of 32.
GgufType = Literal["F32", "BF16", "F16", "Q8_0"]
