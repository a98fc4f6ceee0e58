"""The content-addressed store: Step -> Artifact, made once, found by every command.

How a commit works:

1. A file lock named after the fingerprint is taken (the OS releases it when the process dies), so N processes share a study.
2. The artifact is written to `.partial-<12 hex>` beside its final place, on the same filesystem.
3. Every file is fsynced and hashed; `manifest.json` is written last.
4. The folder is renamed to its final name and the parent folder fsynced.

So an artifact exists if and only if its manifest does, and a kill at any point leaves either nothing or a whole artifact.
Work that can be resumed (training checkpoints) lies in `.work/<12 hex>` until the commit and is deleted by it.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from filelock import FileLock
from pydantic import ValidationError

from plr.core.files import disk_full, flush, write_atomic
from plr.core.fingerprint import JsonObject, file_sha256
from plr.core.provenance import provenance
from plr.core.specs import KINDS, Evaluate, Quantize, Restore, Source, Step, Train, step_from_json
from plr.errors import DiskFullError, IntegrityError, PlrError, UsageError

__all__ = ["Artifact", "Store"]

MANIFEST = "manifest.json"
_SHORT = 12
_MIN_REF = 4


@dataclass(frozen=True)
class Artifact:
    """A committed folder with its manifest."""

    path: Path

    @cached_property
    def manifest(self) -> JsonObject:
        try:
            return json.loads((self.path / MANIFEST).read_text())
        except (OSError, ValueError) as error:
            raise IntegrityError(
                f"{self.path / MANIFEST} cannot be read: {error}",
                expected="the JSON manifest written at the commit",
                hint="delete the folder and run the command again: it makes the artifact anew",
            ) from error

    @property
    def step(self) -> Source | Quantize | Train | Restore | Evaluate:
        """The step that made it.

        Raises:
            IntegrityError: the manifest was written by another version of plr or altered.
        """
        try:
            return step_from_json(self.manifest["step"])
        except (ValidationError, KeyError) as error:
            raise IntegrityError(
                f"{self.path / MANIFEST} describes no step this version of plr knows",
                hint="it was made by another version of plr, or altered; make it again",
            ) from error

    @property
    def kind(self) -> str:
        return self.manifest["kind"]

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @property
    def metrics(self) -> JsonObject:
        return self.manifest["metrics"]

    def check(self, *, hashes: bool = True) -> None:
        """Compare every file with the manifest: presence and size, and the sha256 if `hashes`.

        Raises:
            IntegrityError: the first file that is missing or differs, by name.
        """
        for name, recorded in self.manifest["files"].items():
            file = self.path / name
            if not file.is_file():
                self._broken(f"{file} is missing")
            if file.stat().st_size != recorded["size"]:
                self._broken(f"{file} has {file.stat().st_size} bytes, {recorded['size']} were written")
            if hashes and file_sha256(file) != recorded["sha256"]:
                self._broken(f"{file} was altered: its sha256 differs from the manifest")

    def _broken(self, message: str) -> None:
        raise IntegrityError(
            message,
            expected="the files as they were committed",
            hint=f"delete {self.path} and run the command again: it makes the artifact anew",
        )


class Store:
    """All artifacts below one folder (`$PLR_HOME`)."""

    def __init__(self, home: Path) -> None:
        self.home = Path(home).absolute()

    def path(self, step: Step) -> Path:
        return self.home / step.kind / f"{_slug(step.label)}-{step.fingerprint[:_SHORT]}"

    def work(self, step: Step) -> Path:
        """Return the folder of a step's resume state; it survives a kill and is gone after the commit."""
        return self.home / ".work" / step.fingerprint[:_SHORT]

    def get(self, step: Step) -> Artifact | None:
        """Find the artifact of `step`; None if it is not there. A folder that was altered in size or is incomplete raises.

        Before the dtype of a computation counted, artifacts recorded it beside their results. One of that time is found where
        all that is recorded agrees: its own dtype, and that of the adapter behind it, which must be in the store to say so.
        """
        if (artifact := self._at(step)) is not None:
            return artifact
        former = step.former()
        if former == step or (artifact := self._at(former)) is None:
            return None
        return artifact if self._computed_alike(step, artifact) else None

    def identify(self, artifact: Artifact) -> Source | Quantize | Train | Restore | Evaluate:
        """Read the step of `artifact` with the dtypes that an artifact of before has on record."""
        step = artifact.step
        if isinstance(step, Train):
            return _with_dtype(step, artifact)
        if isinstance(step, Restore) and (trained := self._at(step.adapter)) is not None:
            return step.replaced(adapter=_with_dtype(step.adapter, trained))
        return step

    def _computed_alike(self, step: Step, artifact: Artifact) -> bool:
        """Compare the dtypes that `step` names with those on record behind an artifact of before."""
        if isinstance(step, Evaluate):
            if step.dtype is not None and artifact.metrics.get("dtype") != step.dtype:
                return False
            return self._computed_alike(step.target, artifact)
        if isinstance(step, Train):
            return step.dtype is None or artifact.metrics.get("dtype") == step.dtype
        if isinstance(step, Restore) and step.adapter.dtype is not None:
            trained = self._at(step.adapter.former())
            return trained is not None and self._computed_alike(step.adapter, trained)
        return True

    def _at(self, step: Step) -> Artifact | None:
        # The label may differ between two spellings of one identity (a renamed model folder): look the hash up.
        for folder in [self.path(step), *(self.home / step.kind).glob(f"*-{step.fingerprint[:_SHORT]}")]:
            if (folder / MANIFEST).is_file():
                artifact = Artifact(folder)
                artifact.check(hashes=False)
                return artifact
        return None

    def require(self, step: Step) -> Artifact:
        artifact = self.get(step)
        if artifact is None:
            raise PlrError(f"{step.kind} {step.label} is not in the store {self.home}", hint="make it first")
        return artifact

    def make(self, step: Step, build: Callable[[Path], JsonObject]) -> tuple[Artifact, bool]:
        """Find the artifact of `step` or build it.

        `build` fills the empty folder it is given and returns the metrics to record. Returns the artifact and whether it
        was made now.

        Raises:
            DiskFullError: what was written of this step is removed, everything else is untouched.
        """
        if artifact := self.get(step):
            return artifact, False
        with _disk_errors(self.home), self.lock(step):
            if artifact := self.get(step):
                return artifact, False
            final = self.path(step)
            partial = final.parent / f".partial-{step.fingerprint[:_SHORT]}"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            started = time.perf_counter()
            try:
                metrics = build(partial)
                self._commit(step, partial, final, metrics, time.perf_counter() - started)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            shutil.rmtree(self.work(step), ignore_errors=True)
            return Artifact(final), True

    def _commit(self, step: Step, partial: Path, final: Path, metrics: JsonObject, seconds: float) -> None:
        files = {}
        for file in sorted(partial.rglob("*")):
            if file.is_file():
                flush(file)
                files[str(file.relative_to(partial))] = {"sha256": file_sha256(file), "size": file.stat().st_size}
        manifest = {
            "kind": step.kind,
            "fingerprint": step.fingerprint,
            "label": step.label,
            "step": step.model_dump(mode="json"),
            "inputs": [self._named(need) for need in step.inputs],
            "metrics": metrics,
            "files": files,
            "seconds": round(seconds, 3),
            "provenance": provenance(),
        }
        write_atomic(partial / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False))
        os.rename(partial, final)
        flush(final.parent)

    def _named(self, need: Step) -> dict[str, str]:
        """Name an input by the artifact that stands for it, which may be of before."""
        artifact = self.get(need)
        fingerprint = need.fingerprint if artifact is None else artifact.fingerprint
        return {"kind": need.kind, "fingerprint": fingerprint, "label": need.label}

    @contextmanager
    def lock(self, step: Step) -> Generator[None]:
        folder = self.home / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{step.fingerprint[:_SHORT]}.lock"):
            yield

    def all(self, kind: str | None = None) -> list[Artifact]:
        """List committed artifacts, the newest last."""
        kinds = [kind] if kind else KINDS
        manifests = [path for k in kinds for path in (self.home / k).glob(f"*/{MANIFEST}")]
        return [
            Artifact(path.parent) for path in sorted(manifests, key=lambda path: (path.stat().st_mtime_ns, str(path)))
        ]

    def find(self, ref: str | None, kinds: tuple[str, ...] = (*KINDS,)) -> Artifact:
        """Find the artifact `ref` names: a path, a folder name, or a unique prefix of the hash; None is the latest of `kinds`.

        Raises:
            UsageError: nothing, several or the wrong kind of artifact matches `ref`.
        """
        if ref is not None and (Path(ref) / MANIFEST).is_file():
            return self._of_kind(Artifact(Path(ref).absolute()), kinds)
        artifacts = self.all()
        if ref is None:
            fitting = [a for a in artifacts if a.kind in kinds]
            if not fitting:
                raise UsageError(
                    f"the store {self.home} holds no {' or '.join(kinds)} yet",
                    hint=f"run {KINDS[kinds[0]].command} first, or set PLR_HOME",
                )
            return fitting[-1]
        named = [a for a in artifacts if a.path.name == ref]
        matches = named or [a for a in artifacts if len(ref) >= _MIN_REF and a.fingerprint.startswith(ref)]
        if len(matches) == 1:
            return self._of_kind(matches[0], kinds)
        if matches:
            raise UsageError(
                f"{ref!r} is ambiguous: {len(matches)} artifacts match",
                expected="a unique hash prefix: " + ", ".join(a.fingerprint[:_SHORT] for a in matches[:5]),
            )
        raise UsageError(
            f"no artifact matches {ref!r} in {self.home}",
            expected=f"a path, a folder name, or at least {_MIN_REF} digits of its hash",
            hint="plr ls lists what is there",
        )

    @staticmethod
    def _of_kind(artifact: Artifact, kinds: tuple[str, ...]) -> Artifact:
        if artifact.kind not in kinds:
            raise UsageError(f"{artifact.path.name} is of kind {artifact.kind}", expected=f"{' or '.join(kinds)}")
        return artifact

    def garbage(self) -> list[Path]:
        """List leftovers no running process holds: partial folders and resume work whose step is finished or unlocked."""
        rubbish = [p for kind in KINDS for p in (self.home / kind).glob(".partial-*")]
        rubbish += list((self.home / ".work").glob("*"))
        return [path for path in rubbish if not self._locked(path.name.removeprefix(".partial-"))]

    def _locked(self, short: str) -> bool:
        file = self.home / ".locks" / f"{short}.lock"
        if not file.exists():
            return False
        lock = FileLock(file, blocking=False)
        try:
            lock.acquire()
        except TimeoutError:
            return True
        lock.release()
        return False


@contextmanager
def _disk_errors(home: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        if disk_full(error):
            free = shutil.disk_usage(home if home.exists() else Path.cwd()).free
            raise DiskFullError(
                f"the disk of {home} is full ({free / 1e6:.0f} MB free)",
                hint="free some space (plr gc removes leftovers) or set PLR_HOME, and run the same command again: "
                "finished steps are kept",
            ) from error
        raise


def _with_dtype(step: Train, artifact: Artifact) -> Train:
    recorded = artifact.metrics.get("dtype")
    if step.dtype is not None or recorded is None:
        return step
    return step.replaced(dtype=recorded)


def _slug(label: str) -> str:
    slug = "".join(c if c.isalnum() or c in "._-" else "-" for c in label)
    return slug.strip("-.")[:100]
