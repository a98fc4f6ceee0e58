"""Source models: finding them, naming them by content, loading them.

``--model`` takes four forms and each is resolved to a :class:`~plr.core.specs.ModelRef` before anything is hashed:

=====================  =======================================================
``embedded:tiny``      the model that ships with plr, by the hash of its files
``./folder``           a local Hugging Face checkpoint, by the hash of its files
``./model.gguf``       a GGUF file (dequantized on load), by its hash
``org/name[@rev]``     a hub model, by the commit sha the revision stands for
=====================  =======================================================
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from plr.bases.heads import graft, is_encoder, load_classifier
from plr.core.fingerprint import file_sha256, folder_sha256
from plr.core.quiet import silenced
from plr.core.runtime import Runtime
from plr.core.specs import ModelRef, Quantize, Source
from plr.core.store import Store
from plr.embedded import tiny_path
from plr.errors import ModelError, UnknownNameError, UsageError
from plr.hub import cached_sha, commit_sha, fetch, is_listed, is_offline, is_sha, repo_folder
from plr.registry import did_you_mean
from plr.tasks import HeadSpec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "Loaded",
    "load_base",
    "load_quantized",
    "load_source",
    "load_tokenizer",
    "model_path",
    "resolve_model",
    "runtime_dtype",
]

EMBEDDED = {"tiny": tiny_path}
_WEIGHTS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "tokenizer*",
    "*.model",
    "vocab.json",
    "merges.txt",
)
_HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_CHAT_TEMPLATES = "additional_chat_templates/"
"""The one folder of which transformers reads files."""


@dataclass
class Loaded:
    """A base in memory."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: HeadSpec | None = None
    head_is_new: bool = False
    """Whether the head's weights are a random start, and no checkpoint's."""


def resolve_model(text: str, *, offline: bool = False) -> ModelRef:
    """The identity behind a ``--model`` argument.

    Raises:
        UnknownNameError: no embedded model of that name.
        UsageError: neither a folder, nor a GGUF file, nor a hub id; or the hub does not know it or cannot be reached.
    """
    if text.startswith("embedded:"):
        name = text.removeprefix("embedded:")
        if name not in EMBEDDED:
            raise UnknownNameError(
                f"unknown embedded model {text!r}",
                expected=" or ".join(f"embedded:{known}" for known in EMBEDDED),
                hint=did_you_mean(name, EMBEDDED),
            )
        return ModelRef(kind="embedded", name=name, revision=folder_sha256(EMBEDDED[name](), patterns=_WEIGHTS))
    path = Path(text).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return ModelRef(kind="gguf", name=path.stem, revision=file_sha256(path), path=str(path.absolute()))
    if path.is_dir():
        return _local(path.absolute())
    if text.startswith((".", "/", "~")) or path.suffix == ".gguf" or text.partition("@")[0].count("/") != 1:
        raise UsageError(
            f"the model {text!r} is neither a folder nor a .gguf file here, nor the form of a hub id",
            expected="embedded:tiny, a folder with config.json, a .gguf file, or ORG/NAME",
            hint=did_you_mean(text, ["embedded:tiny"]),
        )
    return _hub(text, offline=offline)


def _local(folder: Path) -> ModelRef:
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{folder} has no config.json",
            expected="a Hugging Face checkpoint folder (config.json, *.safetensors, tokenizer.json)",
        )
    if not any(folder.glob("*.safetensors")):
        raise UsageError(
            f"{folder} has no *.safetensors",
            expected="weights in safetensors (pickled weights are not read)",
            hint="save the model again with model.save_pretrained(folder)",
        )
    return ModelRef(kind="local", name=folder.name, revision=folder_sha256(folder, patterns=_WEIGHTS), path=str(folder))


def _hub(text: str, *, offline: bool) -> ModelRef:
    name, _, revision = text.partition("@")
    if is_offline(offline) or (is_sha(revision) and cached_sha("model", name, revision) is not None):
        sha = cached_sha("model", name, revision or None)
        if sha is None:
            raise UsageError(
                f"{text} is not in the local hub cache and plr is offline",
                hint=f"fetch it once with: hf download {name}" + (f" --revision {revision}" if revision else ""),
            )
        return ModelRef(kind="hub", name=name, revision=sha)
    advice = "use --offline with a cached model, a local folder, a .gguf file, or embedded:tiny"
    return ModelRef(kind="hub", name=name, revision=commit_sha("model", name, revision or None, advice=advice))


def model_path(ref: ModelRef, *, offline: bool = False) -> Path:
    """Where the files of ``ref`` lie, fetched from the hub if need be.

    Raises:
        ModelError: they are not there and cannot be fetched.
        IntegrityError: the hub sends other bytes than it promises.
        ResourceError: the disk is full.
    """
    if ref.kind == "embedded":
        return EMBEDDED[ref.name]()
    if ref.kind == "hub":
        return _fetched(ref, offline=is_offline(offline))
    if ref.path is None or not Path(ref.path).exists():
        raise ModelError(
            f"the source model {ref.name} was at {ref.path} and is not there any more",
            hint="put it back, or give its new place with --model",
        )
    return Path(ref.path)


def _fetched(ref: ModelRef, *, offline: bool) -> Path:
    """The folder of a hub model, its files whole and compared with what the hub lists."""
    folder = repo_folder("model", ref.name) / "snapshots" / ref.revision
    if offline and folder.is_dir() and not is_listed("model", ref.name, ref.revision):
        return folder  # another program fetched it; a missing shard is noticed when the weights are read
    advice = f"fetch it once, with a network: hf download {ref.name} --revision {ref.revision}"
    try:
        return fetch("model", ref.name, ref.revision, _wanted, offline=offline, advice=advice).folder
    except UsageError as error:
        raise ModelError(error.message, expected=error.expected, hint=error.hint) from error


def _wanted(listed: Iterable[str]) -> list[str]:
    """What transformers reads: no checkpoints or exports in folders, and no second copy of the weights beside ``model*``."""
    here = [path for path in listed if "/" not in path.removeprefix(_CHAT_TEMPLATES)]
    found = [path for path in here if any(fnmatch(path, pattern) for pattern in _HUB_FILES)]
    weights = {path for path in found if path.endswith(".safetensors")}
    others = weights - {path for path in weights if path.startswith("model")}
    return sorted(set(found) - others if others != weights else found)


def load_tokenizer(ref: ModelRef, *, offline: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of ``ref``, with a padding token (the EOS token where the model has none).

    Raises:
        ModelError: it cannot be loaded, or has no EOS token, and no separator as an encoder's has.
    """
    from transformers import AutoTokenizer

    path = model_path(ref, offline=offline)
    folder, more = (path.parent, {"gguf_file": path.name}) if ref.kind == "gguf" else (path, {})
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, **more)
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise ModelError(
            f"the tokenizer of {ref.name} cannot be loaded from {path}: {type(error).__name__}: {error}",
            expected="tokenizer.json, or a whole GGUF file with its tokenizer",
        ) from error
    if tokenizer.eos_token_id is None and tokenizer.sep_token_id is None:
        raise ModelError(f"the tokenizer of {ref.name} has no EOS token", expected="eos_token in tokenizer_config.json")
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
) -> Loaded:
    """The unquantized model and its tokenizer; ``auto`` is the dtype it is stored in.

    With ``head`` it is a sequence classification model; without, a causal language model, or of an encoder the body alone.

    Raises:
        ModelError: transformers cannot load the checkpoint; its own words are given.
    """
    path = model_path(ref, offline=offline)
    folder, more = (path.parent, {"gguf_file": path.name}) if ref.kind == "gguf" else (path, {})
    if not more and not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{ref.name} has no *.safetensors",
            expected="weights in safetensors (pickled weights are not read)",
            hint=f"its pull requests on the hub may hold them: {ref.name}@refs/pr/1",
        )
    tokenizer = load_tokenizer(ref, offline=offline)
    own_bars = (
        silenced() if more else nullcontext()
    )  # of reading a GGUF file, which no setting of transformers turns off
    if head is not None:
        pad: Any = tokenizer.pad_token_id
        with own_bars:
            model, trained = load_classifier(folder, head, dtype=dtype, pad_token_id=pad, name=ref.name, **more)
        return Loaded(_dense(model).to(device), tokenizer, head, not trained)
    try:
        with own_bars:
            model = _auto_class(folder, **more).from_pretrained(folder, dtype=dtype, **more)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"{ref.name} cannot be loaded from {path}: {error}",
            expected="a causal language model, or an encoder, that this version of transformers knows",
        ) from error
    return Loaded(_dense(model).to(device).eval(), tokenizer)


def _dense(model: Any) -> Any:
    """``model`` as what it is: out of a GGUF file it is dense, but transformers 5.23 calls it quantized, and would not save it."""
    if getattr(model, "quantization_method", None) == "gguf":
        model.hf_quantizer.remove_quantization_config(model)
    return model


def load_base(base: Source | Quantize, store: Store, runtime: Runtime, head: HeadSpec | None = None) -> Loaded:
    """A base at its bits: the source, or the quantized checkpoint out of the store; with ``head``, for classification.

    Raises:
        ModelError: an encoder without a head: it writes no text.
    """
    dtype, device = runtime_dtype(runtime), runtime.torch_device()
    if isinstance(base, Source):
        loaded = load_source(base.model, dtype=dtype, device=device, offline=runtime.offline, head=head)
    else:
        folder = store.require(base).path
        kernel = runtime.kernel_name(folder, itemsize=dtype.itemsize)
        model = load_quantized(folder, dtype=dtype, device=device, kernel=kernel)
        if head is None:
            loaded = Loaded(model, load_tokenizer(base.model, offline=runtime.offline))
        else:
            loaded = load_source(base.model, dtype=dtype, device="cpu", offline=runtime.offline, head=head)
            graft(loaded.model, model)
            loaded.model.to(device)  # type: ignore[arg-type]
    if head is None and is_encoder(loaded.model.config):
        raise ModelError(
            f"{base.model.name} is an encoder ({loaded.model.config.model_type}): it writes no text",
            expected="a causal language model",
            hint="use it for a classification task: plr train --task glue_cola",
        )
    return loaded


def _auto_class(folder: Path, **more: Any) -> Any:
    """The class that loads a model without a head of its own."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    return AutoModel if is_encoder(AutoConfig.from_pretrained(folder, **more)) else AutoModelForCausalLM


def load_quantized(folder: Path, *, dtype: torch.dtype, device: str, kernel: str = "dequantized") -> PreTrainedModel:
    """The k-bit model in ``folder``, whatever its method: ``quant_method`` in its config.json says who reads it. In eval mode.

    ``kernel`` is that of GPTQ layers; those of bitsandbytes have their own.

    Raises:
        ModelError: no k-bit checkpoint, a method that plr does not read, or tensors that do not fit.
        MissingDependencyError: bitsandbytes is needed and not installed.
    """
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config") or {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} has no config.json that can be read: {error}") from error
    method = settings.get("quant_method", "gptq" if (folder / "quantize_config.json").is_file() else None)
    if method == "bitsandbytes":
        from plr.quantizers import load_bitsandbytes

        return load_bitsandbytes(folder, dtype=dtype, device=device)
    if method != "gptq":
        raise ModelError(
            f"{folder} is quantized by {method}" if method else f"{folder} is not quantized",
            expected="quant_method gptq or bitsandbytes in config.json",
        )
    from plr.gptq import load_checkpoint

    try:
        return load_checkpoint(folder, dtype=dtype, device=device, kernel=kernel).eval()
    except (ValueError, OSError) as error:  # a GPTQError is a ValueError; transformers raises both
        raise ModelError(f"the GPTQ checkpoint {folder} cannot be loaded: {error}") from error


def runtime_dtype(runtime: Runtime) -> torch.dtype:
    """The compute dtype: as asked, or the fast one of the device by a short probe."""
    import torch

    if runtime.dtype != "auto":
        return getattr(torch, runtime.dtype)
    from plr.lm import choose_dtype

    return choose_dtype(runtime.torch_device())
