"""Run by vLLM's own Python: ask one folder after the other in one process. `vllm_ask.py JOBS OUT`; see `tests/engines/vllm.py`.

Loading vLLM takes longer than loading a small model, so that a server for each row of the table would be most of its time.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any


def answers(folder: str, dtype: str, prompts: list[str], num_tokens: int) -> list[list[int]]:
    """Tokens of the greedy answers, one prompt at a time."""
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    engine = LLM(folder, dtype=dtype, enforce_eager=True, max_model_len=128, enable_prefix_caching=False)
    wanted = SamplingParams(temperature=0, max_tokens=num_tokens)
    said = [list(engine.generate([p], wanted, use_tqdm=False)[0].outputs[0].token_ids) for p in prompts]
    engine.llm_engine.engine_core.shutdown()
    del engine
    gc.collect()
    cleanup_dist_env_and_memory()
    return said


def main(jobs: Path, out: Path) -> None:
    found: list[Any] = []
    for job in json.loads(jobs.read_text(encoding="utf-8")):
        found.append(answers(**job))
        out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
