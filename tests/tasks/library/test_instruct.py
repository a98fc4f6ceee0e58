"""Instruction data: Alpaca, chats, and the transforms of the lecture as laws on what they write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from plr.cli.root import app
from plr.embedded import tiny_path
from plr.errors import DataError, LeakageError, UsageError
from plr.tasks import Example, Response, find_task, tasks
from plr.tasks.check import check_task
from plr.tasks.transforms import SYMBOLS, as_chat, in_context, one_turn, with_symbols, with_templates, worded
from plr.tasks.types import TaskData

CHAT = {
    "messages": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
    ]
}


def examples(n: int, split: str = "train") -> list[Example]:
    return [
        Example(f"{split}-{i}", {"q": f"{split} {i}", "a": "xyz"[i % 3]}, f"Q: {split} {i}\nA:", f" {'xyz'[i % 3]}")
        for i in range(n)
    ]


class Tokenizer:
    """A chat template in two lines."""

    name_or_path, chat_template, eos_token = "fake", "yes", "</s>"

    def apply_chat_template(
        self, messages: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool = False
    ) -> str:
        text = "".join(f"<{one['role']}>{one['content']}</s>\n" for one in messages)
        return text + ("<assistant>" if add_generation_prompt else "")


def test_alpaca_rows_with_and_without_input() -> None:
    task = tasks.get("alpaca")
    bare = task.prompt({"instruction": "Add.", "output": "3"})
    full = task.prompt({"instruction": "Add.", "input": "1, 2", "output": "3"})
    assert "### Input" not in bare
    assert "### Input:\n1, 2\n\n### Response:\n" in full
    assert full == tasks.get("math10k").prompt({"instruction": "Add.", "input": "1, 2"})


def test_a_chat_in_plain_text() -> None:
    task = tasks.get("chat")
    assert task.problem(CHAT) is None
    assert task.prompt(CHAT) + task.target(CHAT) == "user: Hi\nassistant: Hello.\nuser: 1 + 1?\nassistant: 2"
    row = Example("test-0", CHAT, task.prompt(CHAT), task.target(CHAT))
    assert task.score(row, Response(" 2\nuser: more", False))["rougeL"].value == 1.0


@pytest.mark.parametrize(
    ("messages", "problem"),
    [(None, "no list"), ([CHAT["messages"][0]], "no list"), (CHAT["messages"][:3], "not the assistant's"),
     ([{"role": "bot", "content": "x"}, CHAT["messages"][1]], "message 0"),
     ([{"role": "user", "content": " "}, CHAT["messages"][1]], "message 0")],
)  # fmt: skip
def test_chats_that_are_none(messages: Any, problem: str) -> None:
    assert problem in str(tasks.get("chat").problem({"messages": messages}))


def test_every_turn_of_a_chat_becomes_a_row_of_the_template() -> None:
    rows = list(as_chat([Example("train-0", CHAT, "", "")], Tokenizer()))
    assert [row["target"] for row in rows] == ["Hello.", "2"]
    assert rows[1]["prompt"] == "<user>Hi</s>\n<assistant>Hello.</s>\n<user>1 + 1?</s>\n<assistant>"


def test_a_row_that_is_no_chat_is_one_turn_of_its_prompt_and_target() -> None:
    """Also where it has an ``output``: that of AQuA's test rows was written by a model, and is often wrong."""
    row = Example("test-0", {"instruction": "1 + 1?", "output": "3", "answer": "2"}, "1 + 1?\n", "The answer is 2.")
    (made,) = as_chat([row], Tokenizer(), one_turn)
    assert (made["prompt"], made["target"]) == ("<user>1 + 1?</s>\n<assistant>", "The answer is 2.")


def test_a_tokenizer_without_a_chat_template() -> None:
    tokenizer = Tokenizer()
    tokenizer.chat_template = ""
    with pytest.raises(UsageError, match="no chat template"):
        list(as_chat([Example("train-0", CHAT, "", "")], tokenizer))


def test_a_template_that_rewrites_what_was_asked() -> None:
    class Rewriting(Tokenizer):
        def apply_chat_template(self, messages: Any, *, tokenize: bool, add_generation_prompt: bool = False) -> str:
            return f"{len(messages)} messages"

    with pytest.raises(DataError, match="row train-0: the chat template writes"):
        list(as_chat([Example("train-0", CHAT, "", "")], Rewriting()))


def test_wordings_are_mixed_or_all_written() -> None:
    wordings = [("{q}?", "{a}"), ("Answer {q}:", " {a}")]
    rows = list(with_templates(examples(200), wordings))
    first = sum(row["prompt"].endswith("?") for row in rows)
    assert 70 < first < 130
    assert list(with_templates(examples(200), wordings))[:100] == list(with_templates(examples(100), wordings))
    assert [r["prompt"] for r in with_templates(examples(1), wordings, every=True)] == ["train 0?", "Answer train 0:"]
    with pytest.raises(DataError, match="row train-0 has no field 'z'; given are q, a"):
        list(with_templates(examples(1), [("{z}", "{a}")]))
    for pair in (("Q: {{q}}", "{a}"), ("{q}", "yes")):
        with pytest.raises(UsageError, match="reads no field of the row"):
            list(with_templates(examples(1), [pair]))


def test_in_context_rows_stand_behind_other_rows_of_train() -> None:
    train, test = examples(30), examples(5, "test")
    for rows in (train, test):
        for row, made in zip(rows, in_context(rows, train, shots=4), strict=True):
            *solved, asked = made["prompt"].split("\n\n")
            assert (asked, made["target"], made["source"]) == (row.prompt, row.target, row.id)
            assert len(set(solved)) == 4
            assert set(solved) <= {one.prompt + one.target for one in train if one.id != row.id}
    with pytest.raises(DataError, match="2 other rows"):
        list(in_context(train[:3], train[:3], shots=3))


def test_symbols_say_what_labels_said() -> None:
    """Put the labels back by what the solved rows show, and the row is the one it was; symbols differ from row to row."""
    train = examples(60)
    back = {one.prompt: one.target.strip() for one in train}
    seen = set()
    for row, made in zip(train, with_symbols(train, train, shots=2), strict=True):
        *solved, asked = made["prompt"].split("\n\n")
        meaning = {}
        for text in solved:
            prompt, _, symbol = text.rpartition(" ")
            assert meaning.setdefault(symbol, back[prompt]) == back[prompt]
        assert asked == row.prompt
        assert set(meaning.values()) == {"x", "y", "z"}
        assert meaning[made["target"].strip()] == row.target.strip()
        assert made["target"].startswith(" ")
        seen |= meaning.keys()
    assert seen <= set(SYMBOLS)
    assert len(seen) > 60
    free = [Example(f"train-{i}", {}, f"{i}", f" {i}") for i in range(40)]
    with pytest.raises(DataError, match="40 different targets"):
        list(with_symbols(free, free, shots=1))


def run(*words: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["tasks", "transform", *words, "--json"])
    assert done.exit_code == 0, done.output + str(done.exception)
    return json.loads(done.stdout)


def test_the_command_writes_a_task_that_checks_out(tmp_path: Path) -> None:
    made = run("tiny_sql", "--as", "in-context", "--shots", "2", "--limit", "30", "-o", str(tmp_path / "out"))
    assert made["rows"] == {"train": 30, "validation": 30, "test": 30}
    task = find_task(made["task"])
    assert (task.name, task.metrics) == ("tiny_sql_in_context", tasks.get("tiny_sql").metrics)
    assert check_task(task, TaskData(path=task.data)).errors == 0


def test_a_rewritten_task_scores_as_the_one_behind_it(tmp_path: Path) -> None:
    """Value by value against the task itself, on answers that each of its metrics tells apart."""
    made = run("tiny_math", "--as", "in-context", "--shots", "2", "--limit", "20", "-o", str(tmp_path / "out"))
    assert made["scorer"] == "tiny_math"
    assert made["stop"] == ["\n\n", *tasks.get("tiny_math").stop]
    ours, theirs = find_task(made["task"]), tasks.get("tiny_math")
    behind = {row.id: row for row in theirs.load("test").examples}
    for row in ours.load("test", TaskData(path=ours.data)).examples:
        before = behind[row.row["source"]]
        assert (row.target, ours.question(row.row)) == (before.target, theirs.question(before.row))
        for text in (row.target, f"{row.target}\n#### 1", f"{row.target} x", "so 5", "", f"{row.target}\nQuestion: 7"):
            for ended in (True, False):
                assert ours.score(row, Response(text, ended)) == theirs.score(before, Response(text, ended)), text
        over = ours.score(row, Response(f"{row.target}\n\n#### 1", ended=False))
        assert (over[theirs.primary].value, over["ended"].explanation) == (1.0, "ran into '\\n\\n'")


def test_a_rewritten_answer_is_scored_by_metrics_that_have_a_name(tmp_path: Path) -> None:
    wordings = tmp_path / "w.yaml"
    wordings.write_text("templates:\n  - {prompt: '{question}', target: 'So: {answer}'}\n")
    how = ("--as", "templates", "--templates", str(wordings), "--limit", "5")
    made = run("tiny_math", *how, "-o", str(tmp_path / "o"))
    assert (made["metric"], made["boundary"]) == (["numeric_match", "rougeL"], "text")
    (tmp_path / "rows.json").write_text(json.dumps([{"question": f"q {i}", "answer": f"{i}"} for i in range(30)]))
    own = tmp_path / "own.yaml"
    own.write_text("data: rows.json\nprompt: '{question}'\ntarget: ' {answer}'\nmetric: [numeric_match, contains]\n")
    made = run(str(own), *how, "-o", str(tmp_path / "o2"))
    assert (made["metric"], made["boundary"]) == (["numeric_match", "contains"], "line")
    again = run(made["task"], "--as", "in-context", "--shots", "1", "-o", str(tmp_path / "o3"))
    assert (again["metric"], again["stop"]) == (made["metric"], ["\n\n"])
    assert run(again["task"], "--as", "in-context", "--shots", "1", "-o", str(tmp_path / "o4"))["stop"] == ["\n\n"]


def test_a_rewritten_task_file_keeps_its_metrics_and_choices(tmp_path: Path) -> None:
    rows = [{"q": f"question {i}", "y": i % 3} for i in range(60)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    own = tmp_path / "own.yaml"
    kept = "metric: [exact_match_folded, contains]\n"
    own.write_text(f"data: rows.json\nprompt: '{{q}}:'\ntarget: ' {{choice}}'\nchoices: [x, y, z]\nlabel: y\n{kept}")
    made = run(str(own), "--as", "in-context", "--shots", "1", "-o", str(tmp_path / "o"))
    task = find_task(made["task"])
    assert task.metrics == find_task(str(own)).metrics
    assert check_task(task, TaskData(path=task.data)).errors == 0
    row = task.load("test", TaskData(path=task.data)).examples[0]
    assert row.target == f" {'xyz'[row.row['y']]}"


def test_rows_that_stand_in_two_splits_are_not_hidden_behind_others(tmp_path: Path) -> None:
    for split in ("train", "test"):
        rows = [{"question": f"What is {i}?", "answer": f"#### {i}"} for i in range(20)]
        (tmp_path / f"{split}.json").write_text(json.dumps(rows))
    words = ("tasks", "transform", "gsm8k", "--as", "in-context", "--data", str(tmp_path), "-o", str(tmp_path / "o"))
    assert isinstance(CliRunner().invoke(app, words).exception, LeakageError)
    assert not (tmp_path / "o").exists()


def test_a_head_is_asked_in_words(tmp_path: Path) -> None:
    rows = "".join(f"word {i}\t{'good' if i % 2 else 'bad'}\n" for i in range(40))
    for name in ("train", "test"):
        (tmp_path / f"{name}.tsv").write_text("text\tlabel\n" + rows.replace("word", name))
    made = run(
        *("text_classification", "--as", "symbols", "--shots", "1", "--data", str(tmp_path), "-o", str(tmp_path / "o"))
    )
    assert made["stop"] == ["\n\n"]
    assert made["max_new_tokens"] == 16
    row = json.loads((tmp_path / "o" / "test.jsonl").read_text().splitlines()[3])
    *solved, asked = row["prompt"].split("\n\n")
    assert asked == "test 3\nLabel:"
    assert len(solved) == 2
    assert worded([Example("test-0", {"label": 1}, "a", "good")])[0].row == {"label": "good"}
    shown = {one.partition("\nLabel: ")[2]: int(one.split()[1]) % 2 for one in solved}
    assert shown[row["target"].strip()] == 1


def test_the_command_with_wordings(tmp_path: Path) -> None:
    wordings = tmp_path / "w.yaml"
    wordings.write_text(
        "templates:\n  - {prompt: '{question}', target: ' {answer}'}\n  - {prompt: 'Q {question}', target: '{answer}'}\n"
    )
    made = run(
        "tiny_math",
        "--as",
        "templates",
        "--templates",
        str(wordings),
        "--every",
        "--limit",
        "5",
        "-o",
        str(tmp_path / "o"),
    )
    assert made["rows"]["train"] == 10


CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The markers of ChatML, with a system message of its own where none is given."""


def test_a_chat_template_of_a_model(tmp_path: Path) -> None:
    """Rows of Alpaca's through a model's own template: nothing but its markers is added, and the task file scores gold 1."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_path())
    tokenizer.chat_template, tokenizer.eos_token = CHATML, "<|im_end|>"
    shutil.copytree(tiny_path(), tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"instruction": f"Say {i}.", "input": "", "output": f"It is {i}."} for i in range(20)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    data = ("--data", str(tmp_path / "rows.json"), "-o", str(tmp_path / "o"))
    made = run("alpaca", "--as", "chat", "--model", str(tmp_path / "model"), *data)
    row = json.loads((tmp_path / "o" / "train.jsonl").read_text().splitlines()[0])
    assert row["prompt"].startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nSay ")
    assert row["prompt"].endswith("<|im_start|>assistant\n")
    assert row["target"].startswith("It is ")
    assert row["target"].endswith(".")
    assert sum(made["rows"].values()) == 20
    task = find_task(made["task"])
    example = task.load("train", TaskData(path=task.data)).examples[0]
    assert task.score(example, Response(example.target, True))[task.primary].value == 1.0


def turns(*speakers: str) -> list[dict[str, str]]:
    return [{"from": speaker, "value": f"text {place}"} for place, speaker in enumerate(speakers)]


@pytest.mark.parametrize("answers", ["gpt", "chatgpt", "assistant"])
@pytest.mark.parametrize("asks", ["human", "user"])
def test_conversations_of_from_and_value_are_chats(tmp_path: Path, asks: str, answers: str) -> None:
    rows = [{"id": str(i), "conversations": turns("system", asks, answers)} for i in range(3)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = tasks.get("chat").load("test", TaskData(path=str(tmp_path))).examples[0]
    assert first.prompt == "system: text 0\nuser: text 1\nassistant:"
    assert first.target == " text 2"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": "Hi"}, "neither messages, .* nor conversations"),
        ({"conversations": turns("human", "robot")}, "message 1 is no role"),
        ({"conversations": turns("human", "gpt", "human")}, "the last message is not the assistant's"),
        ({"conversations": ["Hi", "Hello"]}, "message 0 is no role"),
        ({"conversations": [{"from": "human", "value": " "}, {"from": "gpt", "value": "x"}]}, "message 0 is no role"),
        ({"conversations": [{"from": "human", "value": 5}, {"from": "gpt", "value": "x"}]}, "message 0 is no role"),
    ],
)
def test_what_is_no_chat_is_refused_by_row(tmp_path: Path, row: dict[str, Any], problem: str) -> None:
    good = {"conversations": turns("human", "gpt")}
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (good, row)))
    with pytest.raises(DataError, match=f"test.jsonl.*2.*{problem}"):
        tasks.get("chat").load("test", TaskData(path=str(tmp_path)))


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('System role not supported') }}",
        "{{ messages[0]['name']['first'] }}",
        "{{ messages[9]['content'] + 1 }}",
        "{{ 'a' + 1 }}",
        "{{ messages | nofilter }}",
        "{% if %}",
    ],
)
def test_a_template_that_refuses_a_row_names_it(template: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_path())
    tokenizer.chat_template = template
    with pytest.raises(DataError, match=r"row train-7: the chat template of .* refuses the turns user, assistant"):
        list(as_chat([Example("train-7", CHAT, "", "")], tokenizer))
