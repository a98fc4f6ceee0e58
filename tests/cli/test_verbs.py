"""The command line as a user meets it: help, bad input, exit codes. No test here loads a model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import run
from typer.testing import CliRunner

import plr
from plr.cli.root import app
from plr.core.store import Store

ROOT = Path(__file__).parents[2]
COMMANDS = [
    "quantize", "train", "restore", "eval", "grid", "report", "adapters", "compare", "blocks", "forgetting",
    "score", "advise", "export", "card", "push", "generate", "diff", "ls", "show", "verify", "gc", "doctor", "config-schema", "rm",
]  # fmt: skip


def test_commands_are_these() -> None:
    assert sorted(command.name or command.callback.__name__ for command in app.registered_commands) == sorted(COMMANDS)  # type: ignore[union-attr]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    done = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert done.exit_code == 0
    assert f"plr {command}" in done.output.split("Example:")[1]
    assert "--json" in done.output or command == "config-schema"  # which prints JSON and nothing else


def test_help_takes_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['plr', '--help']\n"
        "from plr.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'peft', 'scipy', 'sqlglot'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_public_names_are_sorted_exact_and_importable() -> None:
    assert plr.__all__ == sorted(plr.__all__)
    assert 20 <= len(plr.__all__) <= 30
    for name in plr.__all__:
        assert getattr(plr, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = plr.nothing  # type: ignore[attr-defined]


BAD: list[tuple[list[str], int, str]] = [
    (["quantize", "--bits", "5"], 2, "bits is 5 expected: one of 8, 4, 3, 2"),
    (["quantize", "--bits", "16"], 2, "nothing to quantize"),
    (["quantize", "--bits", "4,x"], 2, "bits is '4,x' expected: one width, or several with commas between them"),
    (["quantize", "--gate-text", "none.txt"], 2, "there is no text file"),
    (["quantize", "--model", "embedded:tny"], 2, "unknown embedded model 'embedded:tny' expected: embedded:tiny"),
    (["quantize", "--model", "./nowhere"], 2, "neither a folder nor a .gguf file"),
    (["quantize", "--model", "org/none"], 2, "org/none is not in the local hub cache"),
    (
        ["quantize", "--method", "gptk"],
        2,
        "unknown quantization method 'gptk' expected: one of gptq, gptqmodel, int8, nf4, rtn next: did you mean gptq",
    ),
    (["quantize", "--calibration", "task:tiny_mth"], 2, "unknown task 'tiny_mth'"),
    (["quantize", "--calibration", "none.jsonl"], 2, "there is no calibration file"),
    (["quantize", "--samples", "0"], 2, "quantize.samples: Input should be greater than or equal to 1 (given: 0)"),
    (["quantize", "--group-size", "0"], 2, "group_size is 0"),
    (["quantize", "--preset", "tny"], 2, "unknown preset 'tny'"),
    (["train", "--task", "gms8k"], 2, "unknown task 'gms8k'"),
    (["advise", "--bits", "16,x"], 2, "--bits has 'x' expected: widths with commas between them"),
    (["advise", "--bits", "5"], 2, "bits is 5"),
    (["advise", "--modes", "requantise"], 2, "unknown mode 'requantise'"),
    (["advise", "--trained-on", "nf4"], 2, "--trained-on and --source are for adapters and checkpoints of other tools"),
    (["train", "--adapter", "doraa"], 2, "next: did you mean dora"),
    (["train", "--set", "train.epoch=2"], 2, "unknown key train.epoch, did you mean epochs?"),
    (["train", "--set", "adapters.0.config.rank=2"], 2, "LoraConfig has no key 'rank'"),
    (["train", "-c", "none.yaml"], 2, "there is no file none.yaml"),
    (["train", "--task", "gsm8k", "--data", "nowhere"], 2, "there is no data at"),
    (["quantize", "--device", "tpu"], 2, "options: device: String should match pattern"),
    (["quantize", "--device", "cuda"], 2, "torch sees no CUDA GPU"),
    (["quantize", "--method", "auto-gptq"], 2, "auto-gptq has reached its end of life"),
    (["quantize", "--model", "plr/embedded/tiny"], 2, "no task was given for plr/embedded/tiny"),
    (["restore"], 2, "holds no adapter yet next: run plr train first"),
    (["restore", "--bits", "7"], 2, "bits is 7"),
    (["eval"], 2, "holds no restored or adapter or base yet"),
    (["show", "abcd"], 2, "no artifact matches 'abcd'"),
    (
        ["ls", "adapters"],
        2,
        "unknown kind 'adapters' expected: one of base, adapter, restored, result next: did you mean adapter?",
    ),
    (["grid", "configs/studies/quikstart.yaml"], 2, "did you mean quickstart.yaml?"),
    (["grid", "configs/studies/quickstart.yaml", "--set", "train_bits=[5]"], 2, "bits 5 is none of 16, 8, 4, 3, 2"),
    (["grid", "configs/studies/quickstart.yaml", "--engine", "ry"], 2, "unknown engine 'ry'"),
    (["grid", "configs/studies/smollm2.yaml"], 2, "holds a variable that is not set"),
    (["report", "configs/studies/quickstart.yaml"], 2, "no cell of quickstart is in"),
]


@pytest.mark.parametrize(
    ("words", "code", "message"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_input_is_one_clear_message(
    words: list[str],
    code: int,
    message: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("PLR_DATA", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found, out, err = run(monkeypatch, capsys, *words)
    assert (found, out) == (code, ""), err
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err
    assert not [path for path in home.glob("*/*") if path.parent.name != ".locks"], (
        "bad input must leave nothing behind"
    )


def test_json_errors_are_json(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(monkeypatch, capsys, "quantize", "--bits", "5", "--json")
    assert code == 2
    assert err == ""
    assert json.loads(out) == {
        "error": "bits is 5",
        "expected": "one of 8, 4, 3, 2",
        "next": None,
        "exit_code": 2,
    }


def test_runtime_of_a_file_and_of_set_reaches_a_single_command(tmp_path: Path) -> None:
    from plr.cli.options import lab

    file = tmp_path / "a.yaml"
    file.write_text("runtime: {micro_batch: 4, slots: 3, device: cuda}\n")
    found = lab("cpu", config=file, overrides=["runtime.slots=5", "train.epochs=1"]).runtime({"micro_batch": 32})
    assert (found.micro_batch, found.slots, found.device) == (4, 5, "cpu")
    assert lab(overrides=["runtime.low_memory=true"], low_memory=False).runtime().low_memory


@pytest.mark.parametrize("command", ["train", "quantize"])
def test_a_runtime_setting_that_is_none_is_refused(
    command: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(monkeypatch, capsys, command, "--set", "runtime.micro_bach=1")
    assert code == 2
    assert "unknown key micro_bach, did you mean micro_batch?" in err


@pytest.mark.parametrize(
    ("name", "message"),
    [("tensorbord", "did you mean tensorboard?"), ("comet_ml", "names comet_ml, which is not installed")],
)
def test_a_tracker_that_is_not_there_is_refused(
    name: str, message: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(monkeypatch, capsys, "train", "--bits", "16", "--set", f"runtime.report_to=[{name}]")
    assert code in (1, 2)
    assert message in err


def test_empty_calibration_file(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    code, _, err = run(monkeypatch, capsys, "quantize", "--calibration", str(tmp_path / "empty.jsonl"))
    assert code == 2
    assert "holds no text" in err
    assert list((home / "base").iterdir()) == []


def test_output_that_exists_is_refused_before_any_work(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("precious")
    code, _, err = run(monkeypatch, capsys, "quantize", "-o", str(tmp_path / "mine"))
    assert code == 2
    assert "nothing is overwritten" in err
    assert (tmp_path / "mine" / "file").read_text() == "precious"
    assert not home.exists()


def test_ctrl_c_in_a_command_says_what_is_kept(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: Store, *kinds: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "all", interrupted)
    code, _, err = run(monkeypatch, capsys, "ls")
    assert code == 130
    assert "interrupted" in err
    assert "finished steps are kept" in err


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 4, "out of memory"),
        (OSError(28, "No space left on device"), 4, "No space left on device"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"), 4, "out of memory"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 4, "the disk is full: I/O error"),
        (PermissionError(13, "Permission denied", "x"), 1, "Permission denied: x"),
        (ZeroDivisionError("z"), 1, "this is a defect of plr"),
    ],
)
def test_exit_codes(
    raised: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise raised

    monkeypatch.setattr("plr.cli.root.app", broken)
    found, _, err = run(monkeypatch, capsys, "ls")
    assert found == code
    assert message in err


def test_dry_run_lists_steps_and_runs_none(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    code, out, _ = run(monkeypatch, capsys, "grid", "configs/studies/quickstart.yaml", "--dry-run", "--json")
    plan: dict[str, Any] = json.loads(out)
    assert code == 0
    assert plan["cells"] == 38
    assert {row["state"] for row in plan["steps"]} == {"to run"}
    assert not home.exists()


def test_dry_run_of_a_hub_study_works_offline_and_says_what_is_not_resolved(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    code, out, _ = run(monkeypatch, capsys, "grid", "configs/studies/paper.yaml", "--dry-run", "--json")
    plan = json.loads(out)
    assert code == 0
    assert plan["cells"] == 90
    assert set(plan["unresolved"]) == {
        "model meta-llama/Llama-3.2-1B",
        "model meta-llama/Llama-3.2-3B",
        "model meta-llama/Llama-3.1-8B",
        "data of task gsm8k",
        "data of task sql_create_context",
    }


def test_ls_gc_and_verify_on_an_empty_store(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is empty: run plr quantize" in run(monkeypatch, capsys, "ls")[1].replace("\n", " ")
    assert json.loads(run(monkeypatch, capsys, "gc", "--json")[1])["bytes"] == 0
    assert json.loads(run(monkeypatch, capsys, "verify", "--json")[1]) == {
        "checked": 0,
        "broken": [],
        "copies": 0,
        "broken_copies": [],
    }


def test_doctor_says_what_this_machine_can_run(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(monkeypatch, capsys, "doctor", "--json")
    checks = {check["name"]: check for check in json.loads(out)}
    assert code == 0
    assert checks["torch"]["ok"]
    assert {"memory", "disk", "C compiler", "GPU"} <= checks.keys()


def test_overall_progress_adds_up_however_steps_report() -> None:
    """Two steps, one with progress and one without: the bar ends at its total and never goes back."""
    from plr.cli.show import Watcher
    from plr.core.specs import ModelRef, Quantization, Quantize, Source
    from plr.engines.plan import Event

    class Bar:
        def __init__(self) -> None:
            self.totals: list[float] = []
            self.moves: list[float] = []
            self.console = self

        def add_task(self, text: str, total: float | None) -> int:
            self.totals.append(total or 0.0)
            return len(self.totals) - 1

        def advance(self, task: int, by: float) -> None:
            self.moves.append(by)

        def update(self, *args: Any, **kwargs: Any) -> None: ...
        def remove_task(self, *args: Any) -> None: ...
        def print(self, *args: Any) -> None: ...

    source = Source(model=ModelRef(kind="local", name="m", revision="0"))
    steps = {s.fingerprint: s for s in (Quantize(source=source, quantization=Quantization(bits=b)) for b in (4, 2))}
    bar = Bar()
    watcher = Watcher(bar, steps, quiet=True)
    first, second = steps
    for event in (
        Event("started", first),
        Event("progress", first, done=1, total=4),
        Event("progress", first, done=3, total=4),
        Event("made", first),
        Event("started", second),
        Event("made", second),
    ):
        watcher(event)
    assert sum(bar.moves) == pytest.approx(bar.totals[0])
    assert min(bar.moves) > 0


def made(home: Path) -> Any:
    """A small committed base in the store at ``home``."""
    from plr.core.specs import ModelRef, Quantization, Quantize, Source
    from plr.core.store import Store

    def build(folder: Path) -> dict[str, Any]:
        (folder / "weights").write_bytes(b"123")
        return {"gate": {"verdict": "ok", "loss": 1.5}}

    source = Source(model=ModelRef(kind="local", name="m", revision="0"))
    return Store(home).make(Quantize(source=source, quantization=Quantization(bits=4)), build)[0]


def test_show_verify_and_ls_tell_of_an_artifact(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = made(home)
    shown = run(monkeypatch, capsys, "show", artifact.fingerprint[:8])[1]
    assert artifact.fingerprint in shown
    assert "gate         ok" in shown
    assert "loss 1.500 nats a token" in shown, "a manifest of an older plr, without the keys of this one"
    monkeypatch.setenv("COLUMNS", "60")
    listed = run(monkeypatch, capsys, "ls")[1]
    assert artifact.fingerprint[:12] in listed, (
        "the hash names an artifact: it must be there whole on a narrow terminal"
    )
    assert json.loads(run(monkeypatch, capsys, "verify", "--json")[1]) == {
        "checked": 1,
        "broken": [],
        "copies": 0,
        "broken_copies": [],
    }


def test_verify_of_a_corrupted_artifact_exits_with_5(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = made(home)
    (artifact.path / "weights").write_bytes(b"124")
    code, _, err = run(monkeypatch, capsys, "verify")
    assert code == 5
    assert "was altered: its sha256 differs" in err
    assert "delete the folder and run the command that made it again" in err


def test_gc_removes_leftovers_and_no_artifact(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = made(home)
    for folder in (home / "base" / ".partial-0123456789ab", home / ".work" / "0123456789ab"):
        folder.mkdir(parents=True)
        (folder / "half").write_bytes(b"x" * 1000)
    assert json.loads(run(monkeypatch, capsys, "gc", "--dry-run", "--json")[1])["bytes"] == 2000
    assert "removed 2 leftovers, 2.0 kB" in run(monkeypatch, capsys, "gc")[1]
    assert not list(home.glob("*/.partial-*"))
    artifact.check()


def test_grid_with_a_failed_cell_reports_it_writes_the_rest_and_exits_with_3(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from plr.core.specs import Evaluate, Quantize, Step
    from plr.engines import jobs as steps
    from plr.errors import ModelError

    def build(step: Step, folder: Path, *rest: Any) -> dict[str, Any]:
        if isinstance(step, Quantize):
            raise ModelError("model.layers.0.mlp: the Hessian is not positive definite")
        (folder / "file").write_text("x")
        metric = {"value": 0.5, "stderr": 0.1, "n": 4, "unscored": 0}
        return (
            {"primary": "exact_match,first-answer", "metrics": {"exact_match,first-answer": metric}}
            if isinstance(step, Evaluate)
            else {}
        )

    monkeypatch.setattr(steps, "_build", build)
    monkeypatch.chdir(ROOT)
    words = ["grid", "configs/studies/quickstart.yaml", "-o", str(tmp_path / "out"), "--workers", "1"]
    for text in ("tasks=[tiny_math]", "train_bits=[16, 4]", "restore_bits=[16, 4]"):
        words += ["--set", text]
    code, out, err = run(monkeypatch, capsys, *words)
    assert code == 3
    assert "3 of 4 cells failed" in err
    assert "the Hessian is not positive definite" in err
    assert "50.00" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "compare.md",
        "report.html",
        "results.csv",
        "table.md",
    ]
    assert "Hessian is not positive definite" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("columns", ["question", "question=", "=Prompt", "question=a,question=b", ""])
def test_columns_that_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: str
) -> None:
    code, _, err = run(monkeypatch, capsys, "tasks", "check", "gsm8k", "--data", str(tmp_path), "--columns", columns)
    assert code == 2
    assert "question=Prompt,answer=Completion" in err


def test_columns_of_a_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.csv").write_text("Prompt,Completion\n" + "".join(f"{i} + {i}?,#### {2 * i}\n" for i in range(20)))
    words = [
        "tasks",
        "check",
        "gsm8k",
        "--data",
        str(tmp_path / "rows.csv"),
        "--columns",
        "question=Prompt,answer=Completion",
    ]
    code, out, err = run(monkeypatch, capsys, *words)
    assert code == 0, out + err
