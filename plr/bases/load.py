"""Load a base: the source model, or its k-bit checkpoint, with its tokenizer."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from plr.bases.gguf import model_files, tokenizer_files
from plr.bases.given_bases import small_file
from plr.bases.heads import auto_class, graft, is_encoder, load_classifier
from plr.bases.look import look_at_files, look_at_model
from plr.bases.resolve import model_path
from plr.core.memory import out_of_memory
from plr.core.quiet import silenced
from plr.core.runtime import Runtime, available_memory
from plr.core.specs import GivenBase, ModelRef, Quantize, Source
from plr.core.store import Store
from plr.errors import ModelError
from plr.quantizers import Quantizer, formats, reader_of
from plr.tasks import HeadSpec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "Loaded",
    "base_folder",
    "empty_experts",
    "kernel_for",
    "load_base",
    "load_quantized",
    "load_source",
    "load_tokenizer",
    "open_quantized",
    "runtime_dtype",
    "tokenizer_in",
    "tokenizer_ref",
]

SAFELY = {"use_safetensors": True, "trust_remote_code": False}
"""Arguments of every `from_pretrained`: no pickle, and no code of a model's folder."""
DENSE_SHARE = 0.5  # of the free memory, for dense weights; the rest is for activations, the optimizer and the codes


@dataclass
class Loaded:
    """A base in memory."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: HeadSpec | None = None
    head_is_new: bool = False
    """True if the head's weights are a random start, and no checkpoint's."""


def load_tokenizer(ref: ModelRef, *, offline: bool = False, home: Path | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of `ref`, with a padding token (the EOS token where the model has none).

    `home` is the store that keeps the tokenizer of a `.gguf` file in a form that loads quickly.

    Raises:
        ModelError: it cannot be loaded, or has no EOS token, and no separator as an encoder's has.
    """
    path = model_path(ref, offline=offline)
    if ref.kind != "gguf":
        return tokenizer_in(path, ref.name)
    with tokenizer_files(ref, path, home) as (folder, gguf):
        tokenizer = tokenizer_in(folder, ref.name, **gguf)
    tokenizer.name_or_path = str(path.parent)
    return tokenizer


def tokenizer_in(folder: Path, name: str, **gguf: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer in `folder`, see `load_tokenizer`; `name` is what messages call it."""
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **gguf)
    except Exception as error:  # tokenizers raises bare exceptions, and what a broken file leads to has many types
        if out_of_memory(error):
            raise
        raise ModelError(
            f"the tokenizer of {name} cannot be loaded from {folder}: {type(error).__name__}: {error}",
            expected="tokenizer.json, or a whole GGUF file with its tokenizer",
        ) from error
    if tokenizer.eos_token_id is None and tokenizer.sep_token_id is None:
        raise ModelError(f"the tokenizer of {name} has no EOS token", expected="eos_token in tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.sep_token
    return tokenizer


def load_source(
    ref: ModelRef,
    *,
    dtype: torch.dtype | Literal["auto"],
    device: str,
    offline: bool = False,
    head: HeadSpec | None = None,
    home: Path | None = None,
) -> Loaded:
    """Load the unquantized model and its tokenizer; `auto` is the dtype it is stored in.

    `home` is the store that keeps the weights of a `.gguf` file, once they are dequantized; without it they are each time.
    With `head` it is a sequence classification model; without, a causal language model, or of an encoder the body alone.

    Raises:
        ModelError: transformers cannot load the checkpoint; its own words are given.
    """
    path = model_path(ref, offline=offline)
    tokenizer = load_tokenizer(ref, offline=offline, home=home)
    if ref.kind != "gguf":
        look_at_files(path, ref.name)
        return _loaded(ref, path, tokenizer, dtype, device, head)
    with model_files(ref, path, home, dtype) as (folder, gguf):
        loaded = _loaded(ref, folder, tokenizer, dtype, device, head, **gguf)
    loaded.model.name_or_path = loaded.model.config.name_or_path = str(path.parent)
    return loaded


def _loaded(
    ref: ModelRef,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype | Literal["auto"],
    device: str,
    head: HeadSpec | None,
    **gguf: str,
) -> Loaded:
    own_bars = (
        silenced() if gguf else nullcontext()
    )  # of reading a GGUF file, which no setting of transformers turns off
    if head is not None:
        pad: Any = tokenizer.pad_token_id
        with own_bars:
            model, trained = load_classifier(folder, head, dtype=dtype, pad_token_id=pad, name=ref.name, **gguf)
        look_at_model(model, tokenizer, ref.name, None)
        return Loaded(_dense(model).to(device), tokenizer, head, not trained)
    try:
        with own_bars:
            safely = {"trust_remote_code": False} if gguf else SAFELY | {"ignore_mismatched_sizes": True}
            auto = auto_class(folder, **gguf)
            model, info = auto.from_pretrained(folder, dtype=dtype, output_loading_info=True, **safely, **gguf)
    except Exception as error:  # a config or a file that is wrong shows in errors of many types
        if out_of_memory(error):
            raise
        raise ModelError(
            f"{ref.name} cannot be loaded from {folder / gguf.get('gguf_file', '')}: {type(error).__name__}: {error}",
            expected="a causal language model, or an encoder, that this version of transformers knows",
        ) from error
    look_at_model(model, tokenizer, ref.name, info)
    _name_end(model, tokenizer)
    return Loaded(_dense(model).to(device).eval(), tokenizer)


def _name_end(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Name the tokenizer's EOS, which ends every answer that is trained, among those of the generation settings.

    What is saved of the model then stops there in every engine.
    """
    settings, end = getattr(model, "generation_config", None), tokenizer.eos_token_id
    if settings is None or end is None:
        return
    declared = settings.eos_token_id
    known = declared if isinstance(declared, list) else [] if declared is None else [declared]
    if end not in known:
        settings.eos_token_id = [*known, end]


def empty_experts(ref: ModelRef, *, offline: bool = False) -> PreTrainedModel | None:
    """Build a mixture of experts by its configuration, without memory for its weights.

    None for any other model, and where it cannot be built: loading says why, in its own words.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig

    folder = model_path(ref, offline=offline)
    look_at_files(folder, ref.name)
    if "expert" not in (folder / "config.json").read_text(encoding="utf-8"):
        return None
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with init_empty_weights():
            return auto_class(folder).from_config(config, trust_remote_code=False)
    except Exception:
        return None


def _dense(model: Any) -> Any:
    """Mark `model` as dense: out of a GGUF file it is, but transformers 5.23 calls it quantized, and would not save it."""
    if getattr(model, "quantization_method", None) == "gguf":
        model.hf_quantizer.remove_quantization_config(model)
    return model


def load_base(
    base: Source | Quantize | GivenBase, store: Store, runtime: Runtime, head: HeadSpec | None = None
) -> Loaded:
    """Load a base at its bits: the source, a quantized checkpoint of the store, or one that was given; with `head`, a classifier.

    Raises:
        ModelError: an encoder without a head: it writes no text.
    """
    dtype, device = runtime_dtype(runtime), runtime.torch_device()
    if isinstance(base, Source):
        loaded = load_source(
            base.model, dtype=dtype, device=device, offline=runtime.offline, head=head, home=store.home
        )
    else:
        folder = base_folder(base, store, offline=runtime.offline)
        model = open_quantized(folder, runtime)
        if head is None:
            loaded = Loaded(model, load_tokenizer(tokenizer_ref(base), offline=runtime.offline, home=store.home))
            if isinstance(base, GivenBase):
                look_at_model(model, loaded.tokenizer, base.checkpoint.title, None)
                _name_end(model, loaded.tokenizer)
        else:
            loaded = load_source(
                base.source.model, dtype=dtype, device="cpu", offline=runtime.offline, head=head, home=store.home
            )
            graft(loaded.model, model)
            loaded.model.to(device)  # type: ignore[arg-type]
    if head is None and is_encoder(loaded.model.config):
        raise ModelError(
            f"{base.model.name} is an encoder ({loaded.model.config.model_type}): it writes no text",
            expected="a causal language model",
            hint="use it for a classification task: plr train --task glue_cola",
        )
    return loaded


def base_folder(base: Quantize | GivenBase, store: Store, *, offline: bool = False) -> Path:
    """Return the folder of a k-bit checkpoint, its files compared with what was committed or named.

    Raises:
        PlrError, IntegrityError, ModelError: see `Store.require`, `model_path` and `look_at_files`.
    """
    if isinstance(base, Quantize):
        return store.require(base).path
    folder = model_path(base.checkpoint, offline=offline)
    look_at_files(folder, base.checkpoint.title, quantized=True)
    return folder


def tokenizer_ref(base: Source | Quantize | GivenBase) -> ModelRef:
    """Name the model whose tokenizer a base has: a given checkpoint brings its own, or has that of its source."""
    if not isinstance(base, GivenBase):
        return base.model
    own = any(
        small_file(base.checkpoint, name, offline=True) for name in ("tokenizer.json", "tokenizer.model", "vocab.json")
    )
    return base.checkpoint if own or base.origin is None else base.origin


def open_quantized(folder: Path, runtime: Runtime) -> PreTrainedModel:
    """Load the k-bit model in `folder` in the dtype, on the device and with the kernel of `runtime`.

    Raises:
        ModelError, MissingDependencyError: see `load_quantized`.
    """
    dtype = runtime_dtype(runtime)
    kernel = kernel_for(runtime, folder, dtype.itemsize)
    return load_quantized(folder, dtype=dtype, device=runtime.torch_device(), kernel=kernel)


def load_quantized(folder: Path, *, dtype: torch.dtype, device: str, kernel: str = "dequantized") -> PreTrainedModel:
    """Load the k-bit model in `folder`, in eval mode, by the quantizer that reads its `quantization_config`.

    `kernel` is for layers that have a choice, as those of GPTQ.

    Raises:
        ModelError: no k-bit checkpoint, a method that no quantizer reads, or tensors that do not fit.
        MissingDependencyError: a package that is needed for it is not installed.
    """
    return _reader_of(folder).load(folder, dtype=dtype, device=device, kernel=kernel)


def _reader_of(folder: Path) -> Quantizer:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        settings = config.get("quantization_config") or config.get("compression_config") or {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} has no config.json that can be read: {error}") from error
    if "quant_method" not in settings and (folder / "quantize_config.json").is_file():
        settings = {**settings, "quant_method": "gptq"}  # the file of AutoGPTQ, which has no such key
    reader = reader_of(settings)
    if reader is None:
        method = settings.get("quant_method")
        raise ModelError(
            f"{folder} is quantized by {method}" if method else f"{folder} is not quantized",
            expected=f"quant_method {' or '.join(formats())} in config.json",
        )
    return reader


def kernel_for(runtime: Runtime, folder: Path, itemsize: int) -> Literal["packed", "dequantized"]:
    """Choose the kernel of the k-bit layers of `folder`: as asked, or for `auto` by the device and its memory.

    On a GPU `packed`: the codes are read in the kernel, memory is that of k bits. On a CPU `dequantized`: the weight is
    unpacked once and kept, which is faster; but `packed` where the dense weights, at `itemsize` bytes a weight and once for
    each worker, take more than half of the memory that is free.
    """
    if runtime.kernel != "auto":
        return runtime.kernel
    if runtime.torch_device() != "cpu":
        return "packed"
    free = available_memory()
    if free is None:
        return "dequantized"
    fits = runtime.workers * _reader_of(folder).dense_bytes(folder, itemsize) <= free * DENSE_SHARE
    return "dequantized" if fits else "packed"


def runtime_dtype(runtime: Runtime) -> torch.dtype:
    """Resolve the dtype of a computation, as torch has it."""
    import torch

    return getattr(torch, runtime.precision())
