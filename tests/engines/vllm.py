"""vLLM on the CPU as an engine under test: its own server, from the environment `.serving` that `make serving` makes."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
from transformers import AutoTokenizer

ROOT = Path(__file__).parent.parent.parent
PYTHON = ROOT / ".serving" / "bin" / "python"
START_S, ANSWER_S = 300.0, 300.0
#: One process without pinned cores, a small cache, nothing sent to anybody.
ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}  # fmt: skip


@contextmanager
def serving(folder: Path, dtype: str, log: Path) -> Iterator[str]:
    """Serve a folder; gives the server's address, and ends it.

    Raises:
        RuntimeError: the environment is missing, or the server ended before it answered; the log's last lines are in it.
        TimeoutError: it was not up in time.
    """
    if not PYTHON.exists():
        raise RuntimeError(f"{PYTHON} is not there; run `make serving`")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--dtype", dtype]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "model", "--max-model-len", "128"]
    command += ["--enforce-eager", "--no-enable-prefix-caching"]
    # Not in the checkout: a folder `tests` or `flows` there would be the server's too.
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, cwd=log.parent, env=_environment())
    try:
        _wait(address, server, log)
        yield address
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def answers(address: str, folder: Path, prompts: Sequence[str], num_tokens: int) -> list[str]:
    """What a server of a folder says behind each prompt, at temperature 0.

    As the folder's tokenizer spells its tokens: vLLM keeps back the bytes of a character that is not whole yet.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    body = {"model": "model", "max_tokens": num_tokens, "temperature": 0, "return_token_ids": True}
    found = []
    for prompt in prompts:
        reply = httpx.post(f"{address}/v1/completions", json=body | {"prompt": prompt}, timeout=ANSWER_S)
        reply.raise_for_status()
        found.append(tokenizer.decode(reply.json()["choices"][0]["token_ids"], skip_special_tokens=True))
    return found


def _environment() -> dict[str, str]:
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return own | ENVIRONMENT


def _wait(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if server.poll() is not None:
            said = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise RuntimeError(f"vLLM ended with {server.returncode} before it answered:\n{said}")
        try:
            if httpx.get(f"{address}/health", timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(1)
    raise TimeoutError(f"vLLM was not up after {START_S:.0f} s; see {log}")
