"""Results as files in lm-eval's layout: one record a row, their summary, the settings of the run."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from plr.fingerprint import canonical_json
from plr.provenance import provenance
from plr.specs import Evaluate
from plr.tasks import Example, Task

__all__ = ["ANSWER_LOSS", "record", "summary", "write"]

ANSWER_LOSS = "answer_loss"


def record(
    row: Example,
    *,
    arguments: list[Any],
    response: Any,
    answer: Any,
    scores: Mapping[str, float | None],
    loss: float | None,
    **more: Any,
) -> dict[str, Any]:
    """The record of one row; ``scores`` by metric, None where the row has none; ``loss`` None where no engine measured it; the
    first of ``arguments`` is the prompt as the model read it; ``more`` is added as it is."""
    doc = dict(row.row)
    losses = {} if loss is None else {ANSWER_LOSS: loss}
    return {
        "doc_id": int(row.id.rsplit("-", 1)[1]),
        "doc": doc,
        "target": row.target,
        "arguments": {"gen_args_0": {f"arg_{i}": argument for i, argument in enumerate(arguments)}},
        "resps": [[response]],
        "filtered_resps": [answer],
        "filter": "none",
        "metrics": [*scores, *losses],
        "doc_hash": _sha(canonical_json(doc)),
        "prompt_hash": _sha(str(arguments[0])),
        "target_hash": _sha(row.target),
        **losses,
        **more,
        **scores,
    }


def summary(samples: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean, standard error of the mean and n over the scored samples of each metric."""
    found: dict[str, dict[str, Any]] = {}
    for name in samples[0]["metrics"] if samples else []:
        values = [float(s[name]) for s in samples if s[name] is not None]
        n = len(values)
        mean = sum(values) / n if n else None
        stderr = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n) if mean is not None and n > 1 else None
        found[name] = {"value": mean, "stderr": stderr, "n": n, "unscored": len(samples) - n}
    return found


def write(
    step: Evaluate,
    task: Task,
    samples: list[dict[str, Any]],
    metrics: Mapping[str, Mapping[str, Any]],
    folder: Path,
    *,
    total: int,
    settings: Mapping[str, Any],
    protocol: Mapping[str, Any] | None = None,
) -> None:
    """``results_*.json`` and ``samples_*.jsonl`` in ``folder``; ``total`` is the rows of the split, ``settings`` what lm-eval
    keeps of a task's configuration beyond its name, ``protocol`` what was asked and how (:mod:`plr.protocol`)."""
    now = datetime.now(UTC)
    stamp = now.strftime("%Y-%m-%dT%H-%M-%S.%f")
    results: dict[str, Any] = {"alias": task.name}
    for name, metric in metrics.items():
        measure, _, filter_name = name.partition(",")
        results[f"{measure},{filter_name or 'none'}"] = metric["value"]
        results[f"{measure}_stderr,{filter_name or 'none'}"] = "N/A" if metric["stderr"] is None else metric["stderr"]
    made_by = provenance()
    document = {
        "results": {task.name: results},
        "group_subtasks": {task.name: []},
        "configs": {
            task.name: {
                "task": task.name,
                "test_split": step.split,
                **settings,
                "num_fewshot": step.num_fewshot,
                "metadata": {"version": task.version, "primary": task.primary},
            }
        },
        "versions": {task.name: task.version},
        "n-shot": {task.name: step.num_fewshot},
        "higher_is_better": {task.name: {name.partition(",")[0]: name != ANSWER_LOSS for name in metrics}},
        "n-samples": {task.name: {"original": total, "effective": len(samples)}},
        "config": {
            "model": "plr",
            "model_args": step.target.label,
            "limit": step.limit,
            "step": step.model_dump(mode="json"),
        },
        "git_hash": (made_by["git"] or {}).get("commit"),
        "date": now.timestamp(),
        "task_hashes": {task.name: _sha("".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples))},
        "model_name": step.base.model.name,
        "versions_of_packages": made_by["versions"],
        **({"protocol": protocol} if protocol is not None else {}),
    }
    (folder / f"results_{stamp}.json").write_text(json.dumps(document, indent=1, ensure_ascii=False))
    with (folder / f"samples_{task.name}_{stamp}.jsonl").open("w", encoding="utf-8") as stream:
        for sample in samples:
            stream.write(json.dumps(sample, ensure_ascii=False) + "\n")


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
