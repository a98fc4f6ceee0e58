"""Bases that another tool quantized: how many bits a checkpoint has by its configuration, and which model it was made from.

A name of a model stands for its 16-bit weights, or for a quantized checkpoint: `quantization_config` in config.json says
which. The source of a checkpoint is what the user names, else `_name_or_path` in config.json or `base_model` at the head of its
README.md; what quantizing leaves alone (norms, embeddings) is compared with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from plr.bases.look import json_object, tensors_of
from plr.bases.resolve import model_path, resolve_model
from plr.core.artifact import Artifact
from plr.core.fingerprint import JsonObject
from plr.core.manifest import MANIFEST
from plr.core.specs import BITS, GivenBase, ModelRef, Source
from plr.errors import HubError, ModelError, PlrError, ProvenanceError, UsageError
from plr.hub import fetch, is_listed, is_offline, repo_folder
from plr.quantizers import formats, reader_of

__all__ = [
    "check_committed",
    "check_inputs",
    "check_origin",
    "given_base",
    "quantization_of",
    "resolve_base",
    "small_file",
]

UNCOMMITTED = (".partial-", ".broken-", ".removed-")
"""Beginnings of the names of folders of a store that are no artifacts."""
ROWS = 64
"""Rows of a matrix that are compared, evenly spaced; vectors are compared whole."""
RESCALING = ("awq", "compressed-tensors")
"""Methods that may scale the inputs of layers, and the norms and layers before them by the inverse."""
INSIDE = re.compile(r"\.\d+\.")
"""Part of the name of a tensor that belongs to one of the blocks."""
UNREAD = {
    "hqq": (
        ": its zero points are fractions, and transformers 5 loads no HQQ checkpoint either",
        "dequantize it with hqq and save the 16-bit model, or ",
    ),
}
"""Reasons for methods that are asked for, and what to do."""
BASE_MODEL = re.compile(r"^base_model:[ \t]*(?:\n[ \t]*-[ \t]*)?[\"']?([\w./][\w./-]*)", re.MULTILINE)
"""The source in the head of a model card."""
CARD = 8192
"""Characters of a card that are looked at."""


def resolve_base(text: str, *, source: str | None = None, offline: bool = False) -> Source | GivenBase:
    """Find what a name stands for: a 16-bit model, or a quantized checkpoint with its source where that is known.

    Raises:
        UsageError: `source` for a model that is not quantized, or one that is quantized itself.
        ModelError: a checkpoint whose bits are none that plr knows.
        ProvenanceError: a source that is not the one it was made from.
        HubError, UnknownNameError: see `plr.bases.resolve.resolve_model`.
    """
    ref = resolve_model(text, offline=offline)
    return given_base(ref, source=source, offline=offline)


def given_base(ref: ModelRef, *, source: str | None = None, offline: bool = False) -> Source | GivenBase:
    """Find what a resolved model is, see `resolve_base`."""
    if ref.kind == "local":
        check_committed(Path(ref.path or ""))
    setting = quantization_of(ref, offline=offline)
    if setting is None:
        if source is not None:
            raise UsageError(
                f"--source {source} was given for {ref.title}, which is not quantized",
                expected="a source for a quantized checkpoint",
                hint="leave --source out",
            )
        return Source(model=ref)
    base = GivenBase(
        checkpoint=ref,
        method=str(setting.get("quant_method", "gptq")),
        bits=cast("Any", _bits(setting, ref.title)),
        setting=setting,
        origin=_origin(ref, source, offline=offline),
    )
    check_origin(base)
    return base


def check_committed(folder: Path) -> None:
    """Refuse what a store holds and never committed, and an artifact that is not as it was committed.

    Raises:
        UsageError: a folder that is being written, or was moved aside.
        IntegrityError: it has a manifest of plr, and its files are others.
    """
    if folder.name.startswith(UNCOMMITTED):
        raise UsageError(
            f"{folder} was never committed, or moved aside",
            expected="a finished artifact, or a checkpoint of another tool",
            hint="run the command that makes it again",
        )
    if (folder / MANIFEST).is_file() and "fingerprint" in json_object(folder / MANIFEST, folder.name):
        Artifact(folder, placed=False).use()


def quantization_of(ref: ModelRef, *, offline: bool = False) -> JsonObject | None:
    """Read how a model is quantized; None for one of 16 bits.

    Raises:
        ModelError: a configuration that cannot be read.
    """
    if ref.kind in ("embedded", "gguf"):
        return None
    config = _settings(ref, "config.json", offline=offline)
    setting: object = config.get("quantization_config") or config.get("compression_config")
    if setting is None and (old := _settings(ref, "quantize_config.json", offline=offline)):
        setting = {"quant_method": "gptq", **old}  # AutoGPTQ's file, beside a config.json that says nothing
    if setting is not None and not isinstance(setting, dict):
        raise ModelError(f"quantization_config of {ref.title} is {setting!r}", expected="an object of settings")
    return cast("JsonObject | None", setting)


def _bits(setting: Mapping[str, Any], name: str) -> int:
    """Read the width of the codes of a checkpoint.

    Raises:
        ModelError: none that is known, or several.
    """
    setting = {"quant_method": "gptq", **setting}
    method = str(setting["quant_method"])
    reader = reader_of(setting)
    if reader is None:
        why, advice = UNREAD.get(method, ("", ""))
        raise ModelError(
            f"{name} is quantized by {method}, which plr does not read{why}",
            expected=f"quant_method {' or '.join(formats())}",
            hint=f"{advice}name the 16-bit model it was made from",
        )
    try:
        found: set[object] = {reader.width(setting)}
    except ModelError as error:
        raise ModelError(f"{name}: {error.message}", expected=error.expected, hint=error.hint) from error
    if setting.get("dynamic"):
        found.add("others, by `dynamic`")
    if len(found) == 1 and (bits := found.pop()) in BITS[1:] and isinstance(bits, int):
        return bits
    raise ModelError(
        f"{name} is quantized by {method} to {' and '.join(sorted(map(str, found))) or bits} bits",
        expected=f"one width of {', '.join(map(str, BITS[1:]))} for all layers",
        hint="name the 16-bit model it was made from",
    )


def _origin(ref: ModelRef, source: str | None, *, offline: bool) -> ModelRef | None:
    """Find the 16-bit model a checkpoint was made from; None where nothing that is reachable is named."""
    if source is not None:
        found = resolve_model(source, offline=offline)
        if quantization_of(found, offline=offline) is not None:
            raise UsageError(f"the source {source} is quantized itself", expected="a model at 16 or 32 bits")
        return found
    for name in _names(ref, offline=offline):
        try:
            found = resolve_model(name, offline=offline)
            if found.identity() != ref.identity() and quantization_of(found, offline=offline) is None:
                return found
        except PlrError:
            continue  # a place on another machine, or nothing that can be reached: the user may name it
    return None


def _names(ref: ModelRef, *, offline: bool) -> list[str]:
    names: list[object] = [_settings(ref, "config.json", offline=offline).get("_name_or_path")]
    readme = small_file(ref, "README.md", offline=offline)
    if readme is not None:
        with readme.open(encoding="utf-8", errors="replace") as stream:
            names += BASE_MODEL.findall(stream.read(CARD))
    return [name for name in names if isinstance(name, str) and name]


def check_origin(base: GivenBase) -> int | None:
    """Compare what a checkpoint keeps unquantized with its source; the number of tensors compared, None if nothing could be.

    Names that both have, of one shape and of floating point: vectors whole, of a matrix some rows. Nothing is fetched for it.
    AWQ changes what lies inside the blocks, and keeps what they compute: there `check_inputs` says more.

    Raises:
        ProvenanceError: a tensor differs by more than its storage rounds.
    """
    compared, differing = _compare(base)
    wrong = [name for name in differing if base.method not in RESCALING or not INSIDE.search(name)]
    if wrong:
        raise ProvenanceError(
            f"{base.checkpoint.title} was not made from {base.model.title}: {wrong[0]} differs, which quantizing leaves alone",
            expected="the 16-bit model that it was quantized from",
            hint="name that with --source",
        )
    return compared or None


def check_inputs(base: GivenBase, *, must_know: bool = False) -> None:
    """Refuse a base whose layers get inputs of another scale than those of its source: an adapter does not fit both.

    AWQ and SmoothQuant divide the inputs of a layer by a number for each channel and multiply its weights by it. The model computes
    the same, but an adapter beside the layer sees x / s where it was trained on x. Norms that differ from the source's show it.

    Raises:
        ProvenanceError: a norm or a bias inside the blocks differs; with `must_know`, also where the source is not here to compare.
    """
    if base.method not in RESCALING:
        return
    compared, differing = _compare(base)
    inside = [name for name in differing if INSIDE.search(name)]
    if inside:
        raise ProvenanceError(
            f"{base.checkpoint.title} ({base.method}) scales the inputs of its layers: {inside[0]} is not that of "
            f"{base.model.title}, so an adapter of one does not fit the other",
            expected="a checkpoint that keeps the norms of its source, such as one of GPTQ, or this one for an adapter of its own",
            hint="train an adapter on it, or attach all the same with --allow-mismatch (recorded in the result)",
        )
    if must_know and not compared:
        raise ProvenanceError(
            f"{base.checkpoint.title} ({base.method}) may scale the inputs of its layers, and the weights of its source are not "
            "here to compare its norms with",
            expected="the weights of the 16-bit model on this machine",
            hint="fetch them, or attach all the same with --allow-mismatch (recorded in the result)",
        )


def _compare(base: GivenBase) -> tuple[int, list[str]]:
    """Count the tensors of a checkpoint that could be compared with its source, and name those that differ."""
    if base.origin is None or base.origin.kind == "gguf":
        return 0, []
    theirs, source = (_here(ref) for ref in (base.checkpoint, base.origin))
    if theirs is None or source is None:
        return 0, []
    import torch

    ours, original = tensors_of(theirs, base.checkpoint.title), tensors_of(source, base.model.title)
    compared, differing = 0, list[str]()
    for name in sorted(ours.keys() & original.keys()):
        one, two = _sample(ours[name], name), _sample(original[name], name)
        if one is None or two is None or one.shape != two.shape:
            continue
        compared += 1
        # bfloat16 keeps 8 bits, float16 11: either may have rounded.
        if not torch.allclose(one, two, rtol=2**-7, atol=1e-4 * float(two.abs().max()) + 1e-6):
            differing.append(name)
    return compared, differing


def _sample(file: Path, name: str) -> Any:
    """Read a vector, or some rows of a matrix, in float32; None for codes."""
    from safetensors import safe_open

    with safe_open(file, "pt") as stored:
        part = stored.get_slice(name)
        shape = part.get_shape()
        if part.get_dtype() not in ("F32", "F16", "BF16") or len(shape) > 2 or not all(shape):
            return None
        if name.endswith((".scales", ".absmax")):
            return None
        if len(shape) < 2:
            return stored.get_tensor(name).float()
        step = max(1, shape[0] // ROWS)
        import torch

        return torch.cat([part[at : at + 1] for at in range(0, shape[0], step)]).float()


def _here(ref: ModelRef) -> Path | None:
    """Return the folder of a model whose weights are on this machine; nothing is fetched."""
    try:
        folder = model_path(ref, offline=True)
    except (HubError, ModelError):
        return None
    return folder if any(folder.glob("*.safetensors")) else None


def small_file(ref: ModelRef, name: str, *, offline: bool) -> Path | None:
    """Find one small file of a model, fetched alone from the hub if need be; None if it has none.

    Raises:
        HubError: it cannot be fetched.
    """
    if ref.kind == "hub":
        folder = repo_folder("model", ref.name) / "snapshots" / ref.revision
        offline = is_offline(offline)
        if not offline or not folder.is_dir() or is_listed("model", ref.name, ref.revision):
            advice = f"fetch it once, with a network: hf download {ref.name}"
            wanted = {name}.intersection
            folder = fetch("model", ref.name, ref.revision, wanted, offline=offline, advice=advice).folder
    elif ref.path is not None:
        folder = Path(ref.path)
    else:
        return None
    return folder / name if (folder / name).is_file() else None


def _settings(ref: ModelRef, name: str, *, offline: bool) -> JsonObject:
    file = small_file(ref, name, offline=offline)
    return {} if file is None else json_object(file, ref.title)
