"""What engines answer for the same folder: `python -m tests.engines.measure` asks, and writes `docs/ENGINES.md`'s table.

A base and an edited folder of each model go through each engine in each dtype. Rows of a model, engine and dtype that are
measured again replace the old ones in `docs/benchmark/engines.json`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, cast, get_args

from editors.export.formats import GgufType
from editors.export.gguf.write import write_gguf
from tests.engines import plain, vllm
from tests.engines.llama_cpp import LlamaCpp
from tests.engines.models import NUM_TOKENS, RECIPES, Asked, make, num_held

ROOT = Path(__file__).parent.parent.parent
ROWS = ROOT / "docs" / "benchmark" / "engines.json"
PAGE = ROOT / "docs" / "ENGINES.md"
BEGIN, END = "<!-- engines: begin -->", "<!-- engines: end -->"
#: Of a GGUF type, the dtype in which transformers is asked.
SAME_DTYPE = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "Q8_0": "float32"}
DTYPES = ("float32", "bfloat16", "float16")
#: Counts of a row that are of all its other prompts, in the order of the table.
SHOWN = ("audited", "base_as_transformers", "edited_as_transformers", "edited_as_base", "edited_as_base_in_transformers")
HOME = ROOT / ".serving" / "models"
#: How recipes end that leave the base's weights as they are.
SLOTS = ", slots"
#: vLLM refuses Gemma in float16 itself ("numerical instability").
NOT_IN_VLLM = {(model, "float16") for model in RECIPES if "gemma" in model}


@dataclass(frozen=True)
class Place:
    """Where a row stands: a model in an engine and dtype."""

    model: str
    engine: str
    dtype: str


def measured(places: Sequence[Place], home: Path) -> Iterator[dict[str, Any]]:
    """A row of each place: how many edits hold, how many answers are the audited ones, and transformers' in the same dtype.

    Places of one model and engine stand together.
    """
    for (model, engine), together in groupby(places, key=lambda place: (place.model, place.engine)):
        *folders, asked = make(model, home)
        here = list(together)
        if engine == "vllm":
            jobs = [vllm.Job(folder, place.dtype, asked.prompts) for place in here for folder in folders]
            answers = iter(vllm.answers(jobs, NUM_TOKENS, home / "vllm.log"))
        else:
            answers = (_in_llama_cpp(folder, place.dtype, asked) for place in here for folder in folders)
        for place in here:
            same = SAME_DTYPE.get(place.dtype, place.dtype)
            yield row_of(place, asked, [next(answers), next(answers)], [_told(folder, asked, same) for folder in folders])


def row_of(place: Place, asked: Asked, said: Sequence[Sequence[str]], told: Sequence[Sequence[str]]) -> dict[str, Any]:
    """A row from what an engine said and what transformers told, of the base and of the edited folder."""
    first = len(asked.edits)
    return {
        **asdict(place),
        "edits": first,
        "held": num_held(asked, said[1]),
        "others": len(asked.others),
        "audited": _equal(said[1][first:], asked.audited[first:]),
        "lost": num_lost(asked, said[0], said[1]),
        "base_as_transformers": _equal(said[0][first:], told[0][first:]),
        "edited_as_transformers": _equal(said[1][first:], told[1][first:]),
        "edited_as_base": _equal(said[1][first:], said[0][first:]),
        "edited_as_base_in_transformers": _equal(told[1][first:], told[0][first:]),
    }


def _told(folder: Path, asked: Asked, dtype: str) -> list[str]:
    """What transformers answers, asked once for each folder and dtype."""
    kept = folder.with_name(f"{folder.name}-{dtype}.json")
    if not kept.exists():
        kept.write_text(json.dumps(plain.answers(folder, asked.prompts, NUM_TOKENS, dtype)), encoding="utf-8")
    return json.loads(kept.read_text(encoding="utf-8"))


def _in_llama_cpp(folder: Path, dtype: str, asked: Asked) -> list[str]:
    file = folder.with_name(f"{folder.name}-{dtype}.gguf")
    write_gguf(folder, file, cast("GgufType", dtype))
    try:
        return LlamaCpp(file).answers(asked.prompts, NUM_TOKENS)
    finally:
        file.unlink()


def _equal(left: Sequence[str], right: Sequence[str]) -> int:
    return sum(a == b for a, b in zip(left, right, strict=True))


def num_lost(asked: Asked, base: Sequence[str], edited: Sequence[str]) -> int:
    """Bystanders that only the edited folder loses.

    The hooked model answers them as the base in float32, and so does the base itself in the engine and its dtype.
    """
    found = list(zip(asked.base, asked.audited, base, edited, strict=True))[len(asked.edits) :]
    return sum(before == audited == own != said for before, audited, own, said in found)


def wrong(row: dict[str, Any]) -> str:
    """What is not as it must be in a row, in words; empty where all is well.

    Every edit holds in every dtype, and with slots no bystander is lost that the base keeps there; changed weights round
    otherwise than the base's, and what that costs is counted. In float32 all answers are those of transformers. Whether the
    folder answers as the hooked model does is the gate's question (`served_agreement`), and counted.
    """
    place = f"{row['model']} in {row['engine']} as {row['dtype']}"
    if row["held"] < row["edits"]:
        return f"{place}: {row['held']} of {row['edits']} edits hold"
    if row["lost"] and row["model"].endswith(SLOTS):
        return f"{place}: {row['lost']} of {row['others']} bystanders are lost that the base keeps"
    if row["dtype"] in ("float32", "F32"):
        same = min(row["base_as_transformers"], row["edited_as_transformers"])
        if same < row["others"]:
            return f"{place}: {same} of {row['others']} answers are those of transformers"
    return ""


def rows() -> list[dict[str, Any]]:
    return json.loads(ROWS.read_text(encoding="utf-8")) if ROWS.exists() else []


def keep(row: dict[str, Any]) -> None:
    """Put a row in the place of an older one."""
    place = tuple(row[key] for key in ("model", "engine", "dtype"))
    others = [r for r in rows() if tuple(r[key] for key in ("model", "engine", "dtype")) != place]
    ordered = sorted([*others, row], key=lambda r: (list(RECIPES).index(r["model"]), r["engine"], _order(r["dtype"])))
    ROWS.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


def _order(dtype: str) -> int:
    return [*DTYPES, *SAME_DTYPE].index(dtype)


def table(found: Iterable[dict[str, Any]]) -> str:
    """The rows as a table of the page."""
    lines = [
        "| model | engine | dtype | edits held | unedited answers as audited | lost, kept by the base | base's answers as "
        "transformers' | edited model's as transformers' | unedited answers as the base's | (in transformers) |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in found:
        counts = (
            "audited",
            "base_as_transformers",
            "edited_as_transformers",
            "edited_as_base",
            "edited_as_base_in_transformers",
        )
        cells = [f"{r[key]} of {r['others']}" for key in counts]
        cells.insert(1, str(r["lost"]))
        lines.append(f"| {r['model']} | {r['engine']} | {r['dtype']} | {r['held']} of {r['edits']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def page_with(text: str) -> str:
    """A page's text with the table of the rows that are kept."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table(rows())}\n{END}{rest.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=["llama.cpp", "vllm"], action="append")
    parser.add_argument("--model", choices=list(RECIPES), action="append")
    parser.add_argument(
        "--dtype", action="append", help="float32, bfloat16, float16 of vLLM; F32, BF16, F16, Q8_0 of llama.cpp"
    )
    parser.add_argument("--home", type=Path, default=HOME, help="where the folders to serve are kept")
    given = parser.parse_args()
    given.home.mkdir(parents=True, exist_ok=True)
    places = [
        Place(model, engine, dtype)
        for engine in given.engine or ["llama.cpp", "vllm"]
        for model in given.model or RECIPES
        for dtype in (get_args(GgufType) if engine == "llama.cpp" else DTYPES)
        if (given.dtype is None or dtype in given.dtype) and not (engine == "vllm" and (model, dtype) in NOT_IN_VLLM)
    ]
    problems: list[str] = []
    for row in measured(places, given.home):
        keep(row)
        print(json.dumps(row), flush=True)
        problems += [why] if (why := wrong(row)) else []
    PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
