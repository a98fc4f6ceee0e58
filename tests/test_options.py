"""An option is a value: whatever a file or a name is called, it is what the option names, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_type_hints

import pytest
from command_line import run

from plr.core.runtime import Runtime, RuntimeOptions
from plr.core.specs import Quantize, Step, Train
from plr.embedded import tiny_path
from plr.errors import PlrError, UsageError
from plr.lab import Lab
from plr.study.command import QuantizeKnobs
from plr.study.file import QuantizeConfig

NAMES = [
    "cal #2.jsonl", "a: b.jsonl", "2024-01-01", "null", "true", "1e3", "-cal.jsonl", "cal ", " cal", "{cal}.jsonl", "[cal]",
    "'cal'", '"cal".jsonl', "$HOME", "cost$.jsonl", "~cal", "a=b.jsonl", "*cal", "&cal", "!cal", "%cal", "cal,x", "x\ty",
]  # fmt: skip
DECOYS = ("cal", "a", "2024", "b.jsonl", "HOME")


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A lab in a folder that also holds what a reader of text would take the odd names for."""
    monkeypatch.chdir(tmp_path)
    for name in DECOYS:
        (tmp_path / name).write_text("a decoy\n")
    return Lab(tmp_path / "home", offline=True)


def text_file(name: str) -> Path:
    file = Path.cwd() / name
    file.write_text('{"text": "the quick brown fox"}\n')
    return file


def rows(name: str) -> Path:
    """A folder of rows of a task of arithmetic."""
    folder = Path.cwd() / name
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text(
            f'{{"question": "How many in {split}?", "answer": "It is 4.\\n#### 4"}}\n'
        )
    return folder


def base_of(lab: Lab, **options: object) -> Quantize:
    step = lab.base(bits=4, **options)  # type: ignore[arg-type]
    assert isinstance(step, Quantize)
    return step


@pytest.mark.parametrize("name", NAMES)
def test_calibration_is_the_file_that_is_named(lab: Lab, name: str) -> None:
    file = text_file(name)
    for option in (name, file):
        calibration = base_of(lab, calibration=option).quantization.calibration
        assert calibration is not None
        assert calibration.path == str(file)


@pytest.mark.parametrize("name", NAMES)
def test_gate_text_is_the_file_that_is_named(lab: Lab, name: str) -> None:
    file = text_file(name)
    assert base_of(lab, gate_text=name).quantization.gate_text == str(file)


@pytest.mark.parametrize("name", NAMES)
def test_data_is_the_folder_that_is_named(lab: Lab, name: str) -> None:
    folder = rows(name)
    trained = lab.adapter(bits=16, task="gsm8k", data=name)
    assert trained.task.path == str(folder)
    assert lab.result(lab.base(bits=16), "gsm8k", data=name).task == trained.task


@pytest.mark.parametrize("name", NAMES)
def test_model_is_the_folder_that_is_named(lab: Lab, name: str) -> None:
    (Path.cwd() / name).symlink_to(tiny_path())
    assert lab.base(name, 16, task="tiny_math").model.path == str(Path.cwd() / name)
    trained = lab.adapter(bits=16)
    assert lab.restored(trained, 16, model=name, allow_mismatch=True).base.model.path == str(Path.cwd() / name)


@pytest.mark.parametrize("name", NAMES)
def test_task_is_the_file_that_is_named(lab: Lab, name: str) -> None:
    data = rows("some rows")
    file = Path.cwd() / f"{name}.yaml"
    file.write_text('name: own\nprompt: "{question}"\ntarget: "{answer}"\n')
    assert lab.adapter(bits=16, task=file.name, data=data).task.name == "own"
    assert lab.result(lab.base(bits=16), file.name, data=data).task.name == "own"


@pytest.mark.parametrize("name", NAMES)
def test_options_of_the_command_line_come_through_whole(
    name: str, lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planned: list[Step] = []
    monkeypatch.setattr("plr.cli.make.finish_all", lambda steps, *args, **kwargs: planned.extend(steps))
    monkeypatch.setattr("plr.cli.make.finish", lambda step, *args, **kwargs: planned.append(step))
    file, folder = text_file(name), rows(f"rows {name}")
    (Path.cwd() / f"model {name}").symlink_to(tiny_path())
    Path(f"task {name}.yaml").write_text('name: own\nprompt: "{question}"\ntarget: "{answer}"\n')
    for words in (
        ("quantize", "--calibration", name, "--gate-text", name),
        ("train", "--bits", "16", "--task", f"task {name}.yaml", "--data", folder.name, "--model", f"model {name}"),
    ):
        code, _, err = run(monkeypatch, capsys, *words)
        assert code == 0, err
    base, trained = planned
    assert isinstance(base, Quantize)
    assert isinstance(trained, Train)
    assert base.quantization.calibration is not None
    assert (base.quantization.calibration.path, base.quantization.gate_text) == (str(file), str(file))
    assert (trained.task.name, trained.task.path) == ("own", str(folder))
    assert trained.base.model.path == str(Path.cwd() / f"model {name}")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("option", "call"),
    [
        ("method", lambda lab, name: lab.base(bits=4, method=name)),
        ("method", lambda lab, name: lab.restored(lab.adapter(bits=16), 4, method=name)),
        ("adapter", lambda lab, name: lab.adapter(bits=16, adapter=name)),
        ("preset", lambda lab, name: lab.base(bits=4, preset=name)),
        ("task", lambda lab, name: lab.base(bits=4, task=name)),
        ("task", lambda lab, name: lab.base(bits=4, calibration=f"task:{name}")),
        ("data", lambda lab, name: lab.base(bits=4, task="gsm8k", data=name)),
        ("calibration", lambda lab, name: lab.base(bits=4, calibration=name)),
        ("gate_text", lambda lab, name: lab.base(bits=4, gate_text=name)),
        ("model", lambda lab, name: lab.base(name, 16, task="tiny_math")),
    ],
)
def test_what_is_not_there_is_refused_by_its_own_name(
    lab: Lab, option: str, call: Callable[[Lab, str], object], name: str
) -> None:
    with pytest.raises(PlrError) as refused:
        call(lab, name)
    assert name in str(refused.value) or repr(name) in str(refused.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda lab: lab.base(bits=4, task="gsm8k", data=""),
        lambda lab: lab.base(bits=4, calibration=""),
        lambda lab: lab.base(bits=4, gate_text=""),
        lambda lab: lab.base(bits=4, method=""),
        lambda lab: lab.base(bits=4, preset=""),
        lambda lab: lab.base(bits=4, task=""),
        lambda lab: lab.base("", 16, task="tiny_math"),
        lambda lab: lab.adapter(bits=16, adapter=""),
        lambda lab: lab.result(lab.base(bits=16), "gsm8k", data=""),
        lambda lab: lab.restored(lab.adapter(bits=16), 16, model=""),
    ],
)
def test_an_empty_text_is_no_option_left_out(lab: Lab, call: Callable[[Lab], object]) -> None:
    """It is what `--data "$UNSET"` leaves."""
    with pytest.raises(UsageError):
        call(lab)


def test_a_path_is_a_file_whatever_it_is_called(lab: Lab) -> None:
    for name in ("task", "task:tiny_math"):
        file = text_file(name)
        calibration = base_of(lab, calibration=Path(name)).quantization.calibration
        assert calibration is not None
        assert calibration.path == str(file)


def test_only_set_and_the_study_file_are_text(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are YAML, with variables of the environment in names of files."""
    file = text_file("cal.jsonl")
    monkeypatch.setenv("PLACE", str(file.parent))
    study = Path.cwd() / "study.yaml"
    study.write_text(
        "tasks: [{name: gsm8k, data: $PLACE/rows}]\nquantize: {calibration: $PLACE/cal.jsonl, samples: 3}\n"
    )
    folder = rows("rows")
    for options in (
        {
            "task": "gsm8k",
            "data": folder,
            "overrides": ["quantize.calibration=$PLACE/cal.jsonl #2", "quantize.samples=3"],
        },
        {"config": study},
        {"config": study, "overrides": ["tasks.0.data=$PLACE/rows"]},
    ):
        step = base_of(lab, **options).quantization
        assert step.calibration is not None
        assert step.gate_task is not None
        assert (step.calibration.path, step.calibration.samples) == (str(file), 3)
        assert step.gate_task.path == str(folder)
    with pytest.raises(UsageError, match="holds a variable that is not set"):
        lab.base(bits=4, overrides=["quantize.calibration=$NOWHERE/cal.jsonl"])


def test_set_lies_over_options_and_options_over_the_file(lab: Lab) -> None:
    study = Path.cwd() / "study.yaml"
    study.write_text("preset: paper\nquantize: {samples: 3, group_size: 32, seed: 5}\n")
    step = base_of(lab, config=study, samples=4, group_size=64, overrides=["quantize.group_size=16"]).quantization
    assert step.calibration is not None
    assert (step.calibration.samples, step.group_size, step.calibration.seed) == (4, 16, 5)
    assert base_of(lab, config=study, preset="best").quantization.refine_passes == 2


def test_data_is_that_of_the_file_s_task_where_no_task_is_named(lab: Lab) -> None:
    study = Path.cwd() / "study.yaml"
    study.write_text("tasks: [gsm8k]\n")
    folder = rows("rows")
    assert lab.adapter(bits=16, config=study, data=folder).task.path == str(folder)


def test_options_are_fields_of_what_they_set() -> None:
    assert get_type_hints(RuntimeOptions).keys() == Runtime.model_fields.keys() - {"home", "offline"}
    assert get_type_hints(QuantizeKnobs).keys() <= QuantizeConfig.model_fields.keys()
