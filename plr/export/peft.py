"""An adapter as PEFT writes it, its base named by what others can resolve."""

from __future__ import annotations

from plr.adapters.peft import name_base
from plr.bases.given_adapters import CONFIG, WEIGHTS, bears
from plr.bases.named import public_name
from plr.core.fingerprint import JsonObject
from plr.core.specs import Restore
from plr.errors import ModelError
from plr.export.files import copy
from plr.export.work import Work
from plr.restoration.attach import check_init, check_provenance
from plr.restoration.served import as_served, served_adapter

__all__ = ["write_peft"]


def write_peft(work: Work) -> JsonObject:
    """Copy the adapter, and write into it the base that it goes on.

    Raises:
        ProvenanceError: it holds a part of its own base, or this base comes from another model.
        ModelError: it has no weights that PEFT reads.
        IntegrityError: its files are not as they were committed.
    """
    step = work.target
    assert isinstance(step, Restore)
    folder = served_adapter(step, work.store, offline=work.runtime.offline)
    step = as_served(step, work.store)
    check_provenance(step.adapter, step.base, allow_mismatch=step.allow_mismatch)
    check_init(step, folder)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder} has no {CONFIG} and {WEIGHTS}", expected="an adapter in PEFT's format")
    names = [file.name for file in folder.iterdir() if file.is_file() and bears(file.name)]
    copy(folder, work.folder, tuple(names))
    name, revision = public_name(step.base)
    name_base(work.folder, name, revision)
    return {"base_model_name_or_path": name, "revision": revision}
