"""GSM8K scoring against lm-eval: its committed answers always, its own classes where it is installed."""

from __future__ import annotations

import importlib.util
import json
import random
import time
from decimal import Decimal
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_data import both

from plr.scoring import numbers as n
from plr.tasks import Example, Response, TaskData, tasks

GOLDEN = Path(__file__).parents[1] / "golden" / "gsm8k_lm_eval.py"
FILTERS = ("strict-match", "flexible-extract")


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gsm8k_lm_eval", GOLDEN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _ours(response: str, gold: str) -> dict[str, list[object]]:
    example = Example("test-0", {"question": "q", "answer": gold}, "p", gold)
    scores = tasks.get("gsm8k").score(example, Response(response, True))
    return {name: [scores[f"exact_match,{name}"].answer, scores[f"exact_match,{name}"].value] for name in FILTERS}


def test_committed_answers_of_lm_eval() -> None:
    golden = json.loads(GOLDEN.with_suffix(".json").read_text(encoding="utf-8"))
    assert len(golden) >= 400
    assert [row for row in golden if _ours(row[0], row[1]) != row[2]] == []
    for name in FILTERS:  # the golden set would say little if one answer were always right
        assert 0.1 < sum(row[2][name][1] for row in golden) / len(golden) < 0.9


def test_committed_answers_are_those_of_the_generator() -> None:
    module = _generator()
    golden = json.loads(GOLDEN.with_suffix(".json").read_text(encoding="utf-8"))
    assert [(row[0], row[1]) for row in golden] == module.responses(module.COUNT, module.SEED)


def test_lm_eval_itself_on_4000_responses() -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed; the committed answers are still compared")
    module = _generator()
    cases = module.responses(4000, seed=7)
    assert [case for case in cases if _ours(*case) != module.lm_eval_scores(*case)] == []


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="#0123456789.,$- \nQuestion:/sx", max_size=60), st.integers(-(10**6), 10**6))
def test_lm_eval_itself_on_arbitrary_text(response: str, number: int) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed; the committed answers are still compared")
    gold = f"so {number}\n#### {number:,}"
    assert _ours(response, gold) == _LIVE.lm_eval_scores(response, gold)


_LIVE = _generator()


@pytest.mark.slow
def test_lm_eval_end_to_end(tmp_path: Path) -> None:
    """The same responses through ``lm_eval.simple_evaluate`` with a model that recites them."""
    lm_eval = pytest.importorskip("lm_eval")
    yaml = pytest.importorskip("yaml")
    from lm_eval.api.model import LM
    from lm_eval.models.utils import postprocess_generated_text

    cases = _LIVE.responses(200, seed=3)
    file = tmp_path / "test.jsonl"
    file.write_text(
        "".join(json.dumps({"question": str(i), "answer": gold}) + "\n" for i, (_, gold) in enumerate(cases))
    )

    class Recite(LM):
        def generate_until(self, requests):  # type: ignore[no-untyped-def]
            return [
                postprocess_generated_text(cases[int(r.doc["question"])][0], r.args[1]["until"], None) for r in requests
            ]

        def loglikelihood(self, requests):  # type: ignore[no-untyped-def]
            raise NotImplementedError

        def loglikelihood_rolling(self, requests):  # type: ignore[no-untyped-def]
            raise NotImplementedError

    config = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks/gsm8k/gsm8k.yaml").read_text(encoding="utf-8"))
    for key in ("training_split", "fewshot_split", "tag", "dataset_name"):
        config.pop(key)
    config |= {"task": "gsm8k_recited", "dataset_path": "json", "num_fewshot": 0}
    config["dataset_kwargs"] = {"data_files": {"test": str(file)}, "cache_dir": str(tmp_path / "cache")}
    result = lm_eval.simple_evaluate(model=Recite(), tasks=[config], log_samples=True, bootstrap_iters=0)
    samples = result["samples"]["gsm8k_recited"]
    assert len(samples) == 2 * len(cases)
    for sample in samples:
        ours = _ours(*cases[int(sample["doc"]["question"])])
        assert ours[sample["filter"]][1] == sample["exact_match"]


def test_known_traps_of_strict_and_flexible() -> None:
    assert n.strict_extract("#### $15") == n.INVALID
    assert n.exact_match("15.00", "#### 15").value == 0.0
    assert n.normalize_answer(n.flexible_extract("is 5...")) == "5.."


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### $15", "15"),
        ("15.00", "15"),
        ("is 5...", "5"),
        ("10-5", "5"),
        ("= -5", "-5"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("1,234,567.50 in all", "1234567.5"),
        ("12, 34", "34"),
        ("about .5", "0.5"),
        ("50%", "50"),
        ("on 3/4", "0.75"),
        ("so 3 / 4 of it", "0.75"),
        (r"\frac{3}{4}", "0.75"),
        (r"is \dfrac{ 9 }{ 2 }.", "4.5"),
        (r"\boxed{12}", "12"),
        (r"1{,}200 apples", "1200"),
        (r"1\,200", "1200"),
        (r"50\%", "50"),
        (r"\$7.50", "7.5"),
        ("\u22125 degrees", "-5"),
        ("3/0", "3"),
        ("10/12/2024", "2024"),
        ("12/day", "12"),
        ("10/5 = 2", "2"),
    ],
)
def test_last_number_reads_the_value(text: str, number: str) -> None:
    assert n.last_number(text) == Decimal(number)


@given(
    st.decimals(allow_nan=False, allow_infinity=False, places=3), st.sampled_from(["{}", "${}", "so {}.", "{} apples"])
)
def test_numeric_match_finds_any_number_again(value: Decimal, form: str) -> None:
    assert n.numeric_match(form.format(f"{value:f}"), f"#### {value:,f}").value == 1.0


def test_numeric_match_without_numbers() -> None:
    assert n.numeric_match("none", "#### 5").value == 0.0
    unscored = n.numeric_match("5", "no number")
    assert unscored.value is None
    assert "gold" in unscored.explanation


@pytest.mark.parametrize("text", ["9" * 10**6, "111," * 250_000, "$" * 10**6, "#### " * 200_000, "1." * 500_000])
def test_a_megabyte_of_junk_is_scored_quickly(text: str) -> None:
    start = time.process_time()
    assert _ours(text, "#### 5")["strict-match"][1] == 0.0
    assert n.numeric_match(text, "#### 5").value == 0.0
    assert time.process_time() - start < 5  # seconds of CPU


@pytest.mark.parametrize(("file", "rows"), both("gsm8k/test.jsonl", samples=(60,), sets=(1319,)))
def test_gold_scores_all_and_shuffled_gold_nearly_nothing(file: Path, rows: int) -> None:
    task = tasks.get("gsm8k")
    examples = list(task.load("test", TaskData(path=str(file))).examples)
    assert len(examples) == rows
    right = [task.score(example, Response(example.target, True)) for example in examples]
    assert {metric: sum(s[metric].value or 0 for s in right) for metric in task.metrics} == dict.fromkeys(
        task.metrics, rows
    )
    random.Random(0).shuffle(examples)  # then each gets the answer of its neighbour
    pairs = zip(examples, [*examples[1:], examples[0]], strict=True)
    wrong = [task.score(example, Response(other.target, True)) for example, other in pairs]
    for metric in set(task.metrics) - {"ended"}:
        assert sum(s[metric].value or 0 for s in wrong) / rows < 0.03
