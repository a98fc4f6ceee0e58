"""The benchmarks: statistics, data, the measure of quality, the line of JSON, and a run without peers."""

from __future__ import annotations

import doctest
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import tiny_model

from bench import __main__ as program
from bench import data, disk, floor, harness, load, lowbit, quality, quantize, venvs
from bench.common import numbers, pairs, shape, words
from bench.harness import BenchError

ROOT = Path(__file__).parents[2]
TINY: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "initializer_range": 0.2,
}


def tiny_llama() -> Any:
    return tiny_model("llama", **TINY)


@pytest.mark.parametrize("name", ["quantize", "lowbit", "load"])
def test_every_benchmark_has_help_and_the_common_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        program.main([name, "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for option in ("--quick", "--json", "--venv", "--threads", "--model", "--out"):
        assert option in shown


def test_readme_names_every_option() -> None:
    text = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")
    subparsers = program.parser()._subparsers
    assert subparsers is not None
    choices: Any = subparsers._group_actions[0].choices
    options = {option for parser in choices.values() for option in parser._option_string_actions if "--" in option}
    assert sorted(option for option in options - {"--help"} if f"`{option}" not in text) == []


def test_an_error_is_one_line_and_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["quantize", "--model", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "there is no config.json" in capsys.readouterr().err


# -- statistics --


def test_median_of_paired_ratios_not_ratio_of_medians() -> None:
    found = harness.paired_ratio([1, 10, 100], [4, 20, 300])
    assert (found.ratio, found.lo, found.hi, found.interval) == (3, 2, 4, "min to max")


def test_interval_of_five_rounds_is_bootstrapped_and_repeats() -> None:
    ours, theirs = [1.0] * 7, [2.0, 2.1, 2.2, 2.3, 2.4, 2.5, 9.0]
    found = harness.paired_ratio(ours, theirs)
    assert found == harness.paired_ratio(ours, theirs)
    assert found.interval == "bootstrap 95 %"
    assert found.ratio == pytest.approx(2.3)
    assert 2.0 <= found.lo < found.ratio < found.hi <= 9.0


def test_bootstrap_covers_the_true_median_about_as_often_as_it_says() -> None:
    hits = 0
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        theirs = torch.randn(15, generator=generator).exp().tolist()  # median 1
        found = harness.paired_ratio([1.0] * 15, theirs)
        hits += found.lo <= 1 <= found.hi
    assert hits >= 8


def test_no_round_is_an_error() -> None:
    with pytest.raises(BenchError, match="no round"):
        harness.paired_ratio([], [])


def test_quality_ok_allows_two_per_cent_and_looks_at_every_text() -> None:
    theirs = {"error": 0.1, "perplexity": {"a": 10.0, "b": 20.0}}
    assert quantize.quality_ok({"error": 0.1019, "perplexity": {"a": 10.19, "b": 15.0}}, theirs)
    assert not quantize.quality_ok({"error": 0.103, "perplexity": {"a": 9.0, "b": 9.0}}, theirs)
    assert not quantize.quality_ok({"error": 0.05, "perplexity": {"a": 9.0, "b": 20.5}}, theirs)


# -- options --


def test_words_numbers_shape_and_pairs() -> None:
    assert words("none") == words("") == []
    assert words("a,b") == ["a", "b"]
    assert numbers("8,2") == [8, 2]
    assert shape("32x256") == (32, 256)
    assert pairs(["a=b=c"]) == {"a": "b=c"}
    with pytest.raises(BenchError, match="KEY=VALUE"):
        pairs(["a"])
    with pytest.raises(Exception, match="SAMPLESxLENGTH"):
        shape("32")


def test_methods_are_presets_with_widths_of_their_own_and_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    from plr.study import presets

    best = {"method": "gptq", "sym": True, "samples": 5, "by_bits": {2: {"sym": False}}, "group_size": 128}
    monkeypatch.setitem(presets.PRESETS, "best", {"quantize": best})
    assert lowbit.settings_of("best", 2, 64, []) == {"method": "gptq", "sym": False, "bits": 2, "group_size": 64}
    own = lowbit.settings_of("mine", 4, 32, ["mine.preset=best", "mine.grid=mse", "mine.desc_act=true"])
    assert own == {"method": "gptq", "sym": True, "grid": "mse", "desc_act": True, "bits": 4, "group_size": 32}
    with pytest.raises(BenchError, match="unknown method 'mine'"):
        lowbit.settings_of("mine", 4, 32, [])


def test_an_interpreter_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no such interpreter"):
        venvs.peer_python("gptqmodel", {"gptqmodel": "/nowhere/python"}, tmp_path)
    assert venvs.peer_python("ist", {}, tmp_path) == sys.executable


# -- data --


def test_halves_share_no_document() -> None:
    documents = [f"document {i} " * (i + 1) for i in range(9)]
    first, second = data.halves(documents)
    assert first + second == documents
    assert first
    assert second


def test_windows_are_full_and_spread_takes_some_of_them_evenly() -> None:
    rows = data.windows(range(25), 4)
    assert rows[0] == [0, 1, 2, 3]
    assert len(rows) == 6
    assert [row[0] for row in data.spread(rows, 3)] == [0, 8, 16]
    assert data.spread(rows, None) == rows


def test_examples_in_docstrings_hold() -> None:
    assert doctest.testmod(harness).failed == doctest.testmod(data).failed == 0


def test_calibration_and_held_out_windows_of_two_texts(random_model: Path, tmp_path: Path) -> None:
    texts = [tmp_path / "a.txt", tmp_path / "b.jsonl"]
    texts[0].write_text("\n".join(f"SELECT name FROM table_{i}" for i in range(60)), encoding="utf-8")
    texts[1].write_text("\n".join(json.dumps({"text": f"row {i} of b"}) for i in range(90)), encoding="utf-8")
    names = [str(path) for path in texts]
    common = {"model": str(random_model), "train": names, "eval": names, "out": str(tmp_path / "out")}
    made = data.main({**common, "samples": 5, "length": 16, "eval_length": 8, "eval_windows": 3})
    rows = json.loads(Path(made["calibration"]).read_text(encoding="utf-8"))
    assert [len(row) for row in rows] == [16] * 5
    held_out = {name: json.loads(Path(file).read_text(encoding="utf-8")) for name, file in made["eval"].items()}
    assert {name: len(found) for name, found in held_out.items()} == {"a": 3, "b": 3}
    assert made["eval_tokens"] == {"a": 21, "b": 21}
    tokenizer = transformers.AutoTokenizer.from_pretrained(random_model)
    assert "row 0 " in tokenizer.decode(rows[2])
    assert any(tokenizer.eos_token_id in row for row in held_out["b"])
    with pytest.raises(SystemExit, match="wanted"):
        data.main({**common, "samples": 5000, "length": 16, "eval_length": 8, "eval_windows": 3})


# -- quality --


def test_layer_error_is_that_of_the_outputs_on_the_dense_models_inputs() -> None:
    dense, other = tiny_llama(), tiny_llama()
    rows = torch.randint(0, 96, (6, 20), generator=torch.Generator().manual_seed(1))
    name = "model.layers.1.mlp.down_proj"
    with torch.no_grad():
        other.get_submodule(name).weight.add_(0.05)
    seen: list[torch.Tensor] = []
    handle = dense.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    H = quality.gather(dense, rows)
    handle.remove()
    found = quality.layer_errors(dense, other, H)
    X = torch.cat([x.flatten(0, 1) for x in seen])
    Y = X @ dense.get_submodule(name).weight.t()
    expected = (X @ other.get_submodule(name).weight.t() - Y).square().sum() / Y.square().sum()
    assert found == {name: pytest.approx(float(expected.detach()), rel=1e-4)}


def test_layers_with_one_input_share_one_hessian() -> None:
    H = quality.gather(tiny_llama(), torch.arange(40).view(2, 20))
    assert len(H) == 14
    assert len({id(tensor) for tensor in H.values()}) == 8
    assert H["model.layers.0.self_attn.q_proj"] is H["model.layers.0.self_attn.v_proj"]
    assert H["model.layers.0.mlp.gate_proj"] is not H["model.layers.0.self_attn.q_proj"]


def test_perplexity_of_windows_matches_transformers_loss() -> None:
    model, rows = tiny_llama(), torch.randint(0, 96, (4, 16), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = math.exp(float(model(rows, labels=rows).loss))
    assert quality.perplexity(model, rows) == pytest.approx(expected, rel=1e-4)


def test_floor_counts_what_must_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "LEAST", 0.0)
    monkeypatch.setattr(floor, "fastest", lambda work: (work(), 1.0)[1])
    found = floor.floor(tiny_llama(), torch.zeros(2, 16, dtype=torch.long))
    assert found["hessians"] == 8 * 0.5  # 2 blocks of 4 distinct inputs, half a product each
    assert found["columns"] == 14 * 0.5  # 7 layers a block
    assert found["factors"] > 8
    assert found["total"] == pytest.approx(sum(value for key, value in found.items() if key != "total"))


# -- disk --


def test_bits_on_disk_are_those_of_the_layout(tmp_path: Path) -> None:
    from plr.gptq import quantize_model, save_checkpoint

    model = tiny_llama()
    quantize_model(model, [], bits=4, group_size=32, method="rtn")
    save_checkpoint(model, tmp_path, bits=4, group_size=32)
    layers = [(64, 64), (64, 32), (64, 32), (64, 64), (64, 128), (64, 128), (128, 64)]  # in, out
    weights = sum(i * o for i, o in layers)
    stored = sum(i * o * 4 + 32 * i + (16 + 4) * (i // 32) * o for i, o in layers)
    assert disk.disk_bits(tmp_path)["bits"] == pytest.approx(stored / weights)
    assert disk.ideal_bits(4, 32) == 4 + 20 / 32


# -- processes --


def test_result_is_found_among_chatter_and_a_failure_names_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "SCRIPTS", tmp_path)
    (tmp_path / "good.py").write_text(
        f"import sys; sys.path.insert(0, {str(ROOT / 'bench' / 'peers')!r})\n"
        "from clock import Clock, options\n"
        "clock = Clock()\n"
        "with clock.stage('load'):\n"
        "    print('50 %\\r', end='')\n"
        "    sum(range(10**6))\n"
        "clock.report(x=options()['x'])\n",
        encoding="utf-8",
    )
    bad = "print('Error rates: 3')\nraise ValueError('no such\\nthing')\n"
    (tmp_path / "bad.py").write_text(bad, encoding="utf-8")
    found = harness.run_script(sys.executable, "good", {"x": 7}, threads=1, log=tmp_path / "logs" / "good")
    assert found["x"] == 7
    assert found["versions"]["threads"] == "1"
    assert found["peak_rss"] > 2**20
    assert 0 < found["stages"]["load"]["cpu"] <= found["stages"]["whole"]["cpu"]
    with pytest.raises(BenchError, match=r"^ValueError: no such \(whole output: .*bad\)"):
        harness.run_script(sys.executable, "bad", {}, threads=1, log=tmp_path / "bad")


def test_json_is_the_last_line_and_the_file_has_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ratio = harness.paired_ratio([1.0], [2.0])
    harness.finish(tmp_path, "x", {"ratio": 2.0, "r": ratio}, {"rounds": [1]}, "| table |", as_json=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| table |"
    assert json.loads(lines[-1]) == {
        "name": "x",
        "ratio": 2.0,
        "r": {"ratio": 2.0, "lo": 2.0, "hi": 2.0, "n": 1, "interval": "min to max"},
    }
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["details"] == {"rounds": [1]}


def test_logits_are_compared_relative_to_their_size() -> None:
    assert load.distance([1.01, -1.0], [1.0, -1.0]) == pytest.approx(0.01 / 2**0.5)


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with the embedded model's tokenizer."""
    from plr.embedded import tiny_path

    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama", **{**TINY, "vocab_size": 768}).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_path() / name).read_bytes())
    return folder


def bench(*words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench", *words, "--quick", "--json", "--threads", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_quick_quantize_without_other_environments(random_model: Path, tmp_path: Path) -> None:
    line = bench("quantize", "--model", str(random_model), "--peers", "ist", "--widths", "4,3", "--out", str(tmp_path))
    assert line["name"] == "quantize"
    assert line["peer"] == "ist"
    assert line["errors"]["plr/4"] < line["errors"]["plr/3"]
    # The same algorithm by another hand: the same error.
    assert line["errors"]["plr/4"] == pytest.approx(line["errors"]["ist/4"], rel=0.05)
    assert line["quality_ok"] == (line["ratio"] is not None)
    assert 0 < line["floor_share_whole"] < line["floor_share"] < 1
    assert {"lo", "hi", "n", "interval", "load", "cpu", "threads", "versions", "commit", "settings"} <= line.keys()
    assert (tmp_path / "quantize.md").read_text(encoding="utf-8").startswith("### Quantize")


@pytest.mark.slow
def test_lowbit_goes_on_from_its_cells(random_model: Path, tmp_path: Path) -> None:
    words = (
        "lowbit",
        "--model",
        str(random_model),
        "--methods",
        "rtn,paper",
        "--eval-length",
        "64",
        "--out",
        str(tmp_path),
    )
    first = bench(*words)
    assert first["errors"]["paper/2"] < first["errors"]["rtn/2"]
    assert first["ratio"] is None
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    assert len(stamps) == 5  # 16 bits, and 2 methods at 2 widths
    assert bench(*words)["perplexity"] == first["perplexity"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()} == stamps


@pytest.mark.slow
def test_load_without_the_peer_gives_no_ratio(random_model: Path, tmp_path: Path) -> None:
    line = bench("load", "--model", str(random_model), "--without-peer", "--out", str(tmp_path))
    assert line["ratio"] is None
    assert line["quality_ok"] is False
    assert set(line["seconds"]) == {"plr, dequantized", "plr, packed"}
    assert line["bits_per_weight"] > line["ideal_bits"]
