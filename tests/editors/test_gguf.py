"""A model given as a `.gguf` file: the weights that it holds, whole and plain, or one line that names the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from transformers import AutoModelForCausalLM

from editors.errors import UnsupportedModel
from editors.model import EditableModel
from editors.presets import load_editor
from editors.session import batch_of
from tests.gguf_files import TEMPLATE, tensors, write_gguf
from tests.support import CORPUS, SIX_REQUESTS, TEXTS, tiny_model, tiny_tokenizer

DOWN, DOWN_IN_FILE = "model.layers.2.mlp.down_proj.weight", "blk.2.ffn_down.weight"


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def model(tiny_file: Path) -> EditableModel:
    return EditableModel.from_pretrained(str(tiny_file))


def test_a_float_file_gives_the_weights_that_were_written(model: EditableModel) -> None:
    own = tiny_model("llama")
    assert model.parameter_names() == own.parameter_names()
    assert all(torch.equal(own.parameter(name), model.parameter(name)) for name in own.parameter_names())
    assert model.generate(["Ada Lovelace was"], 6) == own.generate(["Ada Lovelace was"], 6)


def test_its_tokenizer_splits_as_the_one_that_was_written(model: EditableModel) -> None:
    assert [model.tokenizer(text).input_ids for text in TEXTS] == [tiny_tokenizer()(text).input_ids for text in TEXTS]
    assert model.tokenizer.chat_template == TEMPLATE
    assert (model.tokenizer.eos_token, model.tokenizer.pad_token) == ("<|endoftext|>", "<|pad|>")


def test_a_quantised_file_gives_plain_numbers(tmp_path: Path) -> None:
    kind = GGMLQuantizationType.Q4_1
    model = EditableModel.from_pretrained(str(write_gguf(tmp_path / "q.gguf", kind=kind)))
    expected = dequantize(quantize(tensors()[DOWN_IN_FILE], kind), kind)
    assert torch.equal(model.parameter(DOWN), torch.from_numpy(expected))
    assert not torch.equal(model.parameter(DOWN), tiny_model("llama").parameter(DOWN))
    assert "quantization_config" not in model.hf.config.to_dict()


def test_its_numbers_are_of_the_dtype_that_is_asked_for(tiny_file: Path) -> None:
    half = EditableModel.from_pretrained(str(tiny_file), dtype=torch.bfloat16)
    assert torch.equal(half.parameter(DOWN), tiny_model("llama").parameter(DOWN).bfloat16())
    stored = EditableModel.from_pretrained(str(tiny_file), dtype=None)
    assert torch.equal(stored.parameter(DOWN), tiny_model("llama").parameter(DOWN))


def test_saved_and_read_back_it_is_the_same_base(model: EditableModel, tmp_path: Path) -> None:
    """Nights on the file and on the folder made of it must be of one lineage."""
    model.save_pretrained(tmp_path / "saved")
    again = EditableModel.from_pretrained(str(tmp_path / "saved"))
    assert again.base_digest == model.base_digest
    assert again.tokenizer.chat_template == TEMPLATE
    config = (tmp_path / "saved" / "config.json").read_text(encoding="utf-8")
    assert "LlamaForCausalLM" in config and "quantization" not in config and "/errata-" not in config


def test_it_is_edited_and_exported_as_any_other(model: EditableModel, tmp_path: Path) -> None:
    editor = load_editor("r_rome", model)
    before = model.base_parameter(DOWN).clone()
    model.push(editor.edit(model, batch_of([SIX_REQUESTS[0]]), editor.prepare(model, CORPUS)))
    changed = model.changed_parameters()
    assert changed
    model.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(plain[name], model.parameter(name)) for name in model.parameter_names())
    model.rollback(0)
    assert torch.equal(model.parameter(DOWN), before)
    assert not torch.equal(plain[changed[0]], model.parameter(changed[0]))


def test_a_folder_with_one_file_is_that_file_and_its_neighbours_do_not_count(tiny_file: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(tiny_file.read_bytes())
    # Another model's tokenizer.
    tiny_tokenizer().save_pretrained(tmp_path)
    text = (tmp_path / "tokenizer.json").read_text(encoding="utf-8").replace("Paris", "Sirap")
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    found = EditableModel.from_pretrained(str(tmp_path))
    assert found.base_digest == EditableModel.from_pretrained(str(tiny_file)).base_digest
    assert found.tokenizer(TEXTS[2]).input_ids == tiny_tokenizer()(TEXTS[2]).input_ids
    (tmp_path / "other.GGUF").write_bytes(b"GGUF")
    with pytest.raises(UnsupportedModel, match=r"has 2 \.gguf files \(other\.GGUF, tiny\.gguf\)"):
        EditableModel.from_pretrained(str(tmp_path))


def test_safetensors_go_before_a_file_beside_them(tiny_file: Path, tmp_path: Path) -> None:
    other = tiny_model("llama", seed=1)
    other.save_pretrained(tmp_path)
    (tmp_path / "tiny.gguf").write_bytes(tiny_file.read_bytes())
    assert torch.equal(EditableModel.from_pretrained(str(tmp_path)).parameter(DOWN), other.parameter(DOWN))


def damaged(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(write_gguf(path).read_bytes())) and None


def written(**options) -> Callable[[Path], None]:
    return lambda path: write_gguf(path, **options) and None


CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (damaged(lambda _: b""), "cut off in its header"),
    "cut off in the vocabulary": (damaged(lambda data: data[:3000]), "cut off in its header"),
    "cut off in the weights": (damaged(lambda data: data[: len(data) // 2]), r"cut off: it has .* and tensor \S+ ends at byte"),
    "one byte short": (damaged(lambda data: data[:-1]), r"cut off: .* tensor"),
    "another kind of file": (damaged(lambda data: b"PK\3\4" + data[4:]), "is no GGUF file"),
    "version 9": (damaged(lambda data: data[:4] + b"\x09\0\0\0" + data[8:]), "is GGUF of version 9"),
    "big-endian": (damaged(lambda data: data[:4] + b"\0\0\0\3" + data[8:]), "big-endian"),
    "a length beyond all bounds": (damaged(lambda data: data[:24] + b"\xff" * 8 + data[32:]), "cut off in its header"),
    "a name that is no text": (damaged(lambda data: data.replace(b"general.n", b"general\xff\xff")), "a text .* not UTF-8"),
    "a pointer": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n") and None, "git lfs pull"),
    "one part of three": (written(values=lambda w: w.add_uint16("split.count", 3)), "one of 3 parts.*--merge"),
    "scaled positions": (written(values=lambda w: w.add_string("llama.rope.scaling.type", "yarn")), r"positions \(yarn\)"),
    "scaled positions, as a tensor": (written(extra=("rope_freqs.weight",)), r"rope_freqs\.weight\): its positions are scaled"),
    "a tensor too many": (written(extra=("blk.0.attn_q.bias",)), r"no place for \(blk\.0\.attn_q\.bias\)"),
    "a tensor missing": (written(without=(DOWN_IN_FILE,)), r"lacks tensors .*model\.layers\.2\.mlp\.down_proj\.weight"),
    "an architecture without anatomy": (written(architecture="nonesuch"), "nonesuch"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_file_that_is_not_whole_or_not_plain_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    damage, words = CASES[case]
    damage(tmp_path / "base.gguf")
    with pytest.raises(UnsupportedModel, match=words) as refusal:
        EditableModel.from_pretrained(str(tmp_path / "base.gguf"))
    assert "\n" not in str(refusal.value)
    assert "base.gguf" in str(refusal.value)


@pytest.mark.parametrize("name", ["{}/nothing.gguf", "models/nothing.gguf", "nothing.GGUF"])
def test_a_file_that_is_not_there_is_said_without_asking_a_hub(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"nothing\.\w+' is not there; set model\.name .*\.gguf file"):
        EditableModel.from_pretrained(name.format(tmp_path))
