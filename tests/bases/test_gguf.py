"""A `.gguf` source is read once: the copy is bit by bit what transformers reads, whole, current, or not there."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from ggufs import write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

import plr.bases.gguf as worker
from plr.bases.gguf import copy_key
from plr.bases.load import load_source, load_tokenizer
from plr.bases.resolve import resolve_model
from plr.core.collect import Leftovers
from plr.core.sources import FOLDER, SourceCopy, copies, copy_of
from plr.embedded import tiny_path
from plr.errors import IntegrityError, ModelError
from plr.lab import Lab
from plr.tasks import HeadSpec

Q = gguf.GGMLQuantizationType
TEXTS = ("Tom has 3 apples.", " SELECT a\n\tFROM b;", "\u3053\u3093 \U0001f600", "")


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(tiny_path())


@pytest.fixture(scope="module")
def file(parts: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", *parts, form=Q.Q8_0)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_given_up", set())


def load(file: Path, home: Path | None, dtype: Any = torch.float32, head: HeadSpec | None = None) -> Any:
    return load_source(resolve_model(str(file)), dtype=dtype, device="cpu", home=home, head=head)


def no_reading(*_: Any, **__: Any) -> None:
    pytest.fail("the file was read again")


def assert_same(one: Any, other: Any) -> None:
    first, second = one.model.state_dict(), other.model.state_dict()
    assert first.keys() == second.keys()
    assert all(first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first)
    ids = torch.arange(5, 60)[None]
    with torch.no_grad():
        assert torch.equal(one.model(ids).logits, other.model(ids).logits)
    for text in TEXTS:
        assert one.tokenizer(text)["input_ids"] == other.tokenizer(text)["input_ids"]
    assert one.tokenizer.pad_token_id == other.tokenizer.pad_token_id
    assert one.model.name_or_path == other.model.name_or_path
    assert one.tokenizer.name_or_path == other.tokenizer.name_or_path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, "auto"])
@pytest.mark.parametrize("form", [Q.F32, Q.F16, Q.Q8_0, Q.Q4_1])
def test_copy_is_bit_by_bit_what_transformers_reads(
    parts: tuple[Any, Any], form: Q, dtype: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tmp_path / "m.gguf", *parts, form=form)
    made = load(file, tmp_path / "store", dtype)
    monkeypatch.setattr(worker, "_write_model", no_reading)
    monkeypatch.setattr(worker, "_write_tokenizer", no_reading)
    found, direct = load(file, tmp_path / "store", dtype), load(file, None, dtype)
    oracle = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=dtype)
    assert_same(made, direct)
    assert_same(found, direct)
    assert found.model.dtype == oracle.dtype
    assert all(torch.equal(tensor, oracle.state_dict()[name]) for name, tensor in found.model.state_dict().items())
    assert len(copies(tmp_path / "store")) == 2  # the weights in this dtype, and the tokenizer


def test_tokenizer_of_sentencepiece_begins_with_bos_from_the_copy_too(parts: tuple[Any, Any], tmp_path: Path) -> None:
    ref = resolve_model(str(write_gguf(tmp_path / "m.gguf", *parts, pieces=True)))
    direct = load_tokenizer(ref)
    for _ in range(2):
        mine = load_tokenizer(ref, home=tmp_path / "store")
        for text in TEXTS:
            assert mine(text)["input_ids"] == direct(text)["input_ids"]
            assert mine.decode(mine(text)["input_ids"]) == direct.decode(direct(text)["input_ids"])
    assert direct("Tom")["input_ids"][0] == 1
    assert len(copies(tmp_path / "store")) == 1


def test_head_has_the_same_random_start_from_the_copy(file: Path, tmp_path: Path) -> None:
    head = HeadSpec(("no", "yes"))
    direct = load(file, None, head=head)
    for _ in range(2):
        mine = load(file, tmp_path, head=head)
        assert mine.head_is_new == direct.head_is_new
        assert mine.model.state_dict().keys() == direct.model.state_dict().keys()
        assert all(torch.equal(a, b) for a, b in zip(mine.model.parameters(), direct.model.parameters(), strict=True))


def test_artifacts_are_the_same_files_with_the_copy_and_without(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"task": "tiny_math", "overrides": ["quantize.samples=16", "train.train_limit=16", "train.epochs=1"]}
    made: list[list[dict[str, Any]]] = []
    for place in ("with", "without"):
        lab = Lab(tmp_path / place, dtype="float32")
        base = lab.quantize(str(file), 4, task="tiny_math", samples=16)
        adapter = lab.train(str(file), 16, **small)
        merged = lab.restore(adapter, bits=16, merge=True)
        made.append([dict(artifact.record.files) for artifact in (base, merged)])
        assert len(copies(tmp_path / place)) == (2 if place == "with" else 0)
        monkeypatch.setattr(worker, "make_copy", lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, "read-only")))
        monkeypatch.setattr(worker, "_given_up", set())
    assert made[0] == made[1]


def test_two_processes_make_it_once(file: Path, tmp_path: Path) -> None:
    code = textwrap.dedent(f"""
        import sys, torch
        import plr.bases.gguf as worker
        from plr.bases.load import load_source
        from plr.bases.resolve import resolve_model
        write, tokenizer = worker._write_model, worker._write_tokenizer
        worker._write_model = lambda *a: (print("weights", flush=True), write(*a))
        worker._write_tokenizer = lambda *a: (print("tokenizer", flush=True), tokenizer(*a))
        ref = resolve_model({str(file)!r})
        model = load_source(ref, dtype=torch.float32, device="cpu", home=worker.Path({str(tmp_path)!r})).model
        print(float(sum(p.double().sum() for p in model.parameters())))
    """)
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lines = [line for process in running for line in process.communicate()[0].split()]
    assert all(process.returncode == 0 for process in running)
    assert sorted(line for line in lines if line.isalpha()) == ["tokenizer", "weights"]
    assert len({line for line in lines if not line.isalpha()}) == 1


@pytest.mark.parametrize("where", ["from_pretrained", "save_pretrained", "record_files"])
def test_kill_while_it_is_made_leaves_none_and_the_next_run_makes_it(file: Path, where: str, tmp_path: Path) -> None:
    code = textwrap.dedent(f"""
        import os, signal, torch
        import plr.bases.gguf as worker, plr.core.sources as sources
        from plr.bases.resolve import resolve_model
        from transformers import PreTrainedModel
        def after(method):
            def killed(*args, **kwargs):
                made = method(*args, **kwargs)
                os.kill(os.getpid(), signal.SIGKILL)
            return killed
        ref = resolve_model({str(file)!r})
        if {where!r} == "record_files":
            sources.record_files = after(sources.record_files)
        elif {where!r} == "save_pretrained":
            PreTrainedModel.save_pretrained = after(PreTrainedModel.save_pretrained)
        else:
            PreTrainedModel.from_pretrained = classmethod(after(PreTrainedModel.from_pretrained.__func__))
        with worker.model_files(ref, worker.Path({str(file)!r}), worker.Path({str(tmp_path)!r}), torch.float32):
            pass
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert copies(tmp_path) == []
    assert [path.name[:9] for path in (tmp_path / FOLDER).iterdir()] == [".partial-"]
    assert len(Leftovers.find(tmp_path).folders) == 1
    assert_same(load(file, tmp_path), load(file, None))
    assert len(copies(tmp_path)) == 2
    assert Leftovers.find(tmp_path).folders == []


@pytest.mark.parametrize("damage", ["a bit", "cut", "missing", "another file", "manifest", "no manifest"])
@pytest.mark.parametrize("form", ["float32", "tokenizer"])
def test_broken_copy_is_moved_aside_said_and_made_again(
    file: Path, form: str, damage: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    load(file, tmp_path)
    copy = copy_of(tmp_path, copy_key(resolve_model(str(file)), form))
    assert copy is not None
    large = copy.path / ("tokenizer.json" if form == "tokenizer" else "model.safetensors")
    content = large.read_bytes()
    if damage == "a bit":
        large.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    elif damage == "cut":
        large.write_bytes(content[:-9])
    elif damage == "missing":
        large.unlink()
    elif damage == "another file":
        (copy.path / "adapter_model.safetensors").write_bytes(content)
    elif damage == "manifest":
        manifest = copy.path / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"size": ', '"size":  '))
    else:
        (copy.path / "manifest.json").unlink()
    capfd.readouterr()
    assert_same(load(file, tmp_path), load(file, None))
    assert "it was moved aside to .broken-" in capfd.readouterr().err
    SourceCopy(copy.path).check()
    assert sum(path.name.startswith(".broken-") for path in (tmp_path / FOLDER).iterdir()) == 1
    assert len(Leftovers.find(tmp_path).folders) == 1


def test_another_file_has_another_copy_and_a_changed_one_is_refused(
    parts: tuple[Any, Any], file: Path, tmp_path: Path
) -> None:
    mine = Path(shutil.copy2(file, tmp_path / "m.gguf"))
    ref = resolve_model(str(mine))
    first = load(mine, tmp_path / "store").model.state_dict()
    write_gguf(mine, *parts, form=Q.Q4_1)
    with pytest.raises(IntegrityError, match=r"is no longer what it was"):
        load_source(ref, dtype=torch.float32, device="cpu", home=tmp_path / "store")
    second = load(mine, tmp_path / "store").model.state_dict()
    assert not torch.equal(first["model.embed_tokens.weight"], second["model.embed_tokens.weight"])
    assert len(copies(tmp_path / "store")) == 4


def test_copy_of_another_version_of_the_reader_is_not_taken(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import plr.core.sources as sources

    load(file, tmp_path)
    assert all(copy.is_current for copy in copies(tmp_path))
    ref = resolve_model(str(file))
    before = copy_key(ref, "float32")
    monkeypatch.setattr(sources, "_version", lambda package: f"{package} 99")
    assert copy_of(tmp_path, copy_key(ref, "float32")) is None
    assert copy_of(tmp_path, before) is not None
    assert not any(copy.is_current for copy in copies(tmp_path))


def test_store_for_reading_alone_reads_the_file_and_warns_once(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("plr.core.sources.hold", read_only)
    with caplog.at_level(logging.WARNING):
        first, again = load(file, tmp_path), load(file, tmp_path)
    assert_same(first, again)
    assert copies(tmp_path) == []
    said = [record.message for record in caplog.records if "no copy of" in record.message]
    assert len(said) == 2  # the weights, the tokenizer
    assert all("cannot be written: Read-only file system" in line for line in said)


def test_copy_in_a_store_for_reading_alone_is_used(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    direct = load(file, tmp_path)
    monkeypatch.setattr("plr.core.sources.hold", no_reading)
    monkeypatch.setattr(worker, "_write_model", no_reading)
    assert_same(load(file, tmp_path), direct)


@pytest.mark.parametrize("free", [0, None])
def test_full_disk_reads_the_file_warns_and_leaves_nothing(
    file: Path, free: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    load_tokenizer(resolve_model(str(file)), home=tmp_path)
    if free is None:
        monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    else:
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(worker.shutil, "disk_usage", lambda _: usage._replace(free=free))
    with caplog.at_level(logging.WARNING):
        mine = load(file, tmp_path)
    monkeypatch.undo()
    assert_same(mine, load(file, None))
    assert "has no room for it" in caplog.text
    assert [copy.record.key["form"] for copy in copies(tmp_path)] == ["tokenizer"]
    assert Leftovers.find(tmp_path).folders == []


def test_model_that_does_not_come_back_as_it_was_gets_no_copy(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import PreTrainedModel

    save = PreTrainedModel.save_pretrained

    def spoilt(model: Any, *args: Any, **kwargs: Any) -> None:
        with torch.no_grad():
            model.model.norm.weight[0] += 1e-3
        save(model, *args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", spoilt)
    with caplog.at_level(logging.WARNING):
        mine = load(file, tmp_path)
    assert_same(mine, load(file, None))
    assert "it would not be read as the file is: model.norm.weight differs" in caplog.text
    assert [copy.record.key["form"] for copy in copies(tmp_path)] == ["tokenizer"]


@pytest.mark.parametrize("head", [None, HeadSpec(("no", "yes"))])
def test_file_without_one_of_its_tensors_is_refused_and_gets_no_copy(
    parts: tuple[Any, Any], head: HeadSpec | None, tmp_path: Path
) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    file = write_gguf(tmp_path / "m.gguf", *parts, without=(name,))
    for home in (None, tmp_path / "store"):
        with pytest.raises(ModelError, match=rf"lacks 1 (tensors|weights) of .*: {name}"):
            load(file, home, head=head)
    assert [copy.record.key["form"] for copy in copies(tmp_path / "store")] == ["tokenizer"]


@pytest.mark.parametrize("size", [0, 100, 200_000])
def test_file_that_was_cut_is_refused_as_without_a_store(file: Path, size: int, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ModelError, match=r"cannot be loaded from"):
        load(cut, tmp_path / "store")
    assert all(copy.record.key["form"] == "tokenizer" for copy in copies(tmp_path / "store"))


def test_reader_is_not_robbed_and_gc_takes_what_no_artifact_needs(file: Path, tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    load(file, tmp_path)
    held = copy_of(tmp_path, copy_key(resolve_model(str(file)), "float32"))
    assert held is not None
    left = Leftovers.find(tmp_path)
    left.look_at_copies(lab.store.all())
    assert len(left.folders) == 2
    with held.reading():
        assert held.path not in left.remove()
    assert f"{held.path} is in use now" in left.alone
    assert copies(tmp_path) == [held]
    lab.quantize(str(file), 4, task="tiny_math", samples=16)
    left = Leftovers.find(tmp_path)
    left.look_at_copies(lab.store.all())
    assert left.folders == []
    left.look_at_copies(lab.store.all(), everything=True)
    assert len(left.remove()) == 2
    assert copies(tmp_path) == []
    assert_same(load(file, tmp_path), load(file, None))


def test_without_a_store_nothing_is_written(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    load(file, None)
    assert os.listdir(tmp_path) == []
