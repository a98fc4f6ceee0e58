"""Identity: what changes a fingerprint, what must not, and golden hashes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from plr.core.specs import (
    AdapterSpec,
    Calibration,
    Evaluate,
    ModelRef,
    Quantization,
    Quantize,
    Restore,
    Source,
    Spec,
    Step,
    TaskSpec,
    Train,
    TrainSpec,
    step_from_json,
)
from plr.tasks import tasks

GOLDEN = Path(__file__).parents[1] / "golden" / "fingerprints.json"
METRICS = GOLDEN.with_name("metrics.json")


def full() -> dict[str, Step]:
    """One step of each kind, every field away from its default."""
    model = ModelRef(kind="hub", name="org/model", revision="a" * 40, path="somewhere")
    task = TaskSpec(
        name="t", version=3, path="p", data_sha256="b" * 64, revision="c", split_seed=5, max_prompt_chars=99
    )
    calibration = Calibration(task=task, guard=task, samples=7, seed=3, max_length=33)
    quantization = Quantization(
        method="rtn",
        bits=3,
        group_size=64,
        sym=False,
        desc_act=True,
        static_groups=True,
        act_group_aware=True,
        damp_percent=0.02,
        block_size=32,
        grid="mse",
        refine_passes=2,
        input_correction=0.5,
        double_quant=True,
        calibration=calibration,
        gate_task=task,
        gate_text="texts.txt",
    )
    train_spec = TrainSpec(
        learning_rate=1e-3,
        batch_size=8,
        epochs=2,
        scheduler="cosine",
        warmup_fraction=0.1,
        weight_decay=0.01,
        adam_beta1=0.8,
        adam_beta2=0.95,
        adam_epsilon=1e-6,
        max_grad_norm=0.5,
        max_length=128,
        train_limit=100,
        validation_limit=10,
        evaluations_per_epoch=2,
        select="last",
        seed=4,
    )
    source = Source(model=model)
    base = Quantize(source=source, quantization=quantization)
    train = Train(base=base, task=task, adapter=AdapterSpec(method="x", config={"r": 4}), train=train_spec)
    restore = Restore(adapter=train, base=source, mode="roundtrip", merge=True, allow_mismatch=True)
    result = Evaluate(
        target=restore, task=task, split="validation", limit=9, limit_seed=2, max_new_tokens=5, generate=False
    )
    served = Evaluate(target=source, task=task, num_fewshot=3, fewshot_seed=1, engine="vllm")
    return {"source": source, "base": base, "adapter": train, "restored": restore, "result": result, "served": served}


def dated() -> dict[str, Step]:
    """The same steps with the dtype that every plan names since it counts."""
    steps = full()
    adapter, restored, result = steps["adapter"], steps["restored"], steps["result"]
    adapter = adapter.replaced(dtype="bfloat16")
    restored = restored.replaced(adapter=adapter)
    result = result.replaced(target=restored, dtype="float32")
    served = steps["served"].replaced(dtype="float16")
    return {f"{step.kind} in {step.dtype}": step for step in (adapter, result)} | {
        "restored from bfloat16": restored,
        "served in float16": served,
    }


def test_golden_fingerprints() -> None:
    """These hashes name artifacts on users' disks. A change here needs a new VERSION of the step and a changelog entry.

    Written by ``python tests/core/test_specs.py``.
    """
    assert {kind: step.fingerprint for kind, step in (full() | dated()).items()} == json.loads(GOLDEN.read_text())


def test_a_metric_that_comes_or_goes_is_a_new_version() -> None:
    """A result that lacks a metric of its task must not be found: raise ``Evaluate.VERSION`` (bases and adapters are kept), or the
    task's version where prompts or splits change too. Then run ``python tests/core/test_specs.py``."""
    assert metrics() == json.loads(METRICS.read_text())


def metrics() -> dict[str, Any]:
    own = {name: tasks.get(name) for name in tasks.names()}
    return {
        "evaluate": Evaluate.VERSION,
        "tasks": {
            name: {"version": task.version, "metrics": list(task.metrics)}
            for name, task in sorted(own.items())
            if type(task).__module__.startswith("plr.")
        },
    }


def test_a_step_of_before_is_the_same_step_without_a_dtype() -> None:
    """`full` bears no dtype: its golden hashes are older than the field."""
    former = {step.former().fingerprint for step in dated().values()}
    assert former == {full()[kind].fingerprint for kind in ("adapter", "restored", "result", "served")}
    assert former.isdisjoint(step.fingerprint for step in dated().values())
    assert all(step.former() == step for step in full().values())


def test_later_fields_bear_no_identity_at_their_default() -> None:
    """What was made before these fields came is still found."""
    assert "definition" not in TaskSpec(name="t", version=1).identity()
    assert "definition" in TaskSpec(name="t", version=1, definition="{}").identity()
    assert "columns" not in TaskSpec(name="t", version=1).identity()
    assert "columns" in TaskSpec(name="t", version=1, columns=(("a", "b"),)).identity()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_fewshot": 2, "split": "train"}, "come from the train split"),
        ({"fewshot_seed": 2}, "num_fewshot is 0"),
        ({"engine": "vllm", "generate": False}, "generate is false"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Evaluate(target=full()["source"], task=TaskSpec(name="t", version=1), **settings)


@pytest.mark.parametrize("kind", [*full(), *dated()])
def test_json_round_trip_keeps_identity(kind: str) -> None:
    step = (full() | dated())[kind]
    again = step_from_json(json.loads(json.dumps(step.model_dump(mode="json"))))
    assert again == step
    assert again.label == step.label


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in leaves(item, (*path, key))]
    return [path]


def changed(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value / 2 if 0 < value < 1 else value + 1
    if isinstance(value, list):  # pairs
        return [*value, ["question", "Prompt"]]
    return {
        "rtn": "gptq",
        "mse": "minmax",
        "cosine": "linear",
        "last": "best_validation_loss",
        "validation": "test",
        "test": "validation",
        "vllm": "hf",
        "float32": "bfloat16",
        "bfloat16": "float16",
        "float16": "float32",
    }.get(value, f"{value}x")


@pytest.mark.parametrize("kind", ["result", "served", "result in float32", "served in float16"])
def test_every_field_counts_but_locations(kind: str) -> None:
    """Change each leaf of the full result in turn: the fingerprint must change, except for paths and display names."""
    dump = (full() | dated())[kind].model_dump(mode="json")
    before = step_from_json(dump).fingerprint
    for path in leaves(dump):
        if path[-1] in ("kind", "mode") or (kind.partition(" ")[0], path[-1]) in (
            ("result", "engine"),
            ("served", "generate"),
        ):
            continue  # the loss alone has one engine
        copy = json.loads(json.dumps(dump))
        node = copy
        for key in path[:-1]:
            node = node[key]
        if node[path[-1]] is None:
            continue
        node[path[-1]] = 8 if path[-1] == "bits" else changed(node[path[-1]])
        after = step_from_json(copy).fingerprint
        assert (after == before) == (path[-1] in ("path", "gate_text") or "guard" in path or "gate_task" in path), path


def test_display_name_of_a_local_model_is_no_identity() -> None:
    here = Source(model=ModelRef(kind="local", name="a", revision="1", path="/x"))
    there = Source(model=ModelRef(kind="local", name="b", revision="1", path="/y"))
    assert here == there
    assert hash(here) == hash(there)


def test_a_version_bump_changes_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    before = full()["base"].fingerprint
    monkeypatch.setattr(Quantize, "VERSION", 99)
    assert full()["base"].fingerprint != before


def test_inputs_are_the_stored_steps_alone() -> None:
    steps = full()
    adapter = steps["adapter"]
    source = steps["source"]
    assert isinstance(adapter, Train)
    assert isinstance(source, Source)
    restored = Restore(adapter=adapter, base=source)
    task = adapter.task
    assert [i.kind for i in adapter.inputs] == ["base"]
    assert [i.kind for i in restored.inputs] == ["adapter"]
    assert [i.kind for i in Evaluate(target=restored, task=task).inputs] == ["adapter"]
    assert [i.kind for i in steps["result"].inputs] == ["restored"]
    assert Evaluate(target=source, task=task).inputs == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Quantization(bits=5), "Input should be 8, 4, 3 or 2"),  # type: ignore[arg-type]
        (lambda: Quantization(bits=4, group_size=0), "group_size is 0"),
        (lambda: Quantization(bits=4, damp_percent=1.5), "less than 1"),
        (lambda: Calibration(), "a task or a file"),
        (lambda: TrainSpec(epochs=0), "greater than 0"),
        (lambda: TrainSpec(epoch=3), "Extra inputs"),  # type: ignore[call-arg]
    ],
)
def test_bad_values_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make()


def test_specs_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Quantization(bits=4).bits = 3  # type: ignore[misc]


def test_every_spec_forbids_extra_fields() -> None:
    queue, seen = [Spec], []
    while queue:
        cls = queue.pop()
        queue += cls.__subclasses__()
        seen.append(cls)
    assert len(seen) > 10
    assert all(cls.model_config["extra"] == "forbid" and cls.model_config["frozen"] for cls in seen)


if __name__ == "__main__":
    before, now = json.loads(METRICS.read_text()), metrics()
    for name in before["tasks"].keys() & now["tasks"].keys():
        was, to_be = before["tasks"][name], now["tasks"][name]
        raised = (before["evaluate"], was["version"]) != (now["evaluate"], to_be["version"])
        assert raised or was["metrics"] == to_be["metrics"], f"{name} has other metrics under an old version"
    METRICS.write_text(json.dumps(now, indent=1) + "\n")
    GOLDEN.write_text(
        json.dumps({kind: step.fingerprint for kind, step in (full() | dated()).items()}, indent=1) + "\n"
    )
