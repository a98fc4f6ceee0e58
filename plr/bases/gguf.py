"""A `.gguf` source, dequantized once.

How it works.

1. transformers reads the file as ever, in the dtype that was asked for, and the model is written into the store as a plain
   checkpoint (`plr/core/sources.py`), the tokenizer into one of its own: what only counts tokens waits for no weights.
2. Before it is sealed, it is loaded as a source is, and every tensor, buffer and setting is compared with what transformers gave.
   A model or a tokenizer that does not come back as it was gets no copy, and the file is read each time, with a warning.
3. Every later load, in this process or another, reads the copy.

The copy is kept by dtype, as transformers gives it. Some of its readers compute the weights in the dtype they are asked for, so
a float32 copy rounded to bfloat16 would be another model than the file read in bfloat16. Nearly all studies need one of float32
(quantizing), and one of the dtype they compute in.

What it gives up: disk, 4 bytes a weight in float32. Where the store cannot be written, or has no room, the file is read each time.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from plr.bases.heads import auto_class
from plr.core.files import disk_full, not_writable
from plr.core.fingerprint import JsonObject
from plr.core.memory import out_of_memory
from plr.core.quiet import silenced
from plr.core.sources import SourceCopy, copy_of, make_copy, source_key
from plr.core.specs import ModelRef
from plr.errors import IntegrityError

if TYPE_CHECKING:
    import torch

__all__ = ["copy_key", "model_files", "tokenizer_files"]

log = logging.getLogger(__name__)

_READERS = ("transformers", "gguf")
"""The packages whose versions bear on what a `.gguf` file is read as."""
_OWN = ("_name_or_path", "name_or_path", "quantization_config", "architectures", "transformers_version")
"""Keys of a configuration that say where it was read from."""
SHARD = "2GB"
_ROOM = 1.05
_PROBES = (
    "Tom has 3 apples.\n\tHe  eats 12 of them, doesn't he?",
    "SELECT name FROM t WHERE a >= 1.5;",
    " \u3053\u3093\u306b\u3061\u306f \U0001f600 na\u00efve caf\u00e9 <s></s>",
    "",
)
_given_up: set[tuple[Path, str, str]] = set()
"""Store, file and form of copies that could not be made in this process."""


class _Unlike(Exception):
    """A copy that is not read as the file is."""


class _NoRoom(Exception):
    """A copy for which the disk has no room."""


def copy_key(ref: ModelRef, form: str) -> JsonObject:
    """Name the copy of a `.gguf` file: its hash, the form (`tokenizer`, or a dtype), and what writes it."""
    return source_key(ref.revision, form, _READERS)


@contextmanager
def model_files(
    ref: ModelRef, file: Path, home: Path | None, dtype: torch.dtype | Literal["auto"]
) -> Generator[tuple[Path, dict[str, Any]]]:
    """Name the folder from which the model of a `.gguf` file is loaded in `dtype`, and the arguments for it.

    The copy in the store `home`, made now if it is not there; else the file itself.
    """

    def build(folder: Path) -> None:
        _write_model(file, folder, dtype)

    with _files(ref, file, home, str(dtype).removeprefix("torch."), build) as files:
        yield files


@contextmanager
def tokenizer_files(ref: ModelRef, file: Path, home: Path | None) -> Generator[tuple[Path, dict[str, Any]]]:
    """Name the folder from which the tokenizer of a `.gguf` file is loaded, and the arguments for it; see `model_files`."""

    def build(folder: Path) -> None:
        _write_tokenizer(file, folder)

    with _files(ref, file, home, "tokenizer", build) as files:
        yield files


@contextmanager
def _files(
    ref: ModelRef, file: Path, home: Path | None, form: str, build: Callable[[Path], None]
) -> Generator[tuple[Path, dict[str, Any]]]:
    direct = (file.parent, {"gguf_file": file.name})
    if home is None or (mark := (home, ref.revision, form)) in _given_up:
        yield direct
        return
    with ExitStack() as held:
        try:
            folder = held.enter_context(_copy(home, copy_key(ref, form), f"{ref.name} {form}", build).reading())
        except (
            Exception
        ) as error:  # a file can hurt its reader in many ways, and the direct way says it in its own words
            if out_of_memory(error):
                raise
            failed = error
        else:
            yield folder, {}
            return
    yield direct
    _given_up.add(mark)
    log.warning("%s", _why(failed, file, form, home))


def _copy(home: Path, key: JsonObject, label: str, build: Callable[[Path], None]) -> SourceCopy:
    """Find the copy, which takes no lock and writes nothing, or make it; one that is broken is made again."""
    copy = copy_of(home, key)
    if copy is not None:
        with suppress(IntegrityError):
            copy.use()
            return copy
    return make_copy(home, key, label, build)


def _why(error: Exception, file: Path, form: str, home: Path) -> str:
    what = "the tokenizer" if form == "tokenizer" else f"the {form} weights"
    if isinstance(error, OSError) and not_writable(error):
        reason = f"{home} cannot be written: {error.strerror}"
    elif isinstance(error, _NoRoom) or disk_full(error):
        reason = f"the disk of {home} has no room for it"
    elif isinstance(error, _Unlike):
        reason = f"it would not be read as the file is: {error} differs"
    else:
        reason = f"{type(error).__name__}: {error}"
    return f"no copy of {what} of {file} is kept, so each load reads the file again ({reason})"


def _write_model(file: Path, folder: Path, dtype: torch.dtype | Literal["auto"]) -> None:
    """Write the model of a `.gguf` file as a checkpoint of transformers, and see that it comes back bit by bit.

    One model at a time is in memory.
    """
    with silenced():  # the reader of GGUF files has bars of its own
        more = {"gguf_file": file.name}
        model, info = auto_class(file.parent, **more).from_pretrained(
            file.parent, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **more
        )
        if missing := sorted(info["missing_keys"]):
            raise _Unlike(missing[0])  # it began at random: with a copy it would pass for one of the file's
        if getattr(model, "quantization_method", None) == "gguf":
            model.hf_quantizer.remove_quantization_config(model)
        size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
        if shutil.disk_usage(folder).free < size * _ROOM:
            raise _NoRoom
        before = _digests(model)
        model.save_pretrained(folder, max_shard_size=SHARD)
        del model
        again = auto_class(folder).from_pretrained(folder, dtype=dtype, use_safetensors=True, trust_remote_code=False)
    _compare(before, _digests(again))


def _digests(model: Any) -> dict[str, str]:
    """Hash every tensor, buffer and setting of a model, by name."""
    import torch

    tensors = {**model.state_dict(), **dict(model.named_buffers())}
    found: dict[str, str] = {}
    for name, tensor in tensors.items():
        content = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        found[name] = f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(content).hexdigest()}"
    settings = {
        "config": model.config.to_dict(),
        "attention": {"": getattr(model.config, "_attn_implementation", None)},
    }
    if (generation := getattr(model, "generation_config", None)) is not None:
        settings["generation_config"] = generation.to_dict()
    for part, values in settings.items():
        found |= {f"{part}.{key}": repr(value) for key, value in values.items() if key not in _OWN}
    return found | {"class": type(model).__name__}


def _write_tokenizer(file: Path, folder: Path) -> None:
    """Write the tokenizer of a `.gguf` file, and see that it comes back the same."""
    from transformers import AutoTokenizer

    with silenced():
        own: Any = AutoTokenizer.from_pretrained(file.parent, trust_remote_code=False, gguf_file=file.name)
        own.save_pretrained(folder)
        again: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        _compare(_traits(own), _traits(again))


def _traits(tokenizer: Any) -> dict[str, str]:
    """Describe a tokenizer by all that bears on the ids and texts it gives."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    traits: dict[str, object] = {
        "class": type(tokenizer).__name__,
        "backend": None if backend is None else backend.to_str(),
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "special tokens": (tokenizer.special_tokens_map, tokenizer.all_special_ids),
        "chat template": tokenizer.chat_template,
        "sides": (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_max_length),
        "inputs": tokenizer.model_input_names,
    }
    for text in _PROBES:
        ids = [tokenizer(text, add_special_tokens=special)["input_ids"] for special in (True, False)]
        traits[f"text {text!r}"] = (ids, tokenizer.decode(ids[0]), tokenizer.decode(ids[0], skip_special_tokens=True))
    return {name: repr(value) for name, value in traits.items()}


def _compare(before: dict[str, str], after: dict[str, str]) -> None:
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            raise _Unlike(name)
