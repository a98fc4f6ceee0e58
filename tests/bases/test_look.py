"""A source is looked at before it is used: whole, finite, of safetensors, with a row for every token, unchanged."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.inputs import write_model
from safetensors.torch import load_file, save_file

from plr.bases.load import load_source
from plr.bases.resolve import resolve_model
from plr.errors import IntegrityError, ModelError

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "m")
    return tmp_path / "m"


def load(folder: Path) -> Any:
    return load_source(resolve_model(str(folder)), dtype=torch.float32, device="cpu").model


def without(part: str) -> Callable[[Tensors], None]:
    def edit(tensors: Tensors) -> None:
        for key in [key for key in tensors if part in key]:
            del tensors[key]

    return edit


def with_value(key: str, value: float) -> Callable[[Tensors], None]:
    def edit(tensors: Tensors) -> None:
        tensors[key].view(-1)[0] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (without(".layers.1."), "lacks 9 tensors"),
        (without("embed_tokens"), "lacks 1 tensors"),
        (without("layers.0.input_layernorm"), "lacks 1 tensors"),
        (lambda t: t.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(2, 2)}), "has no place for 1 tensors"),
        (with_value("model.norm.weight", float("nan")), "model.norm.weight of m holds a number that is not finite"),
        (with_value("lm_head.weight", float("inf")), "lm_head.weight of m holds a number that is not finite"),
        (lambda t: t.update({"lm_head.weight": t["lm_head.weight"].to(torch.int8)}), "is of whole numbers"),
        (lambda t: t.update({"lm_head.weight": t["lm_head.weight"][1:].contiguous()}), "lm_head.weight"),
    ],
)
def test_tensors_are_counted_and_finite(folder: Path, edit: Callable[[Tensors], None], message: str) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ModelError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized already .gptq."),
        ({"quantization_config": {"load_in_4bit": True}}, "quantized already"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"num_hidden_layers": 10**9}, "1000000000 layers"),
        ({"hidden_size": 10**9}, "hidden_size .* is 1000000000"),
        ({"vocab_size": 10**9}, "vocab_size .* is 1000000000"),
        ({"intermediate_size": 10**9}, "intermediate_size .* is 1000000000"),
        ({"max_position_embeddings": 0}, "max_position_embeddings .* is 0"),
        ({"max_position_embeddings": -1}, "max_position_embeddings .* is -1"),
        ({"num_hidden_layers": 1}, "has no place for"),
        ({"hidden_size": 33}, "cannot be loaded"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(folder: Path, values: dict[str, Any], message: str) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    with pytest.raises(ModelError, match=message):
        load(folder)


@pytest.mark.parametrize("named", ["pytorch_model.bin", "../outside.safetensors", "/outside.safetensors"])
def test_an_index_stays_in_its_folder_and_names_no_pickle(folder: Path, named: str) -> None:
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder / "x.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, named)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="pickled weights are not read"):
        load(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "generation_config.json", "tokenizer.json"])
def test_a_source_that_changed_since_it_was_named_is_refused(folder: Path, file: str) -> None:
    ref = resolve_model(str(folder))
    (folder / file).write_bytes((folder / file).read_bytes() + b"\n")
    with pytest.raises(IntegrityError, match="no longer what it was"):
        load_source(ref, dtype=torch.float32, device="cpu")


def test_a_template_added_later_is_a_change(folder: Path) -> None:
    ref = resolve_model(str(folder))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert resolve_model(str(folder)).revision != ref.revision


def test_every_loader_is_told_to_run_no_code_and_read_no_pickle() -> None:
    for file in (Path(__file__).parents[2] / "plr").rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if (
                isinstance(call, ast.Call)
                and isinstance(call.func, ast.Attribute)
                and call.func.attr == "from_pretrained"
            ):
                owner = ast.unparse(call.func.value)
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                if owner in ("PeftModel", "transformers.GenerationConfig") or "**safely" in ast.unparse(call):
                    continue  # these know no code; `safely` holds both
                assert given.get("trust_remote_code") == "False", f"{file}:{call.lineno}"
                if not owner.endswith(("AutoTokenizer", "AutoConfig")) and "AutoModelForSequence" not in owner:
                    assert given.get("use_safetensors") == "True", f"{file}:{call.lineno}"
