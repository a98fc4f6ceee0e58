"""Inputs that are wrong by construction, or harmless and odd, against the command that reads them.

A wrong one must be refused in plr's own words (exit 1, 2 or 5), a harmless one refused or answered with the numbers of the
plain input; each within `SECONDS` of processor time and `MEGABYTES` more memory than a plain run takes.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from faults.corruption import STUDY, numbers
from faults.forks import Forks, Ran
from faults.inputs import STEPS, TASK, copied, make, write_inputs
from safetensors.torch import load_file, save_file

SECONDS = 10
MEGABYTES = 1000
DIGITS = "9" * 5000
DEEP = "[" * 10_000 + "]" * 10_000
CODE = '"!!python/object/apply:os.system [touch HACKED]"'
Change = Callable[[Path], None]
QUANTIZE = (
    "quantize",
    "-m",
    "other",
    "--calibration",
    "task:words.yaml",
    "-b",
    "2",
    "--set",
    "quantize.group_size=32",
    "--samples",
    "8",
)
TRAIN = ("train", "-m", "m", "-t", "words.yaml", "-b", "3", *STEPS["adapter"][7:], "--set", "train.seed=1")
BASE = "the 3-bit base"
EVAL = ("eval", BASE, "--task", "words.yaml", "--dtype", "float32")
GRID = ("grid", "study.yaml", "--dry-run")
SCORE = ("score", "words.yaml", "predictions.jsonl")


@dataclass(frozen=True)
class Hostile:
    name: str
    words: tuple[str, ...]
    change: Change = field(repr=False)
    harmless: bool = False

    @property
    def part(self) -> str:
        first = self.name.partition(":")[0]
        return "--set" if first.startswith("--set") else "tensor" if first.startswith("tensor") else first

    def __str__(self) -> str:
        return f"{self.name}; plr {self.words[0]}"


class Inputs:
    def __init__(self, forks: Forks, folder: Path) -> None:
        self.forks, self.plain, self.cwd = forks, folder / "plain", folder / "work"
        self.cwd.mkdir()
        write_inputs(self.cwd)
        shutil.copytree(self.cwd / "m", self.cwd / "other")
        (self.cwd / "study.yaml").write_text(STUDY)
        (self.cwd / "predictions.jsonl").write_text(
            "".join(json.dumps({"doc_id": i, "response": f" w{i % 7}"}) + "\n" for i in range(8))
        )
        ran = make(forks, "base", self.cwd / "home", self.cwd)
        assert ran.code == 0, ran.text
        self.base = next((self.cwd / "home" / "base").iterdir()).name
        copied(self.cwd, self.plain)
        self.whole: dict[tuple[str, ...], Ran] = {}
        for words in (QUANTIZE, TRAIN, EVAL, GRID, SCORE):
            copied(self.plain, self.cwd)
            ran = self.whole[words] = self._run(words)
            assert ran.code == 0, (words, ran.text)

    @staticmethod
    def trials() -> list[Hostile]:
        return every()

    def judge(self, hostile: Hostile) -> str | None:
        """Run one and say what is wrong with the answer; None where it is as it must be."""
        copied(self.plain, self.cwd)
        hostile.change(self.cwd)
        ran = self._run(hostile.words)
        whole = self.whole[GRID if hostile.words[0] == "grid" else hostile.words]
        if (self.cwd / "HACKED").exists():
            return "its code ran"
        if ran.cpu > SECONDS or ran.megabytes > max(whole.megabytes, 600) + MEGABYTES or ran.code < 0:
            return f"without bounds: exit {ran.code} after {ran.cpu:.1f} s, {ran.megabytes:.0f} MB: {ran.text[-300:]}"
        if not ran.is_clear:
            return f"unclear: {ran.code} {ran.text[-400:]}"
        if ran.code in (1, 2, 5):
            return None
        if hostile.harmless and ran.code == 0 and numbers(ran) == numbers(whole):
            return None
        return f"accepted: {ran.code} {ran.text[-400:]}"

    def _run(self, words: tuple[str, ...]) -> Ran:
        words = tuple(self.base if word == BASE else word for word in words)
        return self.forks.run(*words, "--json", home=self.cwd / "home", cwd=self.cwd, seconds=60)


def every() -> list[Hostile]:
    makers = (_yaml, _keys, _task_keys, _rows, _row_files, _tensors, _weight_files, _configs, _tokenizers, _predictions)
    return [hostile for make_some in makers for hostile in make_some()]


def _content(path: str, content: str | bytes) -> Change:
    return lambda cwd: _write(cwd / path, content)


def _write(path: Path, content: str | bytes) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))


def _special(path: str) -> Iterator[tuple[str, Change]]:
    """What may stand where a file is expected."""

    def put(make_it: Callable[[Path], object]) -> Change:
        def change(cwd: Path) -> None:
            (cwd / path).unlink()
            make_it(cwd / path)

        return change

    yield "a folder", put(lambda file: file.mkdir())
    yield "a pipe", put(lambda file: os.mkfifo(file))
    yield "a device without end", put(lambda file: file.symlink_to("/dev/zero"))
    yield "a link to itself", put(lambda file: file.symlink_to(file))
    yield "nothing", put(lambda file: None)
    yield "empty", _content(path, "")
    yield "zeros", _content(path, bytes(4096))


def _yaml() -> Iterator[Hostile]:
    def laughs(form: str) -> str:
        return "a: &a0 x\n" + "".join(f"b{i}: &a{i + 1} " + form.format(*[f"*a{i}"] * 9) + "\n" for i in range(9))

    nine = "[{}, {}, {}, {}, {}, {}, {}, {}, {}]"
    mapping = "{{p: {}, q: {}, r: {}, s: {}, t: {}, u: {}, v: {}, w: {}, x: {}}}"
    merges = "a: &a0 {x: 1}\n" + "".join(f"b{i}: &a{i + 1} {{<<: [*a{i}, *a{i}], k{i}: *a{i}}}\n" for i in range(40))
    texts: dict[str, str | bytes] = {
        "aliases of lists": laughs(nine),
        "aliases of mappings": laughs(mapping),
        "merge keys": merges,
        "a list that holds itself": "models: &a [*a]\n",
        "a mapping that holds itself": "train: &a {x: *a}\n",
        "10,000 lists deep": f"models: {DEEP}\n",
        "10,000 mappings deep": "models: " + "{a: " * 10_000 + "1" + "}" * 10_000 + "\n",
        "5,000 digits": f"seeds: [{DIGITS}]\n",
        "no number": "seeds: [!!int abc]\n",
        "no date": "name: !!timestamp abc\n",
        "no bytes": "name: !!binary abc%\n",
        "a call": "name: !!python/object/apply:os.system ['touch HACKED']\n",
        "a module": "name: !!python/module:os\n",
        "a name": "name: !!python/name:os.system\n",
        "a new object": "name: !!python/object/new:os.system ['touch HACKED']\n",
        "an unknown tag": "name: !what x\n",
        "a tab": "train:\n\tepochs: 1\n",
        "an open quote": 'name: "x\n',
        "an open list": "models: [m\n",
        "two documents": f"{STUDY}---\n{STUDY}",
        "a list": "- models\n",
        "a word": "models\n",
        "a number": "1\n",
        "a key twice": f"{STUDY}tasks: [words.yaml]\n",
        "a key that is a list": f"{STUDY}? [a, b]\n: 1\n",
        "an undefined alias": "models: *a\n",
        "Latin-1": f"{STUDY}# caf\u00e9\n".encode("latin-1"),
        "UTF-16 without a mark": STUDY.encode("utf-16-le"),
        "half a character": STUDY.encode() + b"# \xe2\x82",
        "a NUL": STUDY.encode() + b"# \x00",
        "random bytes": random.Random(0).randbytes(2000),
    }
    for name, text in texts.items():
        yield Hostile(f"study file: {name}", GRID, _content("study.yaml", text))
        task = text.replace(STUDY, TASK).replace("tasks: [words.yaml]", "data: rows") if isinstance(text, str) else text
        yield Hostile(f"task file: {name}", EVAL, _content("words.yaml", task))
    for name, change in _special("study.yaml"):
        yield Hostile(f"study file: {name}", GRID, change)
    for name, change in _special("words.yaml"):
        yield Hostile(f"task file: {name}", EVAL, change)


def _keys() -> Iterator[Hostile]:
    """Values that no study can have, in the file and on the command line."""
    wrong: dict[str, tuple[str, ...]] = {
        "models": ("[]", "[no-such-folder/]", "[1]", "m", "{}"),
        "tasks": ("[no-such-task]", "[{}]", "[none.yaml]", "[1]"),
        "adapters": (
            "[no-such-method]",
            "[{method: lora, config: {r: 0}}]",
            "[{method: lora, config: {r: x}}]",
            "[{}, 1]",
        ),
        "seeds": ("[]", "[x]", "[0.5]", "[-1]", "[1e400]", "[0, 0]"),
        "train_bits": ("[5]", "[1]", "[x]", "[]", "[-4]", "[16.5]", "16"),
        "restore_bits": ("[5]", "[0]", "[x]", "[1e9]"),
        "cells": ("lower", "1", "[upper]"),
        "modes": ("[what]", "restore"),
        "baselines": ("2", "perhaps", "[]"),
        "quantize.group_size": ("0", "-2", "33", "5", "1.5", "x", "1e9"),
        "quantize.samples": ("0", "-1", "x", "1e300"),
        "quantize.damp_percent": ("0", "1", "-1", ".nan", ".inf", "x"),
        "quantize.method": ("what", "nf4", "1"),
        "quantize.input_correction": ("-0.1", "1.1", ".nan"),
        "quantize.calibration": ("no-such-file.jsonl", "/dev/null", "m"),
        "train.learning_rate": ("0", "-1", ".nan", ".inf", "1e400", "x"),
        "train.epochs": ("0", "-1", "1e300", ".inf", ".nan", "x"),
        "train.batch_size": ("0", "-1", "1.5", "x"),
        "train.warmup_fraction": ("1", "-0.1", ".nan"),
        "train.weight_decay": ("-1", ".nan", ".inf"),
        "train.max_grad_norm": ("-1", ".nan"),
        "train.adam_beta1": ("1", "-0.1", "2", ".nan"),
        "train.max_length": ("0", "7", "x"),
        "train.train_limit": ("0", "-5", "x"),
        "train.scheduler": ("what", "1"),
        "evaluate.limit": ("0", "-1", "x", "0.5"),
        "evaluate.split": ("what", "1"),
        "evaluate.engine": ("what",),
        "runtime.workers": ("0", "-1", "x", "1e9"),
        "runtime.device": ("cuda:7", "what", "1", "cuda:x"),
        "runtime.dtype": ("int8", "float64", "1"),
        "runtime.what": ("1",),
        "what": ("1", "[]"),
    }
    bombs = {"&a [*a]": "itself", DEEP: "10,000 deep", DIGITS: "5,000 digits", "!!int abc": "no number", "[": "open"}
    for key, values in wrong.items():
        for value in values:
            yield Hostile(f"--set {key}={value}", (*GRID, "--set", f"{key}={value}"), lambda cwd: None)
    for value, name in bombs.items():
        yield Hostile(f"--set: {name}", (*GRID, "--set", f"train.epochs={value}"), lambda cwd: None)


def _task_keys() -> Iterator[Hostile]:
    wrong = {
        "prompt": ('"{no_such_field}"', '"{"', "1", '"{question.__class__}"', '"{0}"', '""'),
        "target": ('"{no_such_field}"', '"{answer"', '"{answer!x}"'),
        "data": ("no-such-folder", "/dev/zero", "1", "words.yaml", '""'),
        "max_new_tokens": ("0", "-1", "x", "1e300"),
        "metric": ("what", "1"),
        "boundary": ("what",),
        "kind": ("what",),
        "version": ("0", "x"),
        "splits": ("[]", "{test: none}", "1"),
    }
    for key, values in wrong.items():
        for value in values:
            lines = [line for line in TASK.splitlines() if not line.startswith(key)]
            text = "\n".join([*lines, f"{key}: {value}"]) + "\n"
            yield Hostile(f"task file: {key}: {value}", EVAL, _content("words.yaml", text))


def _rows() -> Iterator[Hostile]:
    """A line among the rows of test, and among those of train."""
    lines: dict[str, str | bytes] = {
        "an open object": '{"question": "w1"',
        "no JSON": "nonsense",
        "single quotes": "{'question': 'w1', 'answer': 'w2'}",
        "a list": '["w1", "w2"]',
        "a text": '"w1"',
        "a number": "42",
        "null": "null",
        "no answer": '{"question": "w1"}',
        "no question": '{"answer": "w1"}',
        "null for an answer": '{"question": "w1", "answer": null}',
        "null for a question": '{"question": null, "answer": "w1"}',
        "a list for an answer": '{"question": "w1", "answer": ["w1"]}',
        "an object for an answer": '{"question": "w1", "answer": {}}',
        "NaN": '{"question": "w1", "answer": NaN}',
        "Infinity": '{"question": "w1", "answer": -Infinity}',
        "5,000 digits": f'{{"question": "w1", "answer": {DIGITS}}}',
        "10,000 deep": f'{{"question": "w1", "answer": {DEEP}}}',
        "half a surrogate pair": '{"question": "w1", "answer": "\\ud800"}',
        "a raw control character": '{"question": "w1", "answer": "w\x012"}',
        "a key twice": '{"question": "w1", "question": "w2", "answer": "w1"}',
        "two on a line": '{"question": "w1", "answer": "w2"} {"question": "w1", "answer": "w2"}',
        "Latin-1": '{"question": "caf\u00e9", "answer": "w2"}'.encode("latin-1"),
        "half a character": b'{"question": "w1 \xe2\x82", "answer": "w2"}',
        "a NUL": b'{"question": "w1", "answer": "w2"}\x00',
    }
    for split, words in (("test", EVAL), ("train", TRAIN)):
        for name, line in lines.items():
            yield Hostile(f"{split} row: {name}", words, _inserted(f"rows/{split}.jsonl", line))


def _inserted(path: str, line: str | bytes) -> Change:
    def change(cwd: Path) -> None:
        rows = (cwd / path).read_bytes().splitlines()
        rows[1] = line if isinstance(line, bytes) else line.encode("utf-8", "surrogatepass")
        _write(cwd / path, b"\n".join(rows) + b"\n")

    return change


def _row_files() -> Iterator[Hostile]:
    def edited(path: str, edit: Callable[[bytes], bytes]) -> Change:
        return lambda cwd: _write(cwd / path, edit((cwd / path).read_bytes()))

    harmless: dict[str, Callable[[bytes], bytes]] = {
        "a mark of UTF-8": lambda text: b"\xef\xbb\xbf" + text,
        "ends of Windows": lambda text: text.replace(b"\n", b"\r\n"),
        "no end of the last line": lambda text: text.rstrip(b"\n"),
        "empty lines at the end": lambda text: text + b"\n\n",
        "spaces at ends": lambda text: text.replace(b"\n", b"  \n"),
        "UTF-16 with a mark": lambda text: text.decode().encode("utf-16"),
        "a field more, with a separator of lines": lambda text: text.replace(
            b"}\n", ', "more": "a\u2028b\u0085c\u2029"}\n'.encode()
        ),
    }
    wrong: dict[str, Callable[[bytes], bytes]] = {
        "UTF-16 without a mark": lambda text: text.decode().encode("utf-16-be"),
        "a list over all": lambda text: b"[" + text.replace(b"\n", b",") + b"1]",
        "gzip in name of JSON": lambda text: gzip.compress(text),
        "one object": lambda text: b'{"rows": 1}',
        "a page of the web": lambda text: b"<!DOCTYPE html><html><body>Not found</body></html>",
        "a pointer of git-lfs": lambda text: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    }
    for name, edit in harmless.items():
        yield Hostile(f"test rows: {name}", EVAL, edited("rows/test.jsonl", edit), harmless=True)
    for split, words in (("test", EVAL), ("train", TRAIN)):
        for name, edit in wrong.items():
            yield Hostile(f"{split} rows: {name}", words, edited(f"rows/{split}.jsonl", edit))
        for name, change in _special(f"rows/{split}.jsonl"):
            yield Hostile(f"{split} rows: {name}", words, change)


def _tensors() -> Iterator[Hostile]:
    names = [
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.1.input_layernorm.weight",
    ]

    def edited(edit: Callable[[dict[str, torch.Tensor], str], None], name: str) -> Change:
        def change(cwd: Path) -> None:
            file = cwd / "other" / "model.safetensors"
            tensors = load_file(file)
            edit(tensors, name)
            save_file(tensors, file, {"format": "pt"})

        return change

    def renamed(tensors: dict[str, torch.Tensor], name: str) -> None:
        tensors["x." + name] = tensors.pop(name)

    def filled(value: float) -> Callable[[dict[str, torch.Tensor], str], None]:
        def edit(tensors: dict[str, torch.Tensor], name: str) -> None:
            tensors[name].view(-1)[-1] = value

        return edit

    def resized(tensors: dict[str, torch.Tensor], name: str) -> None:
        tensors[name] = tensors[name][1:].contiguous()

    def whole(tensors: dict[str, torch.Tensor], name: str) -> None:
        tensors[name] = tensors[name].to(torch.int8)

    def dropped(tensors: dict[str, torch.Tensor], name: str) -> None:
        del tensors[name]

    edits: dict[str, Callable[[dict[str, torch.Tensor], str], None]] = {
        "missing": dropped,
        "renamed": renamed,
        "NaN": filled(float("nan")),
        "infinite": filled(float("-inf")),
        "shorter": resized,
        "whole numbers": whole,
    }
    for what, edit in edits.items():
        for name in names:
            yield Hostile(f"tensor {name}: {what}", QUANTIZE, edited(edit, name))

    def layer_gone(tensors: dict[str, torch.Tensor], name: str) -> None:
        for key in [key for key in tensors if ".layers.1." in key]:
            del tensors[key]

    yield Hostile("tensors: a layer missing", QUANTIZE, edited(layer_gone, ""))


def _weight_files() -> Iterator[Hostile]:
    weights = "other/model.safetensors"

    def edited(edit: Callable[[bytes], bytes]) -> Change:
        return lambda cwd: _write(cwd / weights, edit((cwd / weights).read_bytes()))

    def index(where: str) -> Change:
        def change(cwd: Path) -> None:
            file = cwd / weights
            names = list(load_file(file))
            if where.endswith(".bin"):
                torch.save(load_file(file), cwd / "other" / "pytorch_model.bin")
                file.unlink()
                save_file({"x": torch.zeros(1)}, cwd / "other" / "x.safetensors")
            else:
                shutil.move(file, cwd / "outside.safetensors")
            value = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, where.format(cwd=cwd))}
            _write(cwd / "other" / "model.safetensors.index.json", json.dumps(value))

        return change

    def pickled(cwd: Path) -> None:
        torch.save(load_file(cwd / weights), cwd / "other" / "pytorch_model.bin")
        (cwd / weights).unlink()

    def pickled_beside(cwd: Path) -> None:
        pickled(cwd)
        save_file({"x": torch.zeros(1)}, cwd / "other" / "x.safetensors")

    edits: dict[str, Callable[[bytes], bytes]] = {
        "half": lambda content: content[: len(content) // 2],
        "a byte less": lambda content: content[:-1],
        "longer": lambda content: content + bytes(1000),
        "a header without end": lambda content: (2**60).to_bytes(8, "little") + content[8:],
        "a header of nothing": lambda content: bytes(8) + content[8:],
        "a header that is no JSON": lambda content: content[:8] + b"!" * 50 + content[58:],
        "a page of the web": lambda content: b"<!DOCTYPE html>",
    }
    for name, edit in edits.items():
        yield Hostile(f"weights: {name}", QUANTIZE, edited(edit))
    for name, change in _special(weights):
        yield Hostile(f"weights: {name}", QUANTIZE, change)
    for where in ("pytorch_model.bin", "../outside.safetensors", "{cwd}/outside.safetensors", "absent.safetensors"):
        yield Hostile(f"index: {where}", QUANTIZE, index(where))
    yield Hostile("weights: pickled", QUANTIZE, pickled)
    yield Hostile("weights: pickled beside a small file", QUANTIZE, pickled_beside)


def _configs() -> Iterator[Hostile]:
    def edited(**values: Any) -> Change:
        def change(cwd: Path) -> None:
            file = cwd / "other" / "config.json"
            (cwd / "other" / "evil.py").write_text("open('HACKED', 'w')\n")
            _write(file, json.dumps(json.loads(file.read_text()) | values))

        return change

    wrong: dict[str, tuple[Any, ...]] = {
        "model_type": ("what", 1, None, [], "t5", "bert_of_nobody"),
        "hidden_size": (0, -1, "32", 33, 64, 10**9, None),
        "num_hidden_layers": (0, -1, 1, 3, 10**9, "2", 1.5),
        "num_attention_heads": (0, -4, 5, "4"),
        "num_key_value_heads": (0, 3, -1),
        "intermediate_size": (0, 63, 65, "64", 10**9),
        "vocab_size": (0, 10, 65, -1, 10**9, "64"),
        "hidden_act": ("what", 1, None),
        "rms_norm_eps": ("x", None),
        "max_position_embeddings": (0, -1, "x"),
        "rope_parameters": ({"rope_type": "what"}, [], 1),
        "quantization_config": ({"quant_method": "gptq", "bits": 4}, {"quant_method": "what"}, {"bits": 4}, []),
        "auto_map": ({"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},),
    }
    for key, values in wrong.items():
        for value in values:
            more = {"model_type": "of_my_own"} if key == "auto_map" else {}
            yield Hostile(f"config.json: {key}: {json.dumps(value)}", QUANTIZE, edited(**{key: value}, **more))
    texts = {"no JSON": "{", "a list": "[]", "null": "null", "10,000 deep": f'{{"a": {DEEP}}}', "a number": DIGITS}
    for name, text in texts.items():
        yield Hostile(f"config.json: {name}", QUANTIZE, _content("other/config.json", text))
    for name, change in _special("other/config.json"):
        yield Hostile(f"config.json: {name}", QUANTIZE, change)
    for name, text in {"no JSON": "{", "a list": "[]", "an id out of range": '{"eos_token_id": 99999}'}.items():
        yield Hostile(f"generation_config.json: {name}", QUANTIZE, _content("other/generation_config.json", text))


def _tokenizers() -> Iterator[Hostile]:
    def edited(edit: Callable[[Any], object]) -> Change:
        def change(cwd: Path) -> None:
            file = cwd / "other" / "tokenizer.json"
            value = json.loads(file.read_text())
            edit(value)
            _write(file, json.dumps(value))

        return change

    edits: dict[str, Callable[[Any], object]] = {
        "an id beyond the embedding": lambda value: value["model"]["vocab"].update(w1=64),
        "a model of an unknown kind": lambda value: value["model"].update(type="What"),
        "no model": lambda value: value.pop("model"),
        "a list for a vocabulary": lambda value: value["model"].update(vocab=[]),
        "text for an id": lambda value: value["model"]["vocab"].update(w1="x"),
        "an unknown pre-tokenizer": lambda value: value.update(pre_tokenizer={"type": "What"}),
    }
    for name, edit in edits.items():
        yield Hostile(f"tokenizer.json: {name}", QUANTIZE, edited(edit))
    for name, text in {"no JSON": "{", "a list": "[]", "null": "null", "10,000 deep": DEEP}.items():
        yield Hostile(f"tokenizer.json: {name}", QUANTIZE, _content("other/tokenizer.json", text))
        yield Hostile(f"tokenizer_config.json: {name}", QUANTIZE, _content("other/tokenizer_config.json", text))
    for name, change in _special("other/tokenizer.json"):
        yield Hostile(f"tokenizer.json: {name}", QUANTIZE, change)


def _predictions() -> Iterator[Hostile]:
    lines: dict[str, str | bytes] = {
        "no JSON": "nonsense",
        "an open object": '{"doc_id": 1',
        "a list": "[1]",
        "a number": "1",
        "no id": '{"response": "w1"}',
        "no response": '{"doc_id": 1}',
        "null for a response": '{"doc_id": 1, "response": null}',
        "an object for a response": '{"doc_id": 1, "response": {}}',
        "an id twice": '{"doc_id": 0, "response": "w1"}',
        "an id of no row": '{"doc_id": 8, "response": "w1"}',
        "an id below zero": '{"doc_id": -1, "response": "w1"}',
        "half an id": '{"doc_id": 1.5, "response": "w1"}',
        "text for an id": '{"doc_id": "x", "response": "w1"}',
        "null for an id": '{"doc_id": null, "response": "w1"}',
        "a truth for an id": '{"doc_id": true, "response": "w1"}',
        "NaN for an id": '{"doc_id": NaN, "response": "w1"}',
        "5,000 digits for an id": f'{{"doc_id": {DIGITS}, "response": "w1"}}',
        "10,000 deep": f'{{"doc_id": 1, "response": {DEEP}}}',
        "Latin-1": '{"doc_id": 1, "response": "caf\u00e9"}'.encode("latin-1"),
        "half a character": b'{"doc_id": 1, "response": "w1 \xe2\x82"}',
    }
    for name, line in lines.items():
        yield Hostile(f"predictions: {name}", SCORE, _inserted("predictions.jsonl", line))
    for name, change in _special("predictions.jsonl"):
        yield Hostile(f"predictions: {name}", SCORE, change)
    texts: dict[str, str | bytes] = {
        "UTF-16 without a mark": '{"doc_id": 1, "response": "w1"}'.encode("utf-16-le"),
        "random bytes": random.Random(1).randbytes(1000),
        "a page of the web": "<!DOCTYPE html>",
    }
    for name, text in texts.items():
        yield Hostile(f"predictions: {name}", SCORE, _content("predictions.jsonl", text))
