"""Each file of an artifact of each kind damaged in each way, against the command that consumes it.

A damaged file must be named by exit 5. Where the file that says what the artifact is goes (`manifest.json`), the artifact may
also be gone: exit 2, or made anew with the same numbers.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.forks import Forks, Ran
from faults.inputs import STEPS, copied, make, write_inputs

STUDY = """\
models: [m]
tasks: [words.yaml]
train_bits: [16, 3]
restore_bits: [16]
evaluate: {limit: 4}
quantize: {group_size: 32, samples: 8, max_length: 16}
train: {epochs: 1, batch_size: 4, learning_rate: 0.02, validation_limit: 4}
runtime: {dtype: float32}
"""
MANIFEST = "manifest.json"


def _flipped(share: float) -> Callable[[Path, random.Random], None]:
    def flip(file: Path, draw: random.Random) -> None:
        content = bytearray(file.read_bytes())
        content[min(int(len(content) * share), len(content) - 1)] ^= 1 << draw.randrange(8)
        file.write_bytes(content)

    return flip


def _zeroed(file: Path, draw: random.Random) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def _truncated(file: Path, draw: random.Random) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _emptied(file: Path, draw: random.Random) -> None:
    os.truncate(file, 0)


def _longer(file: Path, draw: random.Random) -> None:
    with file.open("ab") as stream:
        stream.write(b"\n")


def _deleted(file: Path, draw: random.Random) -> None:
    file.unlink()


def _folder(file: Path, draw: random.Random) -> None:
    file.unlink()
    file.mkdir()


def _dangling(file: Path, draw: random.Random) -> None:
    file.unlink()
    file.symlink_to(file.with_name("nowhere"))


def _linked(file: Path, draw: random.Random) -> None:
    """A link to other bytes of the same length."""
    other = file.parents[1] / ".elsewhere"
    other.write_bytes(file.read_bytes()[::-1])
    file.unlink()
    file.symlink_to(other)


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "first byte": _flipped(0),
    "a bit at a third": _flipped(1 / 3),
    "a bit at two thirds": _flipped(2 / 3),
    "last byte": _flipped(1),
    "zeros": _zeroed,
    "half of it": _truncated,
    "empty": _emptied,
    "a line more": _longer,
    "deleted": _deleted,
    "a folder": _folder,
    "a link to nothing": _dangling,
    "a link to other bytes": _linked,
}


@dataclass(frozen=True)
class Target:
    """A file, and the command that consumes it, on a store without what `unmade` names."""

    kind: str
    file: Path
    words: tuple[str, ...]
    unmade: str | None = None


@dataclass(frozen=True)
class Damage:
    target: Target
    what: str

    @property
    def part(self) -> str:
        return self.target.kind

    def __str__(self) -> str:
        target = self.target
        return f"{target.kind}, {target.file.parent.name}/{target.file.name}: {self.what}; plr {' '.join(target.words)}"


class Corruption:
    def __init__(self, forks: Forks, folder: Path) -> None:
        self.forks, self.cwd, self.home = forks, folder, folder / "home"
        write_inputs(folder)
        (folder / "study.yaml").write_text(STUDY)
        for kind in STEPS:
            ran = make(forks, kind, self.home, self.cwd)
            assert ran.code == 0, ran.text
        scored_alone = {path.name for path in self.home.glob("result/*")}
        ran = self._run("grid", "study.yaml")
        assert ran.code == 0, ran.text
        self.store = copied(self.home, folder / "whole")
        self.targets = [*self._artifacts(scored_alone), *self._sources()]
        self.whole: dict[tuple[tuple[str, ...], str | None], Ran] = {}
        for target in self.targets:
            if (target.words, target.unmade) not in self.whole:
                self._start(target)
                ran = self.whole[target.words, target.unmade] = self._run(*target.words)
                assert ran.code == 0, (target, ran.text)

    def trials(self) -> Iterator[Damage]:
        return (Damage(target, what) for target in self.targets for what in DAMAGES)

    def judge(self, damage: Damage) -> str | None:
        """Do the damage, run the command and say what is wrong with its answer; None where it is as it must be."""
        target = damage.target
        self._start(target)
        inside = target.file.is_relative_to(self.home)
        if not inside:
            shutil.copy2(target.file, self.cwd / "kept")
        DAMAGES[damage.what](target.file, random.Random(str(damage)))
        try:
            ran = self._run(*target.words)
        finally:
            if not inside:
                shutil.rmtree(target.file) if target.file.is_dir() else target.file.unlink(missing_ok=True)
                shutil.move(self.cwd / "kept", target.file)
        named = ran.code == 5 and target.file.name in ran.text
        gone = target.file.name == MANIFEST and (ran.code == 2 or (ran.code == 0 and self._as_before(target, ran)))
        refused = not inside and ran.code in (1, 2, 5)
        if ran.is_clear and (named or gone or refused):
            return None
        return f"exit {ran.code}: {ran.text[-400:]}"

    def _as_before(self, target: Target, ran: Ran) -> bool:
        return numbers(ran) == numbers(self.whole[target.words, target.unmade])

    def _start(self, target: Target) -> None:
        copied(self.store, self.home)
        for folder in self.home.glob(f"{target.unmade}/*") if target.unmade else ():
            shutil.rmtree(folder)

    def _run(self, *words: str) -> Ran:
        return self.forks.run(*words, "--json", home=self.home, cwd=self.cwd)

    def _artifacts(self, scored_alone: set[str]) -> Iterator[Target]:
        score = ("--dtype", "float32", "--limit")
        merged = next(self.home.glob("restored/*-merged-*")).name
        for folder in sorted(self.home.glob("[!.]*/[!.]*")):
            kind, name = folder.parent.name, folder.name
            words = {
                "base": ("eval", name, "--task", "words.yaml", *score, "3"),
                "result": ("eval", merged, *score, "4") if name in scored_alone else ("report", "study.yaml"),
            }.get(kind, ("eval", name, *score, "3"))
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                yield Target(kind, file, words)
                if kind != "result" or name in scored_alone:
                    yield Target(f"{kind}, shown", file, ("show", name))

    def _sources(self) -> Iterator[Target]:
        """The source behind an adapter as it is merged, and the rows that an adapter is scored on."""
        adapter = next(self.home.glob("adapter/*-3bit-*")).name
        for file in sorted((self.cwd / "m").iterdir()):
            yield Target("source", file, ("restore", adapter, "--merge"), unmade="restored")
        yield Target("rows", self.cwd / "rows" / "test.jsonl", ("eval", adapter, "--dtype", "float32", "--limit", "3"))


def numbers(ran: Ran) -> Any:
    """What a command prints as JSON, without what is measured or dated."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                k: plain(v)
                for k, v in value.items()
                if not any(word in k for word in ("second", "path", "date", "made", "sha256", "fingerprint"))
            }
        return [plain(item) for item in value] if isinstance(value, list) else value

    return plain(json.loads(ran.out))
