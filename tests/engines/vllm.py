"""vLLM on the CPU as an engine under test: its own server, from the environment `.serving` that `make serving` makes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
from transformers import AutoTokenizer

ROOT = Path(__file__).parent.parent.parent
PYTHON = ROOT / ".serving" / "bin" / "python"
START_S = 600.0
#: One process without pinned cores, a small cache, nothing sent to anybody.
ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}  # fmt: skip


@contextmanager
def serving(folder: Path, dtype: str, log: Path, *options: str, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """Serve a folder with further options of the server and its environment; gives the server's address, and ends it.

    Raises:
        RuntimeError: the environment is missing, or the server ended before it answered; the log's last lines are in it.
        TimeoutError: it was not up in time.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [*_python(), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--dtype", dtype]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "model", "--max-model-len", "128"]
    command += ["--enforce-eager", "--no-enable-prefix-caching", *options]
    # Not in the checkout: a folder `tests` or `flows` there would be the server's too.
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, cwd=log.parent, env=_environment() | dict(environment or {}))
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


@dataclass(frozen=True)
class Job:
    """A folder that is to be asked in a dtype."""

    folder: Path
    dtype: str
    prompts: Sequence[str]


def answers(jobs: Sequence[Job], num_tokens: int, log: Path) -> list[list[str]]:
    """What vLLM says behind each prompt of each job, at temperature 0, one prompt at a time; all jobs in one process.

    As the folder's tokenizer spells its tokens: vLLM keeps back the bytes of a character that is not whole yet.

    Raises:
        RuntimeError: the environment is missing, or vLLM ended before it was done; the log's last lines are in it.
    """
    with TemporaryDirectory() as place:
        asked, out = Path(place, "jobs.json"), Path(place, "out.json")
        fields = [{**asdict(job), "folder": str(job.folder.resolve()), "num_tokens": num_tokens} for job in jobs]
        asked.write_text(json.dumps(fields), encoding="utf-8")
        # -P: this folder's `vllm.py` is not vLLM.
        command = [*_python(), "-P", str(Path(__file__).with_name("vllm_ask.py")), str(asked), str(out)]
        alone = _environment() | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        with log.open("w") as written:
            ended = subprocess.run(command, stdout=written, stderr=written, cwd=place, env=alone).returncode
        if ended:
            raise RuntimeError(f"vLLM ended with {ended} before it was done:\n{_last_lines(log)}")
        found = json.loads(out.read_text(encoding="utf-8"))
    return [
        AutoTokenizer.from_pretrained(job.folder).batch_decode(said, skip_special_tokens=True)
        for job, said in zip(jobs, found, strict=True)
    ]


def _python() -> list[str]:
    if not PYTHON.exists():
        raise RuntimeError(f"{PYTHON} is not there; run `make serving`")
    return [str(PYTHON)]


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def _environment() -> dict[str, str]:
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return own | ENVIRONMENT


def _wait(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"vLLM ended with {server.returncode} before it answered:\n{_last_lines(log)}")
        try:
            if httpx.get(f"{address}/health", timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(1)
    raise TimeoutError(f"vLLM was not up after {START_S:.0f} s; see {log}")
