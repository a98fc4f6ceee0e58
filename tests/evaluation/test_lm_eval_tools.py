"""What plr writes, read by lm-eval's own tools (0.4.13): its table, its file names, its tracker, its loggers, its schema."""

from __future__ import annotations

import copy
import json
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from plr.core.specs import Source
from plr.core.store import Artifact
from plr.lab import Lab

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

TASK = "tiny_math"
OTHERS = {
    "groups": "plr has no groups of tasks",
    "samples": "in a file of their own",
    "pretty_env_info": "versions_of_packages says what counts",
    "lm_eval_version": "lm-eval did not run",
    "upper_git_hash": "of a submodule",
}
"""Keys of lm-eval's schema that a result of plr may lack, and why."""
CONFIG_OTHERS = {"use_cache", "bootstrap_iters", "gen_kwargs", "numpy_seed", "batch_sizes"}
"""Options of lm-eval's runner that plr has no counterpart of."""


class Result(NamedTuple):
    artifact: Artifact
    document: dict[str, Any]
    samples: list[dict[str, Any]]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A small real result: the embedded base on four rows."""
    lab = Lab(tmp_path_factory.mktemp("home"), offline=True, dtype="float32")
    base = Source(model=lab.resolver.model("embedded:tiny"))
    made = lab.evaluate(base, task=TASK, limit=4, max_new_tokens=8)
    document = json.loads(next(made.path.glob("results_*.json")).read_text(encoding="utf-8"))
    lines = next(made.path.glob("samples_*.jsonl")).read_text(encoding="utf-8").splitlines()
    return Result(made, document, [json.loads(line) for line in lines])


def test_make_table_shows_every_metric(result: Result) -> None:
    from lm_eval.utils import make_table

    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in make_table(result.document).splitlines()]
    header = rows[0]
    shown = {(row[header.index("Metric")], row[header.index("Filter")]): row for row in rows[2:]}
    assert rows[2][header.index("Tasks")] == TASK
    for name, metric in result.artifact.metrics["metrics"].items():
        measure, _, filter_name = name.partition(",")
        row = shown.pop((measure, filter_name or "none"))
        assert row[header.index("Value")] == f"{metric['value']:.4f}"
        assert row[header.index("Stderr")] == f"{metric['stderr']:.4f}"
        assert row[header.index("n-shot")] == "0"
        assert row[header.index("Metric") + 1] == ("↓" if measure == "answer_loss" else "↑")
    assert not shown


def test_files_are_found_by_their_names(result: Result) -> None:
    from lm_eval.utils import (
        get_file_datetime,
        get_file_task_name,
        get_latest_filename,
        get_results_filenames,
        get_sample_results_filenames,
    )

    names = [path.as_posix() for path in result.artifact.path.iterdir()]
    (results,), (samples,) = get_results_filenames(names), get_sample_results_filenames(names)
    assert get_file_task_name(Path(samples).name) == TASK
    stamp = get_file_datetime(Path(samples).name)
    assert results.endswith(f"/results_{stamp}.json")
    day, _, clock = stamp.partition("T")
    assert (
        abs(datetime.fromisoformat(f"{day}T{clock.replace('-', ':')}+00:00").timestamp() - result.document["date"]) < 1
    )
    older = samples.replace(stamp, "2020-01-01T00-00-00.000000")
    assert get_latest_filename([older, samples]) == samples


def test_the_tracker_writes_what_it_was_given(result: Result, tmp_path: Path) -> None:
    """lm-eval's own writer, fed with our result: the same task hashes, the same records, its layout of folders."""
    from lm_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker(output_path=str(tmp_path))
    tracker.general_config_tracker.log_experiment_args("plr", {"pretrained": "org/name"}, None, None, False)
    document, samples = copy.deepcopy(result.document), _in_memory(result.samples)
    tracker.save_results_aggregated(document, samples={TASK: samples})
    tracker.save_results_samples(TASK, samples)  # type: ignore[arg-type]
    folder = tmp_path / "org__name"
    written = json.loads(next(folder.glob("results_*.json")).read_text(encoding="utf-8"))
    assert written["task_hashes"] == result.document["task_hashes"]
    assert written["results"] == result.document["results"]
    lines = next(folder.glob(f"samples_{TASK}_*.jsonl")).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == result.samples


def test_datasets_loads_both_files(result: Result, tmp_path: Path) -> None:
    """As the tracker does for its card on the hub."""
    from datasets import load_dataset

    for pattern, rows in (("results_*.json", 1), ("samples_*.jsonl", 4)):
        file = next(result.artifact.path.glob(pattern))
        loaded = load_dataset("json", data_files=str(file), split="train", cache_dir=str(tmp_path))
        assert len(loaded) == rows
        first = loaded[0]
        expected = result.samples[0] if rows == 4 else result.document
        assert set(expected) <= set(first)
    assert first["resps"] == result.samples[0]["resps"]


def test_the_wandb_logger_reads_results_and_samples(result: Result) -> None:
    """The parts of it that need no account."""
    from lm_eval.loggers.wandb_logger import WandbLogger

    logger = WandbLogger.__new__(WandbLogger)
    logger.post_init(result.document)
    configs = logger._get_config()
    assert configs["cli_configs"]["model"] == "plr"
    _, numbers = logger._sanitize_results_dict()
    assert numbers[f"{TASK}/ended"] == result.artifact.metrics["metrics"]["ended"]["value"]
    assert numbers[f"{TASK}/exact_match,strict-match"] == pytest.approx(
        sum(sample["exact_match,strict-match"] for sample in result.samples) / 4
    )
    table = logger._generate_dataset(_in_memory(result.samples), configs["task_configs"][TASK])
    assert list(table["raw_predictions"]) == [sample["resps"][0][0] for sample in result.samples]
    assert list(table["data"]) == [sample["arguments"]["gen_args_0"]["arg_0"] for sample in result.samples]
    assert set(result.samples[0]["metrics"]) <= set(table.columns)


def test_the_trackio_logger_reads_samples(result: Result) -> None:
    from types import SimpleNamespace

    from lm_eval.loggers.trackio_logger import TrackioLogger, _sample_to_trace

    logger = TrackioLogger.__new__(TrackioLogger)
    logger.post_init(result.document)
    assert logger._flatten_results_for_log()[f"{TASK}/answer_loss"] > 0
    for sample, said in zip(result.samples, _in_memory(result.samples), strict=True):
        trace: Any = _sample_to_trace(SimpleNamespace(Trace=SimpleNamespace), said, TASK, "generate_until")
        prompt, answer = trace.messages
        assert prompt["content"] == sample["arguments"]["gen_args_0"]["arg_0"]
        assert answer["content"] == sample["resps"][0][0]
        assert trace.metadata["answer_loss"] == sample["answer_loss"]


def test_every_key_of_the_schema_is_there(result: Result) -> None:
    from lm_eval import result_schema as schema

    document, sample = result.document, result.samples[0]
    assert set(schema.EvalResults.__annotations__) - document.keys() - OTHERS.keys() == set()
    assert set(schema._EvalConfig.__annotations__) - document["config"].keys() - CONFIG_OTHERS == set()
    assert set(schema._TaskMetrics.__annotations__) - document["results"][TASK].keys() - {"sample_count"} == set()
    assert set(schema.SampleResult.__annotations__) - sample.keys() == set()
    assert set(schema._SampleCount.__annotations__) == document["n-samples"][TASK].keys()


def test_hashes_are_lm_evals(result: Result) -> None:
    """As ``lm_eval.evaluator`` makes them, so that two tables can be compared row by row."""
    from lm_eval.utils import handle_non_serializable, hash_string

    for sample in result.samples:
        doc = json.dumps(sample["doc"], indent=2, default=handle_non_serializable, ensure_ascii=False)
        assert sample["doc_hash"] == hash_string(doc)
        assert sample["prompt_hash"] == hash_string(sample["arguments"]["gen_args_0"]["arg_0"])
        assert sample["target_hash"] == hash_string(sample["target"])


def _in_memory(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records as lm-eval holds them before it writes them: arguments in tuples."""
    return [
        {**sample, "arguments": [tuple(arguments.values()) for arguments in sample["arguments"].values()]}
        for sample in samples
    ]
