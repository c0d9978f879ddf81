"""A base model and its stack of patches, with three seams for editors: overwrite a weight, hook a module, wrap a call."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.activations import NewGELUActivation

from editors.architectures.anatomies import anatomy_of
from editors.architectures.anatomy import Head
from editors.architectures.blocks import fit_blocks
from editors.architectures.placement import Placement, shown_on, without_hooks
from editors.asking.calls import Call, Generation, PromptPositions, Runner
from editors.asking.runner import PlainRunner
from editors.asking.scoring import likelihoods_of, next_log_probs_of, score_call, stop_tokens
from editors.asking.tokens import asking_tokenizer, continuation_of, pad_id_of, save_tokenizer
from editors.errors import EditRefused, UnsupportedModel
from editors.exact import aligned
from editors.loading import DeviceMap, load_checkpoint
from editors.precision import WIDER
from warehouse.digests import canonical_json, digest_of_parts
from warehouse.questions import Answer, Question
from warehouse.records import checkpoint_id

Undo = Callable[[], None]
#: Rows of a weight that are held in fp32 at once while an update is added.
ROWS_AT_ONCE = 1024
#: Activations that float16 cannot hold show on any text, mostly at its first token.
ORDINARY = "The capital of France is"
PatchKind = Literal["weight", "module", "memory", "prompt"]


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in row-major order, whatever its dtype."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def fuse_activations(model: PreTrainedModel) -> PreTrainedModel:
    """Replace transformers' `gelu_new`, eight passes over the widest tensor, by torch's one-pass form of the same formula."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(parent, name, nn.GELU(approximate="tanh"))
    return model


class Patch(ABC):
    """What one edit leaves behind: saved, signed, promoted, taken off again.

    `tensors` and `meta` hold all of it; a patch of this kind built from equal ones is an equal patch.
    """

    kind: ClassVar[PatchKind]

    @property
    def rederivable(self) -> bool:
        """The maker wrote its checkpoint by rules that give the same bits on every machine; patches of before did not."""
        return True

    @property
    @abstractmethod
    def tensors(self) -> Mapping[str, Tensor]: ...

    @property
    @abstractmethod
    def meta(self) -> Mapping[str, Any]: ...

    @classmethod
    @abstractmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Patch: ...

    @abstractmethod
    def attach(self, model: EditableModel) -> Undo:
        """Make the model show this edit. Weights need no undo: the model restores them from its base copy."""

    @cached_property
    def digest(self) -> str:
        """sha256 over kind, metadata and tensors (names, dtypes, shapes, bytes)."""
        parts = [(f"{name}:{t.dtype}:{tuple(t.shape)}", tensor_bytes(t)) for name, t in self.tensors.items()]
        return digest_of_parts([*parts, ("kind", self.kind.encode()), ("meta", canonical_json(dict(self.meta)))])

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors.values())


class EditableModel:
    """A base model and its stack of patches; structurally a `checks.Predictor`.

    The original of a weight is kept once, when it is first overwritten, so thousands of edits cost one copy.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str = "model",
        revision: str = "local",
        base_digest: str | None = None,
    ) -> None:
        """Take a model and its tokenizer into editing.

        Args:
            base_digest: of exactly these weights and this config, where it was taken before; None: it is taken now.

        Raises:
            UnsupportedModel: an architecture without anatomy, a slow tokenizer, or a float16 that gives no finite number.
        """
        on_disk = without_hooks(model)
        self.hf = fit_blocks(fuse_activations(model.eval().requires_grad_(False)))
        if not getattr(tokenizer, "is_fast", False):
            raise UnsupportedModel(f"{name} needs a fast tokenizer: subject positions come from its offsets")
        #: `tokenizer` asks; the one that came with the model is what exports carry.
        self.tokenizer, self.own_tokenizer = asking_tokenizer(tokenizer), tokenizer
        self.name, self.revision = name, revision
        self.anatomy = anatomy_of(model)
        self.pad_id = pad_id_of(tokenizer)
        self.patches: list[Patch] = []
        self.memories: dict[str, Any] = {}
        #: What was computed from patches alone: right whatever is pushed or rolled back.
        self.derived: dict[str, Any] = {}
        self.positions: PromptPositions | None = None
        self._undos: list[Undo] = []
        #: Hooks that have to see a row's tokens together.
        self._row_hooks: set[int] = set()
        self._originals: dict[str, Tensor] = {}
        #: Of each open `scratch`: what was overwritten in it -> its state before, None where that is the original.
        self._scratches: list[dict[str, Tensor | None]] = []
        self._parameters = dict(model.named_parameters())
        for parameter in self._parameters.values():
            # A copy of the model answers like the model itself, to the last bit, only if its weights lie alike.
            if not parameter.is_meta:
                parameter.data = aligned(parameter.data)
        self._placement = Placement(model, self.anatomy, on_disk)
        self._plain = PlainRunner(self)
        self._runner: Runner = self._plain
        self._stops: Tensor | None = None
        self.base_digest = base_digest or self._content_digest()
        trunk = self.anatomy.trunk
        runs_blocks = model.base_model if trunk is None else model.get_submodule(trunk)
        runs_blocks.register_forward_pre_hook(self._note_offset, with_kwargs=True)
        if model.dtype == torch.float16 and not np.isfinite(self.next_token_log_probs([ORDINARY])).all():
            raise UnsupportedModel(f"{name} gives no finite number on {ORDINARY!r} in float16; {WIDER}")

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        revision: str | None = None,
        dtype: torch.dtype | None = torch.float32,
        device: torch.device | str = "cpu",
        device_map: DeviceMap | None = None,
        trust_remote_code: bool = False,
        base_digest: str | None = None,
    ) -> EditableModel:
        """Load a model and tokenizer from a local folder, a `.gguf` file or a hub id at a pinned revision; never a pickle.

        Args:
            dtype: None: the one that the checkpoint is stored in.
            device_map: where modules lie, for a model that does not fit on one device (`editors.loading`); None: all on
                `device`, which has no part in it otherwise.
            trust_remote_code: run the model's own code. Off, a model that brings code is refused or loaded without it.
            base_digest: as in `EditableModel`; the weights are then not read for it.

        Raises:
            UnsupportedModel: nothing whole and loadable at that name (see `editors.loading`), or an architecture without
                anatomy.
        """
        model, tokenizer = load_checkpoint(
            name, revision=revision, dtype=dtype, trust_remote_code=trust_remote_code, device_map=device_map
        )
        placed: Any = model
        placed = placed.to(device) if device_map is None else placed
        return cls(placed, tokenizer, name=name, revision=revision or "local", base_digest=base_digest)

    @property
    def device(self) -> torch.device:
        """Where tokens go in, and where everything is that the model shows: states, weights, logits. What an editor learns
        and solves is there too, unless that device has no float64 (`precision.py`)."""
        return self._placement.device

    @property
    def is_spread(self) -> bool:
        """Some of its weights lie on another device, or on the disk."""
        return self._placement.spread

    def runs_on(self, path: str) -> torch.device:
        """Where a module is computed; the model's device unless it is spread."""
        return self._placement.runs_on(self.hf.get_submodule(path))

    @property
    def num_bytes(self) -> int:
        """Of the parameters, a shared one counted once."""
        return sum(p.numel() * p.element_size() for p in self._parameters.values())

    # ------------------------------------------------------------ identity

    @property
    def digest(self) -> str:
        """Base content and ordered patch digests; cheap, so usable as a cache key for every prediction."""
        return checkpoint_id(self.base_digest, [p.digest for p in self.patches])

    def state_digest(self) -> str:
        """Digest of the weights as they are now, bit for bit, and of the patches attached."""
        return checkpoint_id(self._content_digest(), [p.digest for p in self.patches])

    def read_base_digest(self) -> str:
        """The digest of the base weights, read now from memory; `base_digest` may have been given on loading."""
        return self._content_digest(self._originals)

    def _content_digest(self, instead: Mapping[str, Tensor] | None = None) -> str:
        """Of the weights as they are now, with `instead` in place of those of the same name."""

        def read(name: str) -> Tensor:
            return instead[name] if instead and name in instead else self._stored(name)

        config = {k: v for k, v in self.hf.config.to_dict().items() if k not in {"_name_or_path", "transformers_version"}}
        # One by one: on an accelerator the bytes of a tensor are a copy of it.
        parts = [(name, lambda name=name: tensor_bytes(read(name))) for name in self._parameters]
        return digest_of_parts([*parts, ("config", canonical_json({k: str(v) for k, v in config.items()}))])

    # ------------------------------------------------------------ the patch stack

    def push(self, patch: Patch) -> None:
        """Attach a patch on top of the stack; where that fails, the model is as it was before."""
        try:
            undo = patch.attach(self)
        except Exception:
            # Some of its weights may be in already.
            self.rollback(len(self.patches))
            raise
        self._undos.append(undo)
        self.patches.append(patch)

    def rollback(self, depth: int) -> None:
        """Keep the first `depth` patches: restore the base weights exactly, then replay those patches in order.

        Raises:
            ValueError: `depth` is negative or larger than the stack.
        """
        if not 0 <= depth <= len(self.patches):
            raise ValueError(f"cannot roll back to {depth} of {len(self.patches)} patches")
        for undo in reversed(self._undos):
            undo()
        for name, original in self._originals.items():
            self._keep_for_scratch(name)
            self._parameters[name].data.copy_(original)
        kept, self.patches, self._undos = self.patches[:depth], [], []
        self.memories.clear()
        for patch in kept:
            self.push(patch)

    # ------------------------------------------------------------ seam 1: weights

    def parameter(self, name: str) -> Tensor:
        """A parameter as it stands, in its dtype and storage order, on the model's device.

        The live tensor where it lies there, as all do unless the model is spread; else a copy. `overwrite` writes to both.

        Raises:
            UnsupportedModel: there is no such parameter.
        """
        return self._placement.shown(name, self._held(name))

    def base_parameter(self, name: str) -> Tensor:
        """The parameter as it was in the base model, on the model's device."""
        return self._originals[name].to(self.device) if name in self._originals else self.parameter(name)

    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers as they stand, by the names of a saved model, each where it lies; none stays on the disk."""
        held = self.hf.state_dict()
        return {name: self._placement.stored(name, tensor) for name, tensor in held.items()}

    def _held(self, name: str) -> nn.Parameter:
        if name not in self._parameters:
            raise UnsupportedModel(f"{self.name} has no parameter {name!r}")
        return self._parameters[name]

    def _stored(self, name: str) -> Tensor:
        """The numbers of a parameter where they lie."""
        return self._placement.stored(name, self._held(name))

    def parameter_names(self) -> tuple[str, ...]:
        """Names of all parameters, in the model's order."""
        return tuple(self._parameters)

    def changed_parameters(self) -> list[str]:
        """Names of the parameters that differ from the base model's, in the model's order."""
        return [
            n for n in self._parameters if n in self._originals and not torch.equal(self._originals[n], self._parameters[n])
        ]

    def overwrite(self, name: str, value: Tensor) -> None:
        """Set a parameter, keeping its original the first time."""
        held = self._held(name)
        if value.shape != held.shape:
            raise ValueError(f"{name} has shape {tuple(held.shape)}, not {tuple(value.shape)}")
        self._keep_for_scratch(name)
        current = self._resident(name).data
        if name not in self._originals:
            self._originals[name] = current.clone()
        current.copy_(value)

    def take_into_memory(self, path: str) -> None:
        """Of a module's weights, those that were left on the disk come into the CPU's memory, to stay: for what has to find
        them in the module itself."""
        for name, _ in self.hf.get_submodule(path).named_parameters(prefix=path):
            self._resident(name)

    def _resident(self, name: str) -> nn.Parameter:
        self._parameters[name] = self._placement.resident(name, self._held(name))
        return self._parameters[name]

    def _keep_for_scratch(self, name: str) -> None:
        """Before a parameter changes: each open scratch that has not seen it change keeps how it stands now."""
        unaware = [kept for kept in self._scratches if name not in kept]
        now = self._parameters[name].data.clone() if unaware and name in self._originals else None
        for kept in unaware:
            kept[name] = now

    def weight(self, path: str, layer: int) -> Tensor:
        """A projection's weight as (d_out, d_in), a view of what `parameter` gives whatever the storage order."""
        stored = self.parameter(path.format(layer=layer) + ".weight")
        return stored.t() if self._is_in_out(path, layer) else stored

    def add_to_weight(self, name: str, delta: Tensor) -> None:
        """Add a (d_out, d_in) update to the weight parameter `name`, in fp32 and rounded once to its dtype.

        Raises:
            EditRefused: the sum goes beyond float16, which is the weight's dtype.
        """
        stored = self._stored(name)
        module = self.hf.get_submodule(name.rsplit(".", 1)[0])
        oriented = delta if isinstance(module, (nn.Linear, nn.Embedding)) else delta.t()
        changed = torch.empty_like(stored)
        # A few rows at a time: whole, the terms and their sum would be three fp32 copies of the weight.
        for start in range(0, len(stored), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            changed[rows] = stored[rows].float() + oriented[rows].to(stored.device).float()
        if stored.dtype == torch.float16 and not bool(changed.isfinite().all()):
            raise EditRefused(f"{name} with its update is not finite in float16; {WIDER}")
        self.overwrite(name, changed)

    def _is_in_out(self, path: str, layer: int) -> bool:
        # GPT-2's Conv1D stores (d_in, d_out); everything else that we touch is nn.Linear.
        return not isinstance(self.hf.get_submodule(path.format(layer=layer)), nn.Linear)

    @contextmanager
    def scratch(self) -> Iterator[None]:
        """Undo, bit for bit, every overwrite made inside: an editor leaves the model as it found it."""
        before: dict[str, Tensor | None] = {}
        self._scratches.append(before)
        try:
            yield
        finally:
            self._scratches.pop()
            for name, value in before.items():
                # A scratch inside this one may have brought the original back already.
                restored = self._originals.pop(name, None) if value is None else value
                if restored is not None:
                    self._parameters[name].data.copy_(restored)

    # ------------------------------------------------------------ seams 2 and 3: modules and calls

    def hook(self, path: str, function: Callable[[nn.Module, tuple[Any, ...], Any], Any], *, by_token: bool = False) -> Undo:
        """Call `function(module, inputs, output)` after a module; what it returns (if not None) becomes the output.

        Both are on the model's device, wherever the module lies.

        Args:
            by_token: what it does at a token depends on that token's states and on `positions` alone, so that a prompt may
                pass in parts, its beginning once for many prompts. Not so where it decides for a row from all its tokens.
        """
        handle = self.hf.get_submodule(path).register_forward_hook(shown_on(self.device, function))
        if by_token:
            return handle.remove
        self._row_hooks.add(handle.id)

        def undo() -> None:
            handle.remove()
            self._row_hooks.discard(handle.id)

        return undo

    @property
    def shares_prefixes(self) -> bool:
        """May what many prompts begin with run once for all of them? Not under a hook that reads whole rows."""
        return not self._row_hooks

    def wrap(self, make: Callable[[Runner], Runner]) -> Undo:
        """Put a runner around the current one; the undo takes it off, and everything wrapped around it later."""
        previous = self._runner
        self._runner = make(previous)

        def undo() -> None:
            self._runner = previous

        return undo

    def _note_offset(self, _module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.positions is not None:
            cache = kwargs.get("past_key_values")
            self.positions.offset = int(cache.get_seq_length()) if cache is not None else 0

    # ------------------------------------------------------------ the Predictor

    @property
    def runner(self) -> Runner:
        """The outermost runner: what a user of the edited model meets."""
        return self._runner

    @property
    def head(self) -> Head:
        """The language-model head: hidden states to logits."""
        return self.anatomy.head(self.hf)

    @property
    def head_weight(self) -> Tensor:
        """(vocab, d_model) of the head, on the model's device."""
        held = self.head.weight
        # Where it is tied, it goes by the embedding's name.
        return self.parameter(next(name for name, parameter in self._parameters.items() if parameter is held))

    @property
    def vocab_size(self) -> int:
        return int(self.head.weight.shape[0])

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end a generation: those of the checkpoint's generation settings, else its tokenizer's."""
        shipped = getattr(self.hf.generation_config, "eos_token_id", None)
        for found in (shipped, self.hf.config.eos_token_id, self.tokenizer.eos_token_id):
            if found is not None:
                return tuple(int(token) for token in (found if isinstance(found, (list, tuple)) else (found,)))
        return ()

    @property
    def stops(self) -> Tensor:
        """(vocab,) True for tokens that end an answer; computed once."""
        if self._stops is None:
            # Built by `score` under inference mode, it could not be used where gradients are taken.
            with torch.inference_mode(False):
                self._stops = stop_tokens(self.tokenizer, self.vocab_size)
        return self._stops

    @torch.inference_mode()
    def score(self, questions: Sequence[Question]) -> list[Answer]:
        """Score questions, in their order. One teacher-forced pass each."""
        call = Call(tuple(q.prompt for q in questions), tuple(continuation_of(q.answer) for q in questions))
        return score_call(self._runner, call, self.stops, self.tokenizer)

    @torch.inference_mode()
    def generate(self, prompts: Sequence[str], max_new_tokens: int, *, sample: bool = False, seed: int = 0) -> list[str]:
        """Continuations without the prompt, special tokens removed; greedy unless `sample`."""
        return self._runner.generate(prompts, Generation(max_new_tokens, sample, seed))

    @torch.inference_mode()
    def log_likelihoods(self, texts: Sequence[str]) -> list[tuple[float, int]]:
        """(sum of token log-probabilities in nats, number of tokens) of each text, from its first token on."""
        return likelihoods_of(self._runner, Call(("",) * len(texts), tuple(texts)))

    @torch.inference_mode()
    def next_token_log_probs(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """(prompts, vocab) log-probabilities of the token after each prompt."""
        return np.stack(next_log_probs_of(self._runner, Call(tuple(prompts), ("",) * len(prompts))))

    # ------------------------------------------------------------ export

    def save_pretrained(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write the weights as they are now and the tokenizer as a plain Hugging Face directory."""
        state = {k: v.to(dtype) if dtype and v.is_floating_point() else v for k, v in self.state().items()}
        self.hf.save_pretrained(folder, state_dict=state, safe_serialization=True)
        if dtype is not None:
            # transformers writes the live model's dtype, and `dtype="auto"` would load the file at that size.
            path = folder / "config.json"
            config = json.loads(path.read_text(encoding="utf-8")) | {"dtype": str(dtype).removeprefix("torch.")}
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        save_tokenizer(self.own_tokenizer, folder)
