"""Resolve a `--model` argument to a model named by content, and find its files.

`--model` takes four forms and each is resolved to a `ModelRef` before anything is hashed:

=====================  =======================================================
`embedded:tiny`      the model that ships with plr, by the hash of its files
`./folder`           a local Hugging Face checkpoint, by the hash of its files
`./model.gguf`       a GGUF file (dequantized on load), by its hash
`org/name[@rev]`     a hub model, by the commit sha the revision stands for
=====================  =======================================================
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from plr.core.fingerprint import file_sha256, folder_sha256, known_sha256
from plr.core.specs import ModelRef
from plr.embedded import tiny_path
from plr.errors import HubUnreachable, IntegrityError, ModelError, UnknownNameError, UsageError
from plr.hub import cached_sha, commit_sha, fetch, is_listed, is_offline, is_sha, repo_folder
from plr.registry import did_you_mean

__all__ = ["EMBEDDED", "HUB_ID", "hub_reference", "model_path", "resolve_model"]

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
_BEHAVIOUR = (
    *_WEIGHTS,
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "chat_template*",
    "additional_chat_templates/*",
)
"""The files of a folder that bear on what its model does. `embedded:tiny` is named by the first of them, as ever."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_CHAT_TEMPLATES = "additional_chat_templates/"
"""The one folder of which transformers reads files."""


def resolve_model(text: str, *, offline: bool = False) -> ModelRef:
    """Find the identity behind a `--model` argument.

    Raises:
        UnknownNameError: no embedded model of that name.
        UsageError: neither a folder, nor a GGUF file, nor a hub id.
        HubUnreachable: the hub cannot be asked, or plr is offline and the model is not in its cache.
        HubError: the hub does not know it, or refuses it.
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
    path = Path(os.path.expanduser(text))
    if path.suffix == ".gguf" and path.is_file():
        return ModelRef(kind="gguf", name=path.stem, revision=file_sha256(path), path=str(path.absolute()))
    if text and path.is_dir():
        return _local(path.absolute())
    if text.startswith((".", "~")) or path.suffix == ".gguf" or not HUB_ID.fullmatch(text.partition("@")[0]):
        raise UsageError(
            f"the model {text!r} is neither a folder nor a .gguf file here, nor the form of a hub id",
            expected="embedded:tiny, a folder with config.json, a .gguf file, or ORG/NAME",
            hint=did_you_mean(text, ["embedded:tiny"]),
        )
    return hub_reference(text, offline=offline)


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
    return ModelRef(
        kind="local", name=folder.name, revision=folder_sha256(folder, patterns=_BEHAVIOUR), path=str(folder)
    )


def hub_reference(text: str, *, offline: bool = False) -> ModelRef:
    """Find the commit behind ORG/NAME[@REVISION].

    Raises:
        HubError: see `resolve_model`.
    """
    name, _, revision = text.partition("@")
    if is_offline(offline) or (is_sha(revision) and cached_sha("model", name, revision) is not None):
        sha = cached_sha("model", name, revision or None)
        if sha is None:
            raise HubUnreachable(
                f"{text} is not in the local hub cache and plr is offline",
                hint=f"fetch it once with: hf download {name}" + (f" --revision {revision}" if revision else ""),
            )
        return ModelRef(kind="hub", name=name, revision=sha)
    advice = "use --offline with a cached model, a local folder, a .gguf file, or embedded:tiny"
    return ModelRef(kind="hub", name=name, revision=commit_sha("model", name, revision or None, advice=advice))


def model_path(ref: ModelRef, *, offline: bool = False) -> Path:
    """Return the path of the files of `ref`, fetched from the hub if need be.

    Raises:
        ModelError: they are not there and cannot be fetched.
        IntegrityError: a local model has changed since it was named.
        IntegrityError: the hub sends other bytes than it promises.
        DiskFullError: the disk is full.
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
    _check_unchanged(ref, Path(ref.path))
    return Path(ref.path)


def _check_unchanged(ref: ModelRef, path: Path) -> None:
    """Compare a local source with what it was when it was named; what was named before all its files counted, by those."""
    now = (
        {folder_sha256(path, patterns=patterns) for patterns in (_BEHAVIOUR, _WEIGHTS)}
        if path.is_dir()
        else {known_sha256(path)}
    )
    if ref.revision not in now:
        raise IntegrityError(
            f"the source model {ref.name} in {path} is no longer what it was: its files have changed",
            expected=f"the files with the hash {ref.revision[:12]}",
            hint="put them back, or name the model as it is now with --model: it is another source",
        )


def _fetched(ref: ModelRef, *, offline: bool) -> Path:
    """Fetch the folder of a hub model, its files whole and compared with what the hub lists."""
    folder = repo_folder("model", ref.name) / "snapshots" / ref.revision
    if offline and folder.is_dir() and not is_listed("model", ref.name, ref.revision):
        return folder  # another program fetched it; a missing shard is noticed when the weights are read
    advice = f"fetch it once, with a network: hf download {ref.name} --revision {ref.revision}"
    try:
        return fetch("model", ref.name, ref.revision, _wanted, offline=offline, advice=advice).folder
    except UsageError as error:
        raise ModelError(error.message, expected=error.expected, hint=error.hint) from error


def _wanted(listed: Iterable[str]) -> list[str]:
    """List the files transformers reads: no checkpoints or exports in folders, no second copy of the weights beside `model*`."""
    here = [path for path in listed if "/" not in path.removeprefix(_CHAT_TEMPLATES)]
    files = [path for path in here if any(fnmatch(path, pattern) for pattern in _HUB_FILES)]
    weights = {path for path in files if path.endswith(".safetensors")}
    others = weights - {path for path in weights if path.startswith("model")}
    return sorted(set(files) - others if others != weights else files)
