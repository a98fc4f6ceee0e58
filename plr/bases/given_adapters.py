"""Adapters that another tool trained: a PEFT folder, or a repository of the hub, named by content.

What an adapter's configuration says: its method, and the base that it names. A quantized checkpoint there is what it was
trained on. A 16-bit name leaves that open (QLoRA quantizes while it loads and saves the same name), and so does a name that
cannot be reached; `--trained-on` says it then.
"""

from __future__ import annotations

import logging
import os
from fnmatch import fnmatch
from pathlib import Path
from typing import cast

from plr.adapters import adapters
from plr.adapters.known import REFUSED, peft_names
from plr.bases.given_bases import check_committed, resolve_base, small_file
from plr.bases.look import header_of, json_object
from plr.bases.resolve import HUB_ID, hub_reference
from plr.core.fingerprint import JsonObject, folder_sha256, is_json
from plr.core.specs import Base, GivenAdapter, GivenBase, ModelRef, Quantization, Quantize, Source, TaskSpec, Train
from plr.core.store import Store
from plr.errors import HubError, IntegrityError, ModelError, PlrError, ProvenanceError, UsageError
from plr.hub import fetch, is_listed, is_offline, repo_folder
from plr.tasks import task_of

__all__ = [
    "ABSORBING_INITS",
    "CONFIG",
    "TOKENIZER",
    "WEIGHTS",
    "adapter_config",
    "adapter_folder",
    "adapter_path",
    "bears",
    "is_adapter",
    "names_adapter",
    "resolve_adapter",
]

log = logging.getLogger(__name__)

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template*",
)
"""Names of the files of a tokenizer."""
FILES = (CONFIG, WEIGHTS, "conversion.json", *TOKENIZER)
"""The files of an adapter that bear on what it does: its own tokenizer is one of them."""
ABSORBING_INITS = ("loftq", "pissa", "olora", "corda", "eora")
"""Initialisations that move part of the base (or of its quantization error) into the adapter."""
FRESH = {"nf4": ("nf4", 4, 64, False), "nf4-double-quant": ("nf4", 4, 64, True), "int8": ("int8", 8, -1, False)}
"""Bases that bitsandbytes makes of a 16-bit model while it loads: method, bits, block size, double quantization."""


def bears(name: str) -> bool:
    """Tell whether a file of an adapter's folder bears on what it does."""
    return any(fnmatch(name, pattern) for pattern in FILES)


def is_adapter(text: str) -> bool:
    """Tell whether a path is a PEFT folder."""
    return bool(text) and _is_file(Path(os.path.expanduser(text)) / CONFIG)


def names_adapter(text: str, *, offline: bool = False) -> bool:
    """Tell whether a path or a hub id is an adapter, and not a model.

    Raises:
        HubError: the hub does not know it, or cannot be asked.
    """
    if is_adapter(text):
        return True
    if _is_file(Path(os.path.expanduser(text)) / "config.json") or not HUB_ID.fullmatch(text.partition("@")[0]):
        return False
    return small_file(_reference(text, offline=offline), CONFIG, offline=offline) is not None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # longer than any name, or NUL
        return False


def resolve_adapter(
    text: str,
    *,
    model: str | None = None,
    source: str | None = None,
    trained_on: str | None = None,
    task: TaskSpec | None = None,
    allow_mismatch: bool = False,
    offline: bool = False,
) -> GivenAdapter:
    """Find the identity of an adapter, the base that it names and the base that it was trained on.

    Args:
        text: a PEFT folder, or ORG/NAME[@REVISION] of the hub.
        model: the base, where not the one that its configuration names.
        source: the 16-bit model of a base that is quantized.
        trained_on: `16`, `nf4`, `nf4-double-quant`, `int8` (bitsandbytes while loading), `unknown`, or a quantized checkpoint.
        task: the task it was trained on, where that is known.
        allow_mismatch: take `model` although the adapter names a folder with another one.
        offline: make no network call.

    Raises:
        UsageError: neither a folder nor a hub id, or a base that is not here and cannot be reached.
        ModelError: an adapter in pickled weights, cut, of a method that PEFT does not have, or one that holds a part of its base.
        ProvenanceError: `model` is another one than the folder that the adapter names.
        HubError: the hub does not know it, or cannot be asked.
    """
    ref = _reference(text, offline=offline)
    config = adapter_config(ref, offline=offline)
    method = str(config.get("peft_type", "")).lower()
    if method not in {*adapters.names(), *peft_names()} or method in REFUSED:
        raise ModelError(
            f"{ref.title} is an adapter of the type {config.get('peft_type')!r}"
            + (f": {REFUSED[method]}" if method in REFUSED else ""),
            expected="a method of PEFT, or of plr (plr adapters)",
        )
    init = str(config.get("init_lora_weights", "")).lower()
    if init.startswith(ABSORBING_INITS):
        raise ModelError(
            f"{ref.title} was initialised with {init}: it holds a part of the base that it was trained on, and fits no other",
            expected="an adapter that is zero at the start, or one that was converted to that",
            hint="save it again with model.save_pretrained(folder, path_initial_model_for_weight_conversion=...) of PEFT",
        )
    _check_kind(config, ref, task)
    named = _named(config, ref, model, source, allow_mismatch=allow_mismatch, offline=offline)
    return GivenAdapter(
        folder=ref,
        method=method,
        config=config,
        named=named,
        trained_on=_trained_on(trained_on, named, config, source, offline=offline),
        task=task,
    )


def _check_kind(config: JsonObject, ref: ModelRef, task: TaskSpec | None) -> None:
    """Compare what an adapter answers with (a text, or a label) with what its task asks for.

    Raises:
        UsageError: another kind, or a classifier without a task: its labels are not known.
    """
    kind = config.get("task_type")
    if kind not in (None, "CAUSAL_LM", "SEQ_CLS"):
        raise UsageError(
            f"the adapter {ref.title} is for {kind}", expected="one for CAUSAL_LM (texts) or SEQ_CLS (labels)"
        )
    asked = None if task is None else task_of(task).kind
    if kind == "SEQ_CLS" and asked is None:
        raise UsageError(f"the adapter {ref.title} gives labels", hint="name the task that says which: --task TASK")
    if asked is not None and kind is not None and (kind == "SEQ_CLS") != (asked == "classification"):
        raise UsageError(
            f"the adapter {ref.title} is for {kind}, and {cast('TaskSpec', task).name} asks for "
            + ("a label" if asked == "classification" else "a text"),
            expected="a task of its kind",
        )


def _reference(text: str, *, offline: bool) -> ModelRef:
    path = Path(os.path.expanduser(text))
    if _is_file(path / CONFIG):
        path = path.absolute()
        check_committed(path)
        if not (path / WEIGHTS).exists():
            raise _no_weights(str(path), pickled=(path / PICKLED).exists())
        header_of(path / WEIGHTS, str(path))
        return ModelRef(kind="local", name=path.name, revision=folder_sha256(path, patterns=FILES), path=str(path))
    if text.startswith((".", "~", "/")) or path.is_dir() or not HUB_ID.fullmatch(text.partition("@")[0]):
        raise UsageError(
            f"{text!r} is no adapter: there is no {path / CONFIG}, and it has not the form of a hub id",
            expected="a PEFT folder (adapter_config.json, adapter_model.safetensors), or ORG/NAME of the hub",
        )
    return hub_reference(text, offline=offline)


def adapter_config(ref: ModelRef, *, offline: bool = False) -> JsonObject:
    """Read the configuration of an adapter; of a repository of the hub nothing else is fetched.

    Raises:
        ModelError: it has none, or one that cannot be read.
        HubError: it cannot be fetched.
    """
    file = small_file(ref, CONFIG, offline=offline)
    if file is None:
        raise ModelError(f"{ref.title} has no {CONFIG}", expected="an adapter that PEFT has saved")
    config = json_object(file, ref.title)
    if not is_json(config):
        raise ModelError(f"{CONFIG} of {ref.title} holds numbers that are not finite", expected="settings of PEFT")
    return config


def adapter_folder(adapter: Train | GivenAdapter, store: Store, *, offline: bool = False) -> Path:
    """Return the folder of an adapter, its files compared with what was committed or named.

    Raises:
        PlrError, IntegrityError: see `Store.require` and `adapter_path`.
    """
    if isinstance(adapter, Train):
        return store.require(adapter).path
    return adapter_path(adapter.folder, offline=offline)


def adapter_path(ref: ModelRef, *, offline: bool = False) -> Path:
    """Return the folder of an adapter, fetched from the hub if need be.

    Raises:
        ModelError: it is not there any more, or has no weights in safetensors.
        IntegrityError: a local adapter has changed since it was named.
        HubError: it cannot be fetched.
    """
    if ref.kind == "hub":
        folder = _fetched(ref, offline=is_offline(offline))
    else:
        folder = Path(ref.path or "")
        if not folder.is_dir():
            raise ModelError(f"the adapter {ref.name} was at {ref.path} and is not there any more", hint="put it back")
        if folder_sha256(folder, patterns=FILES) != ref.revision:
            raise IntegrityError(
                f"the adapter {ref.name} in {folder} is no longer what it was: its files have changed",
                expected=f"the files with the hash {ref.revision[:12]}",
                hint="put them back, or name it again: it is another adapter",
            )
    if not (folder / WEIGHTS).is_file():
        raise _no_weights(ref.title, pickled=(folder / PICKLED).exists())
    header_of(folder / WEIGHTS, ref.title)
    return folder


def _fetched(ref: ModelRef, *, offline: bool) -> Path:
    folder = repo_folder("model", ref.name) / "snapshots" / ref.revision
    if offline and folder.is_dir() and not is_listed("model", ref.name, ref.revision):
        return folder
    advice = f"fetch it once, with a network: hf download {ref.name} --revision {ref.revision}"
    pickled = False

    def wanted(listed: object) -> list[str]:
        nonlocal pickled
        names = list(cast("dict[str, object]", listed))
        pickled = PICKLED in names
        return [name for name in names if "/" not in name and bears(name)]

    found = fetch("model", ref.name, ref.revision, wanted, offline=offline, advice=advice)
    if WEIGHTS not in found.files:
        raise _no_weights(ref.title, pickled=pickled)
    return found.folder


def _no_weights(name: str, *, pickled: bool) -> ModelError:
    return ModelError(
        f"{name} has no {WEIGHTS}" + (f", but {PICKLED}: pickled weights are not read" if pickled else ""),
        expected="an adapter in safetensors",
        hint="where its maker is trusted: load it with PEFT, and save it again with model.save_pretrained(folder)"
        if pickled
        else "save it again with model.save_pretrained(folder)",
    )


def _named(
    config: JsonObject, ref: ModelRef, model: str | None, source: str | None, *, allow_mismatch: bool, offline: bool
) -> Base:
    """Resolve the base that was named for the adapter, or that its configuration names."""
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if model is not None:
        base = resolve_base(model, source=source, offline=offline)
        if isinstance(name, str) and not allow_mismatch:
            _check_name(ref, name, base)
        return base
    if not isinstance(name, str) or not name:
        raise UsageError(f"the adapter {ref.title} names no base", hint="name the model it goes on: --model MODEL")
    text = f"{name}@{revision}" if isinstance(revision, str) and revision and not Path(name).is_dir() else name
    try:
        return resolve_base(text, source=source, offline=offline)
    except (UsageError, HubError) as error:
        raise UsageError(
            f"the adapter {ref.title} names the base {name!r}, which is not here: {error.message}",
            expected="a model that can be reached",
            hint="name the model it goes on: --model MODEL",
        ) from error


def _check_name(ref: ModelRef, name: str, base: Base) -> None:
    """Compare the base that a user names with the one that the adapter names, where both are folders, or both repositories."""
    if base.model.kind == "local" and _is_file(Path(name) / "config.json"):
        own = resolve_base(name, offline=True)
        if own.model.identity() != base.model.identity() and own.model.identity() != _checkpoint(base).identity():
            raise ProvenanceError(
                f"the adapter {ref.title} names the base {name}, and {base.model.path} is another model",
                expected="the same source model",
                hint="leave --model out, or add --allow-mismatch (recorded in the result)",
            )
    elif base.model.kind == "hub" and HUB_ID.fullmatch(name) and name != base.model.name:
        log.warning("the adapter %s names the base %s; it goes on %s, as you say", ref.title, name, base.model.name)


def _checkpoint(base: Base) -> ModelRef:
    return base.checkpoint if isinstance(base, GivenBase) else base.model


def _trained_on(text: str | None, named: Base, config: JsonObject, source: str | None, *, offline: bool) -> Base | None:
    """Find the base that an adapter was trained on; None where nobody says it."""
    if text == "unknown":
        return None
    if text is None:
        return named if not isinstance(named, Source) else _quantized_name(config, named, offline=offline)
    if text in FRESH or text == "16":
        base = named.source
        if text == "16":
            return base
        method, bits, size, double = FRESH[text]
        setting = {"method": method, "bits": bits, "group_size": size, "double_quant": double}
        return Quantize(source=base, quantization=Quantization.model_validate(setting))
    own = resolve_base(text, source=source or named.model.argument, offline=offline)
    if isinstance(own, Source) and own.model.identity() != named.model.identity():
        raise UsageError(
            f"--trained-on {text} is a 16-bit model, and not the one that the adapter names",
            expected=f"16, {', '.join(FRESH)}, unknown, or a quantized checkpoint",
        )
    return own


def _quantized_name(config: JsonObject, named: Source, *, offline: bool) -> Base | None:
    """Look whether the configuration names a quantized checkpoint, where the user named the 16-bit model."""
    name = config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        return None
    try:
        own = resolve_base(name, source=None, offline=offline)
        if isinstance(own, Source):
            return None
        return resolve_base(name, source=named.model.argument, offline=offline)
    except ProvenanceError:
        raise
    except PlrError:
        return None  # a place on another machine: it stays unknown
