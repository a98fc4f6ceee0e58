"""An adapter merged into its base, as one dense checkpoint.

LoRA and DoRA on the linear layers of a 16-bit source are merged shard by shard: a skeleton of the model without weights carries the
adapter, and each layer gets its weight for the moment of its merge, in float32. In memory there are the adapter, one layer and one
file. Whatever changes more than such layers (embeddings, parts trained whole, other methods, k-bit bases, `.gguf`) is merged
whole, as `plr restore --merge` does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from plr.adapters import adapters
from plr.adapters.peft import ACTIVE, calm
from plr.bases.given_adapters import CONFIG, WEIGHTS
from plr.bases.load import tokenizer_in
from plr.bases.look import header_of, look_at_files, tensors_of
from plr.bases.resolve import model_path
from plr.core.fingerprint import JsonObject
from plr.core.quiet import import_gptqmodel
from plr.core.specs import GivenAdapter, Restore, Source
from plr.errors import ModelError, ProvenanceError
from plr.export.files import TOKENIZER, copy, copy_tokenizer, has_tokenizer
from plr.export.work import Work
from plr.gptq.typed import open_tensors
from plr.restoration.attach import check_init, check_provenance
from plr.restoration.fit import check_keys
from plr.restoration.modes import Restoration, merged
from plr.restoration.served import as_served, served_adapter

__all__ = ["write_merged"]

BESIDE = ("config.json", "generation_config.json")
NAME = "model.safetensors"


def write_merged(work: Work) -> JsonObject:
    """Merge, and write the checkpoint in the dtype of the source.

    Raises:
        ProvenanceError: adapter and base do not belong together, or tensors of the adapter that find no place.
        ModelError: weights that cannot be read.
        IntegrityError: files that are not as they were committed; an adapter that changes nothing.
    """
    step = work.target
    assert isinstance(step, Restore)
    if step.is_checkpoint:
        folder = work.store.require(step).path
        copy(folder, work.folder, (*BESIDE, "*.safetensors", "*.safetensors.index.json", *TOKENIZER))
        return {"streamed": False}
    adapter = served_adapter(step, work.store, offline=work.runtime.offline)
    step = as_served(step, work.store)
    if isinstance(step.base, Source) and step.base.model.kind != "gguf":
        source = model_path(step.base.model, offline=work.runtime.offline)
        look_at_files(source, step.base.model.title)
        skeleton = _skeleton(step, adapter, source)
        if skeleton is not None:
            _stream(work, step, adapter, source, skeleton)
            return {"streamed": True}
    record = merged(Restoration(step, adapter, work.folder, work.store, work.runtime))
    return {**record, "streamed": False}


def _skeleton(step: Restore, adapter: Path, source: Path) -> Any:
    """Build the model on no device with the adapter on it; None for an adapter that is not merged layer by layer.

    Raises:
        ProvenanceError: see `write_merged`.
    """
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from transformers import AutoConfig, AutoModelForCausalLM

    import_gptqmodel()  # which PEFT does, aloud
    check_provenance(step.adapter, step.base, allow_mismatch=step.allow_mismatch)
    check_init(step, adapter)
    if isinstance(step.adapter, GivenAdapter):
        check_keys(step.adapter, adapter)
    if not (adapter / CONFIG).is_file() or not _is_plain(json.loads((adapter / CONFIG).read_text()), adapter):
        return None
    config: Any = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)  # pyright: ignore[reportUnknownMemberType]
    if type(config) not in AutoModelForCausalLM._model_mapping:  # pyright: ignore  # an encoder
        return None
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # pyright: ignore[reportUnknownMemberType]
    with calm():
        model = PeftModel.from_pretrained(model, str(adapter), low_cpu_mem_usage=True)
    stored = tensors_of(source, step.base.model.title)
    layers = _layers(model)
    fit = all(
        isinstance(layer, LoraLayer) and isinstance(layer.get_base_layer(), nn.Linear) and f"{name}.weight" in stored
        for name, layer in layers.items()
    )
    if not layers or not fit:
        return None
    missing, unexpected = adapters.get(step.adapter.adapter.method).unfit(model, adapter, ACTIVE)
    if missing or unexpected:
        raise ProvenanceError(
            f"the adapter {step.adapter.label} does not fit {step.base.label}: its file lacks {len(missing)} tensors, and holds "
            f"{len(unexpected)} that have no place, {(missing or unexpected)[0]} the first",
            expected="the same module names as in training",
        )
    _fill(model, adapter)
    return model


def _fill(model: Any, adapter: Path) -> None:
    """Give the adapter its tensors, in float32: PEFT has moved what it loaded to the device of the base, which is none."""
    from safetensors.torch import load_file

    tensors = load_file(adapter / WEIGHTS)
    state: dict[str, Tensor] = {}
    for name, _ in model.named_parameters():
        if "lora_" in name:
            key = name.replace(f".{ACTIVE}", "")
            key = key if key in tensors else key.removesuffix(".weight")  # the magnitudes of DoRA
            state[name] = tensors[key].to(torch.float32)
    if len(state) != len(tensors):
        raise ModelError(f"{len(tensors)} tensors in {adapter}, of which {len(state)} find a place")
    model.load_state_dict(state, strict=False, assign=True)


def _is_plain(config: JsonObject, adapter: Path) -> bool:
    """Tell whether an adapter changes linear layers alone."""
    whole = (
        "modules_to_save",
        "trainable_token_indices",
        "layer_replication",
        "alora_invocation_tokens",
        "target_parameters",
    )
    names = header_of(adapter / WEIGHTS, str(adapter))
    return (
        str(config.get("peft_type")).upper() == "LORA"
        and config.get("task_type") in (None, "CAUSAL_LM")
        and config.get("bias", "none") == "none"
        and not any(config.get(key) for key in whole)
        and all("lora_" in name for name in names)
        and not any("lora_embedding" in name for name in names)
    )


def _layers(model: Any) -> dict[str, Any]:
    """List the layers that carry the adapter, by their names in the base."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = cast("nn.Module", model.get_base_model())
    return {name: module for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)}


def _stream(work: Work, step: Restore, adapter: Path, source: Path, model: Any) -> None:
    """Write every tensor of the source, those of adapted layers merged, file by file."""
    stored, layers = tensors_of(source, step.base.model.title), _layers(model)
    largest = max(work.shard_bytes, 1)
    shards = _shards(source, stored, largest)
    done: set[str] = set()
    for index, keys in enumerate(shards, 1):
        name = NAME if len(shards) == 1 else f"model-{index:05}-of-{len(shards):05}.safetensors"
        _write_shard(work.folder / name, keys, stored, layers, done)
    if done != set(layers):
        raise ModelError(
            f"{len(set(layers) - done)} adapted layers have no weight in {source}: nothing was merged there"
        )
    if len(shards) > 1:
        names = {
            key: f"model-{i:05}-of-{len(shards):05}.safetensors" for i, keys in enumerate(shards, 1) for key in keys
        }
        total = sum((work.folder / name).stat().st_size for name in {*names.values()})
        index = {"metadata": {"total_size": total}, "weight_map": names}
        (work.folder / f"{NAME}.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    copy(source, work.folder, BESIDE)
    if isinstance(step.adapter, GivenAdapter) and has_tokenizer(adapter):
        _check_tokens(step, adapter, source, stored)
        copy_tokenizer(work.folder, adapter)
    copy_tokenizer(work.folder, source)


def _shards(source: Path, stored: dict[str, Path], largest: int) -> list[list[str]]:
    """Cut the tensors, in order of their files, into lists of at most `largest` bytes (one tensor at least)."""
    shards: list[list[str]] = [[]]
    room = largest
    for file in sorted({*stored.values()}):
        header = header_of(file, source.name)
        for key in sorted(header):
            start, end = header[key]["data_offsets"]
            if end - start > room and shards[-1]:
                shards.append([])
                room = largest
            shards[-1].append(key)
            room -= end - start
    return shards


def _write_shard(path: Path, keys: list[str], stored: dict[str, Path], layers: dict[str, Any], done: set[str]) -> None:
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for file in dict.fromkeys(stored[key] for key in keys):
        with open_tensors(file) as opened:
            for key in (key for key in keys if stored[key] == file):
                name, _, kind = key.rpartition(".")
                if name in layers and kind == "weight":
                    tensors[key] = _merged(layers[name], opened.get_tensor(key))
                    done.add(name)
                else:
                    tensors[key] = opened.get_tensor(key)
    save_file(tensors, path, metadata={"format": "pt"})


def _merged(layer: Any, weight: Tensor) -> Tensor:
    """Merge one layer in float32; return its weight in the dtype that it was stored in.

    Raises:
        ModelError: a weight that is not finite.
    """
    base = layer.get_base_layer()
    empty = base.weight
    beside = {key: value for key, value in layer.named_parameters() if not key.startswith("base_layer.")}
    if not beside or any(value.is_meta for value in beside.values()):
        raise ModelError(
            "a layer of the adapter has tensors that were not read", hint="this is a defect of plr: report it"
        )
    base.weight = nn.Parameter(weight.to(torch.float32), requires_grad=False)
    try:
        with torch.no_grad():
            layer.merge(safe_merge=True)
        return base.weight.detach().to(weight.dtype)
    except ValueError as error:
        raise ModelError(f"a merged weight is not finite: {error}") from error
    finally:
        base.weight = empty
        layer.merged_adapters.clear()


def _check_tokens(step: Restore, adapter: Path, source: Path, stored: dict[str, Path]) -> None:
    """Compare the adapter's own tokenizer with the rows of the embedding, which the adapter does not bring."""
    tokenizer: Any = tokenizer_in(adapter, step.adapter.label)
    most = max(tokenizer.get_vocab().values())
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    rows = config.get("vocab_size")
    if isinstance(rows, int) and most >= rows:
        raise ProvenanceError(
            f"the tokenizer of {step.adapter.label} has the token {most}, and the embedding {rows} rows",
            expected="an adapter that was saved with the embedding of its tokens",
            hint="save it with save_embedding_layers=True",
        )
