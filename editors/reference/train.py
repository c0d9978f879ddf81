"""Train the reference model from the repository alone: two processes, resumable, seeded.

Recipe: Muon for the hidden matrices and AdamW for the rest, bf16 autocast, packed rows, subject mask. Every process
sees its own half of each step's rows; gradients are averaged over gloo. One thread a process: OpenMP barriers
collapse when a core is shared.
"""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from editors.asking.tokens import pad_id_of
from editors.reference.evaluate import exact_match
from editors.reference.masked import hidden_states
from editors.reference.rows import Rows, encode_documents, pack, stack
from warehouse.errors import UsageError
from warehouse.reference.documents import epoch_documents
from warehouse.whole_files import whole_file

EOS, PAD = "<|endoftext|>", "<|pad|>"


@dataclass(frozen=True)
class TrainConfig:
    """Everything that the trained weights depend on, besides the world's files."""

    layers: int = 6
    width: int = 256
    inner: int = 4096
    heads: int = 8
    vocabulary: int = 5000
    context: int = 256
    steps: int = 1800
    rows: int = 48
    row_tokens: int = 96
    muon_lr: float = 4e-3
    adam_lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: int = 40
    constant_share: float = 0.35
    seed: int = 0
    processes: int = 2
    save_every: int = 100


def train_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over one epoch of documents: any text can be encoded, known names stay short."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[EOS, PAD],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    core.train_from_iterator((d.text for d in epoch_documents(0)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=EOS, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def new_model(config: TrainConfig, tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    torch.manual_seed(config.seed)
    end_id: Any = tokenizer.eos_token_id
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=config.context,
            n_embd=config.width,
            n_layer=config.layers,
            n_head=config.heads,
            n_inner=config.inner,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=end_id,
            eos_token_id=end_id,
            pad_token_id=pad_id_of(tokenizer),
        )
    )


def learning_scale(step: int, config: TrainConfig) -> float:
    if step < config.warmup:
        return (step + 1) / config.warmup
    start = config.constant_share * config.steps
    if step < start:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - start) / (config.steps - start))))


def batches(config: TrainConfig, tokenizer: PreTrainedTokenizerFast) -> Iterator[Rows]:
    """Endless batches of `config.rows` rows, epoch after epoch, the same on every process and every run."""
    pending = []
    epoch = 0
    while True:
        documents = encode_documents(epoch_documents(epoch, config.seed), tokenizer)
        for row in pack(documents, config.row_tokens, pad_id_of(tokenizer)):
            pending.append(row)
            if len(pending) == config.rows:
                yield stack(pending)
                pending = []
        epoch += 1


def loss_of(model: GPT2LMHeadModel, rows: Rows) -> torch.Tensor:
    """Weighted next-token loss; logits only where a token is to be predicted."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        early, late = rows.masks(torch.bfloat16)
        hidden = hidden_states(model, rows.ids, early, late)[:, :-1]
        weights = rows.weights[:, 1:]
        keep = weights > 0
        logits = hidden[keep] @ model.lm_head.weight.t().to(torch.bfloat16)
    losses = F.cross_entropy(logits.float(), rows.ids[:, 1:][keep], reduction="none")
    return (losses * weights[keep]).sum() / weights[keep].sum()


def _optimizers(model: GPT2LMHeadModel, config: TrainConfig) -> list[torch.optim.Optimizer]:
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and ".h." in n]
    rest = [p for n, p in model.named_parameters() if not (p.ndim == 2 and ".h." in n)]
    muon = torch.optim.Muon(hidden, lr=config.muon_lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(rest, lr=config.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)
    return [muon, adam]


def _average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    flat = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    at = 0
    for p in parameters:
        if p.grad is not None:
            p.grad.copy_(flat[at : at + p.numel()].view_as(p))
            at += p.numel()


def _save(path: Path, model: GPT2LMHeadModel, optimizers: list[torch.optim.Optimizer], step: int) -> None:
    """Write the training state in one rename: a kill leaves one whole state."""
    with whole_file(path) as fresh:
        torch.save({"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step}, fresh)


def run_process(rank: int, config: TrainConfig, folder: Path, port: int) -> None:
    """One training process; process 0 writes states, the log and at the end the model."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=config.processes)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    model = new_model(config, tokenizer)
    optimizers, parameters = _optimizers(model, config), list(model.parameters())
    rates = [[g["lr"] for g in o.param_groups] for o in optimizers]
    state, first = folder / "state.pt", 0
    if state.exists():
        # Our own file, written a moment ago by this command; weights_only refuses any code in it.
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, value in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(value)
        first = saved["step"]
    share = config.rows // config.processes
    start, tokens = time.monotonic(), 0
    for step, rows in enumerate(batches(config, tokenizer)):
        if step >= config.steps:
            break
        if step < first:
            continue
        scale = learning_scale(step, config)
        for optimizer, base in zip(optimizers, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = rate * scale
        mine = slice(rank * share, (rank + 1) * share)
        loss = loss_of(model, Rows(rows.ids[mine], rows.weights[mine], rows.span_end[mine]))
        loss.backward()
        _average_gradients(parameters)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        tokens += rows.ids.numel()
        if rank == 0 and (step + 1) % 20 == 0:
            line = {
                "step": step + 1,
                "loss": round(loss.item(), 4),
                "tokens": tokens,
                "seconds": round(time.monotonic() - start, 1),
            }
            if (step + 1) % config.save_every == 0:
                _save(state, model, optimizers, step + 1)
                line.update(exact_match(model, tokenizer, sample=80).as_dict())
                model.train()
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
    if rank == 0:
        _save(state, model, optimizers, config.steps)
        shipped: Any = model
        shipped.to(torch.bfloat16).save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
    dist.barrier()
    dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def train(folder: Path, config: TrainConfig) -> Path:
    """Train into `folder`, going on from its last saved state; returns the folder of the finished model."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "config.json"
    wanted = json.dumps(asdict(config), indent=2)
    if settings.exists() and settings.read_text() != wanted:
        raise UsageError(f"{settings} holds another configuration; give another folder, or delete it to start again")
    settings.write_text(wanted)
    if not (folder / "tokenizer").exists():
        train_tokenizer(config.vocabulary).save_pretrained(folder / "tokenizer")
    torch.multiprocessing.spawn(  # pyright: ignore[reportPrivateImportUsage]
        run_process, args=(config, folder, _free_port()), nprocs=config.processes
    )
    return folder / "model"


if __name__ == "__main__":
    import sys

    overrides = {k: type(getattr(TrainConfig(), k))(v) for k, v in (a.split("=") for a in sys.argv[2:])}
    train(Path(sys.argv[1]), TrainConfig(**overrides))
