"""Digests of the weights that an engine holds, beside those of the promoted checkpoint.

vLLM shows them (`VLLM_SERVER_DEV_MODE=1`, `POST /weight_checker`): one for each parameter of its own model, in which some
projections are one matrix and embeddings have more rows. What it would show of the promoted folder is worked out here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from editors.model import tensor_bytes
from warehouse.digests import sha256_bytes
from warehouse.records import EngineFacts, Record

#: Projections that vLLM holds as one matrix, rows below each other.
JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
#: Matrices with a row for each token, which it fills with zeros up to a multiple of `ROWS`.
BY_TOKEN, ROWS = ("embed_tokens", "wte", "lm_head"), 64
#: What GPT-2 stores (in, out) it holds (out, in).
TURNED = ("c_attn", "c_proj", "c_fc")
#: Of a parameter whose numbers the engine has moved elsewhere, as vLLM does on CPUs.
OF_NOTHING = sha256_bytes(b"")
SHOWN = 3


class WeightsSeen(Record):
    """What an engine's digests of its weights say.

    Attributes:
        equal: tensors that are the promoted checkpoint's to the bit.
        different: names of those that are not.
        elsewhere: parameters of which the engine shows nothing: their numbers were moved, or each process has a part.
        unknown: parameters that the checkpoint's folder has no tensor for, such as a tied head.
        why_not: why the engine showed none at all.
        dtype: of the promoted tensors.
    """

    equal: int = 0
    different: tuple[str, ...] = ()
    elsewhere: int = 0
    unknown: int = 0
    why_not: str = ""
    dtype: str = ""

    @property
    def sentence(self) -> str:
        """For a person, after what the answers said."""
        if self.why_not:
            return f"its weights were not compared: {self.why_not}"
        compared = self.equal + len(self.different)
        if not compared:
            return f"it shows none of its weights: {self.elsewhere} are kept elsewhere, {self.unknown} are unknown here"
        more = f", {self.elsewhere + self.unknown} could not be compared" if self.elsewhere + self.unknown else ""
        if not self.different:
            return f"{compared} of its tensors are the promoted ones to the bit{more}"
        names = ", ".join(self.different[:SHOWN]) + (" and others" if len(self.different) > SHOWN else "")
        why = f" (is the server's dtype {self.dtype}, as the promoted folder's?)" if not self.equal else ""
        return f"{len(self.different)} of {compared} tensors are not the promoted ones: {names}{why}{more}"


def held_digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """sha256 of the tensors that vLLM holds otherwise than a folder of them, by their names there."""
    return {name: sha256_bytes(tensor_bytes(tensor)) for name, tensor in _held(tensors)}


def _held(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name in tensors:
        stem, _, ending = name.rpartition(".")
        site, _, last = stem.rpartition(".")
        for joined, parts in JOINED.items():
            if last == parts[0] and all(f"{site}.{part}.{ending}" in tensors for part in parts):
                yield f"{site}.{joined}.{ending}", torch.cat([tensors[f"{site}.{part}.{ending}"] for part in parts])
        if ending != "weight":
            continue
        if last in TURNED:
            yield name, tensors[name].t()
        elif last in BY_TOKEN and (missing := -len(tensors[name]) % ROWS):
            yield name, pad(tensors[name], (0, 0, 0, missing))


def compare_weights(facts: EngineFacts, shown: Mapping[str, str]) -> WeightsSeen:
    """Compare digests that an engine shows with those of a manifest.

    Args:
        shown: key -> sha256; a key is the parameter's name behind the place of the process that holds it (`dp0:..:tp1:NAME`).
    """
    expected = {**facts.tensors, **facts.held}
    found: dict[str, set[str]] = {}
    for key, digest in shown.items():
        found.setdefault(key.rpartition(":")[2], set()).add(digest)
    equal, different, elsewhere, unknown = 0, [], 0, 0
    for name, digests in sorted(found.items()):
        if name not in expected:
            unknown += 1
        elif digests == {expected[name]}:
            equal += 1
        elif len(digests) > 1 or OF_NOTHING in digests:
            elsewhere += 1
        else:
            different.append(name)
    return WeightsSeen(equal=equal, different=tuple(different), elsewhere=elsewhere, unknown=unknown, dtype=facts.dtype)
