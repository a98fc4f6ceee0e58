"""The content-addressed store: Step -> Artifact, made once, found by every command.

How a commit works:

1. A file lock named after the fingerprint is taken (the OS releases it when the process dies), so N processes share a study.
2. The artifact is written to `.partial-<12 hex>` beside its final place, on the same filesystem. What lies in that place
   without a manifest is moved aside to `.broken-<12 hex>-<time>`, and said.
3. Every file is fsynced and hashed; `manifest.json` is written last, sealed by a hash of itself.
4. The folders are fsynced, the outer one renamed to its final name, and the parent folder fsynced.

So an artifact exists if and only if its manifest does, and a kill at any point leaves either nothing or a whole artifact.
A name that begins with a dot is none. Work that can be resumed (training checkpoints) lies in `.work/<12 hex>` until the
commit and is deleted by it.

How it is found: by the hash at the end of the folder's name. `get` looks at presence and sizes, which is enough to plan by;
`require`, and whatever reads a file, compares the sha256 of all files too, once a process.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from plr.core.artifact import SHORT, Artifact, commit, move_aside, record_files
from plr.core.files import disk_full, flush, not_writable
from plr.core.fingerprint import JsonObject
from plr.core.locks import hold
from plr.core.manifest import MANIFEST
from plr.core.provenance import provenance
from plr.core.specs import KINDS, Evaluate, GivenAdapter, GivenBase, Quantize, Restore, Source, Step, Train
from plr.errors import DiskFullError, IntegrityError, PlrError, UsageError

__all__ = ["MANIFEST", "Artifact", "Store"]

_SHOWN = 8
"""Artifacts that are listed where several match."""
_SETTLED = 3.0
"""Seconds after which a folder that is changed again has another time of change, on every file system in use."""


@dataclass(frozen=True)
class _Index:
    """The folders of one kind by the hash at the end of their names, as they were at one time."""

    changed: int
    settled: bool
    folders: dict[str, list[str]]


class Store:
    """All artifacts below one folder (`$PLR_HOME`)."""

    def __init__(self, home: Path) -> None:
        self.home = Path(home).absolute()
        self._indexes: dict[str, _Index] = {}

    def path(self, step: Step) -> Path:
        return self.home / step.kind / f"{_slug(step.label)}-{step.fingerprint[:SHORT]}"

    def work(self, step: Step) -> Path:
        """Return the folder of a step's resume state; it survives a kill and is gone after the commit."""
        return self.home / ".work" / step.fingerprint[:SHORT]

    def get(self, step: Step, *, hashes: bool = False) -> Artifact | None:
        """Find the artifact of `step`; None if it is not there. With `hashes` its files are hashed, each once a process.

        Before the dtype of a computation counted, artifacts recorded it beside their results. One of that time is found where
        all that is recorded agrees: its own dtype, and that of the adapter behind it, which must be in the store to say so.

        Raises:
            IntegrityError: it is there, and it was altered, is incomplete, or has the manifest of another one.
        """
        artifact = self._at(step)
        if artifact is None:
            former = step.former()
            if former == step or (artifact := self._at(former)) is None or not self._computed_alike(step, artifact):
                return None
        if hashes:
            artifact.use()
        return artifact

    def identify(self, artifact: Artifact) -> Source | Quantize | GivenBase | Train | GivenAdapter | Restore | Evaluate:
        """Read the step of `artifact` with the dtypes that an artifact of before has on record."""
        step = artifact.step
        if isinstance(step, Train):
            return _with_dtype(step, artifact)
        if (
            isinstance(step, Restore)
            and isinstance(step.adapter, Train)
            and (trained := self._at(step.adapter)) is not None
        ):
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
        if isinstance(step, Restore) and isinstance(step.adapter, Train) and step.adapter.dtype is not None:
            trained = self._at(step.adapter.former())
            return trained is not None and self._computed_alike(step.adapter, trained)
        return True

    def _at(self, step: Step) -> Artifact | None:
        folder = self._folder(step)
        if folder is None:
            return None
        artifact = Artifact(folder)
        if artifact.fingerprint != step.fingerprint:
            raise IntegrityError(
                f"{folder / MANIFEST} has the fingerprint {artifact.fingerprint}, and {step.label} has {step.fingerprint}",
                expected="the manifest of this step",
                hint=f"delete {folder} and run the command again: it makes the artifact anew",
            )
        artifact.check(hashes=False)
        return artifact

    def _folder(self, step: Step) -> Path | None:
        """Find the folder of a step, which has a manifest of whatever sort."""
        # The label may differ between two spellings of one identity (a renamed model folder): look the hash up.
        expected = self.path(step)
        if _is_there(expected / MANIFEST):
            return expected
        names = self._index(step.kind).get(step.fingerprint[:SHORT], [])
        folders = (self.home / step.kind / name for name in names)
        return next((folder for folder in folders if _is_there(folder / MANIFEST)), None)

    def _index(self, kind: str) -> dict[str, list[str]]:
        """List the folders of a kind by hash, read again whenever the folder they lie in may have changed."""
        parent = self.home / kind
        try:
            changed = parent.stat().st_mtime_ns
            known = self._indexes.get(kind)
            if known is not None and known.settled and known.changed == changed:
                return known.folders
            names = os.listdir(parent)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        folders: dict[str, list[str]] = {}
        for name in sorted(names):
            if not name.startswith("."):
                folders.setdefault(name.rpartition("-")[2], []).append(name)
        self._indexes[kind] = _Index(changed, abs(time.time() - changed / 1e9) > _SETTLED, folders)
        return folders

    def require(self, step: Step) -> Artifact:
        """Find the artifact of `step` to read its files, which are hashed, each once a process.

        Raises:
            PlrError: it is not there.
            IntegrityError: see `get`; or a file is not the one that was committed.
        """
        artifact = self.get(step, hashes=True)
        if artifact is None:
            raise PlrError(f"{step.kind} {step.label} is not in the store {self.home}", hint="make it first")
        return artifact

    def make(self, step: Step, build: Callable[[Path], JsonObject]) -> tuple[Artifact, bool]:
        """Find the artifact of `step` or build it.

        `build` fills the empty folder it is given and returns the metrics to record. Returns the artifact and whether it
        was made now.

        Raises:
            DiskFullError: what was written of this step is removed, everything else is untouched.
            IntegrityError: see `get`.
            PlrError: the store cannot be written.
        """
        if artifact := self.get(step):
            self._drop_work(step)
            return artifact, False
        with _disk_errors(self.home), self.lock(step):
            if artifact := self.get(step):
                return artifact, False
            partial = self._room_for(step)
            started = time.perf_counter()
            try:
                metrics = build(partial)
                self._commit(step, partial, metrics, time.perf_counter() - started)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            self._drop_work(step)
            return Artifact(self.path(step)), True

    def _drop_work(self, step: Step) -> None:
        """Remove the resume state of a finished step, which a kill after its commit leaves behind."""
        shutil.rmtree(self.work(step), ignore_errors=True)

    def _room_for(self, step: Step) -> Path:
        """Make the empty folder to build in; what lies in the way of the artifact is moved aside."""
        final = self.path(step)
        partial = final.parent / f".partial-{step.fingerprint[:SHORT]}"
        with _writable(self.home):
            if not final.parent.exists():
                final.parent.mkdir(parents=True, exist_ok=True)
                flush(self.home)
            shutil.rmtree(partial, ignore_errors=True)
            for path in (partial, final):
                if os.path.lexists(path):
                    aside = move_aside(path, step.fingerprint[:SHORT])
                    print(f"{path} has no manifest: it was moved aside to {aside.name}", file=sys.stderr)
            partial.mkdir()
        return partial

    def _commit(self, step: Step, partial: Path, metrics: JsonObject, seconds: float) -> None:
        final = self.path(step)
        manifest = {
            "kind": step.kind,
            "fingerprint": step.fingerprint,
            "label": step.label,
            "step": step.model_dump(mode="json"),
            "inputs": [self._named(need) for need in step.inputs],
            "metrics": metrics,
            "files": record_files(partial),
            "seconds": round(seconds, 3),
            "provenance": provenance(),
        }
        commit(partial, final, manifest)

    def _named(self, need: Step) -> dict[str, str]:
        """Name an input by the artifact that stands for it, which may be of before."""
        artifact = self.get(need)
        fingerprint = need.fingerprint if artifact is None else artifact.fingerprint
        return {"kind": need.kind, "fingerprint": fingerprint, "label": need.label}

    @contextmanager
    def lock(self, step: Step) -> Generator[None]:
        with ExitStack() as held:
            with _writable(self.home):
                held.enter_context(hold(self.home, step.fingerprint[:SHORT]))
            yield

    def all(self, kind: str | None = None) -> list[Artifact]:
        """List committed artifacts, the newest last by the date on record; those without a readable manifest come first."""
        return self._by_date([kind] if kind else KINDS, _date)

    def _by_date(self, kinds: Iterable[str], date: Callable[[Artifact], float]) -> list[Artifact]:
        order = list(KINDS)
        dated = [(date(artifact), artifact) for kind in kinds for artifact in self._of(kind)]
        # Dates of before are whole seconds: what is made of another then comes after it.
        dated.sort(key=lambda pair: (pair[0], order.index(pair[1].path.parent.name), pair[1].path.name))
        return [artifact for _, artifact in dated]

    def _of(self, kind: str) -> list[Artifact]:
        folders = [self.home / kind / name for names in self._index(kind).values() for name in names]
        return [Artifact(folder) for folder in folders if _is_there(folder / MANIFEST)]

    def find(self, ref: str | None, kinds: tuple[str, ...] = (*KINDS,), *, outside: bool = False) -> Artifact:
        """Find the artifact `ref` names: a path, or the beginning of one hash or folder name; None is the latest of `kinds`.

        A path may lead out of this store with `outside`; else see `own`.

        Raises:
            UsageError: nothing, several or the wrong kind of artifact matches `ref`.
            IntegrityError: what is named has no manifest of its own that can be read.
        """
        if ref is None:
            return self._latest(kinds)
        if _is_path(ref):
            return self._of_kind(self._by_path(Path(ref), outside), kinds)
        return self._of_kind(self._by_name(ref), kinds)

    def named(self, ref: str) -> Artifact:
        """Find the artifact of this store that `ref` names, as `find` does, and read nothing of it: it may be broken.

        Raises:
            UsageError: nothing or several match, or it is a path that leads out of this store.
        """
        if not _is_path(ref):
            return self._by_name(ref)
        artifact = self._by_path(Path(ref), outside=True)
        if not self._holds(artifact.path):
            raise UsageError(
                f"{artifact.path} lies outside of the store {self.home}", expected="an artifact of this store"
            )
        return Artifact(self.home / artifact.path.parent.name / artifact.path.name)

    def _by_name(self, ref: str) -> Artifact:
        artifacts = [artifact for kind in KINDS for artifact in self._of(kind)]
        matches = [a for a in artifacts if a.path.name == ref] or _beginning(artifacts, ref)
        if len(matches) == 1:
            return matches[0]
        if matches:
            shown = ", ".join(f"{a.path.name.rpartition('-')[2]} ({a.path.parent.name})" for a in matches[:_SHOWN])
            more = f" and {len(matches) - _SHOWN} more" if len(matches) > _SHOWN else ""
            raise UsageError(
                f"{ref!r} is ambiguous: {len(matches)} artifacts match",
                expected=f"one of them, by more digits of its hash: {shown}{more}",
                hint="plr ls tells them apart",
            )
        raise UsageError(
            f"no artifact matches {ref!r} in {self.home}",
            expected="a path, a folder name, or the first digits of its hash",
            hint="plr ls lists what is there",
        )

    def _latest(self, kinds: tuple[str, ...]) -> Artifact:
        artifacts = self._by_date(kinds, lambda artifact: artifact.record.timestamp)  # one without may be the latest
        if not artifacts:
            raise UsageError(
                f"the store {self.home} holds no {' or '.join(kinds)} yet",
                hint=f"run {KINDS[kinds[0]].command} first, or set PLR_HOME",
            )
        return artifacts[-1]

    def _by_path(self, path: Path, outside: bool) -> Artifact:
        path = path.absolute()
        if path.name.startswith("."):
            raise UsageError(
                f"{path} is no artifact: it was never committed, or moved aside",
                hint="run the command that makes it again; plr gc removes leftovers",
            )
        artifact = Artifact(path, placed=self._holds(path))
        return artifact if outside else self.own(artifact)

    def _holds(self, path: Path) -> bool:
        try:
            return path.parent.name in KINDS and path.parent.parent.samefile(self.home)
        except OSError:
            return False

    def own(self, artifact: Artifact) -> Artifact:
        """Return `artifact`, or for one that lies elsewhere the one of this store with the same step and files.

        Raises:
            UsageError: it lies elsewhere, and this store has no such one.
            IntegrityError: it lies elsewhere, and its files are not those of its manifest.
        """
        if self._holds(artifact.path):
            return artifact
        step = artifact.step
        mine = None if step.kind not in KINDS else self._at(step)
        if mine is None or mine.record.files != artifact.record.files:
            what = "holds none of its step" if mine is None else "holds other files of the same step"
            raise UsageError(
                f"{artifact.path} lies outside of the store {self.home}, which {what}",
                expected="an artifact of this store, or a copy of one",
                hint=f"set PLR_HOME to the store in which it was made, and give {artifact.fingerprint[:SHORT]}; "
                "plr show and plr verify look at any folder",
            )
        artifact.use()
        return mine

    @staticmethod
    def _of_kind(artifact: Artifact, kinds: tuple[str, ...]) -> Artifact:
        if artifact.kind not in kinds:
            raise UsageError(f"{artifact.path.name} is of kind {artifact.kind}", expected=f"{' or '.join(kinds)}")
        return artifact


def _is_there(file: Path) -> bool:
    """Tell whether a name is there, whatever it names.

    Raises:
        PlrError: that cannot be seen.
    """
    try:
        file.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise PlrError(f"{file} cannot be looked at: {error.strerror}") from error
    return True


def _is_path(ref: str) -> bool:
    """Tell the path of a folder with a manifest from the name of an artifact."""
    try:
        return _is_there(Path(ref) / MANIFEST)
    except (ValueError, PlrError):  # NUL, or longer than any name
        return False


def _beginning(artifacts: list[Artifact], ref: str) -> list[Artifact]:
    """List the artifacts whose hash begins with `ref`, or, where none does, whose name does."""
    if not ref:
        return []
    hashes = [a for a in artifacts if a.path.name.rpartition("-")[2].startswith(ref[:SHORT])]
    hashes = [a for a in hashes if len(ref) <= SHORT or a.fingerprint.startswith(ref)]
    return hashes or [a for a in artifacts if a.path.name.startswith(ref)]


def _date(artifact: Artifact) -> float:
    try:
        return artifact.record.timestamp
    except IntegrityError:
        return -1.0


@contextmanager
def _writable(home: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        if not_writable(error):
            raise PlrError(
                f"the store {home} cannot be written: {error.strerror}",
                expected="a store to write to; one to read from is enough for what is in it already",
                hint="set PLR_HOME to a folder of yours",
            ) from error
        raise


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
