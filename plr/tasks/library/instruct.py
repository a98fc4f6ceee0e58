r"""Instruction data: Alpaca's rows, and chats.

- `alpaca` reads `instruction`, `input` (may be empty) and `output`, in Alpaca's template::

      Below is an instruction that describes a task. [...]

      ### Instruction:
      Describe a process of making crepes.

      ### Response:
      Making crepes is an easy and delicious process! [...]

- `chat` reads `messages`, a list of `{"role": system | user | assistant, "content": text}` that ends with the assistant; or the
  same as `conversations` of `{"from": system | human | gpt, "value": text}` (ShareGPT). Its
  prompt is plain text (`user: ...`), for a base that has no chat template. For one that has, write the rows out in that
  template first: `plr tasks transform chat --as chat --model M`.

Such answers are not right or wrong. `rougeL` (primary, F1 on words as `rouge-score` cuts them: English alone) says how near
the wording is to one good answer, `ended` how many stopped by EOS; the answer loss is what instruction tuning is judged by.
"""

from __future__ import annotations

from typing import Any, cast

from plr.scoring.by_name import METRICS
from plr.scoring.numbers import cut_at_stops
from plr.scoring.score import Score
from plr.tasks.base import Task, tasks
from plr.tasks.data.hub import HubData
from plr.tasks.data.sources import Row
from plr.tasks.library.alpaca import alpaca_prompt
from plr.tasks.types import Example, Fields, Response

__all__ = ["ALPACA", "CHAT", "Alpaca", "Chat", "messages_of"]

ROLES = ("system", "user", "assistant")
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
"""Roles by the names that ShareGPT's form has for them."""


class _Instruct(Task):
    """Common base of both: scores of free text."""

    version = 1
    metrics = ("rougeL", "ended")
    primary = "rougeL"
    strict = "rougeL,strict"
    max_new_tokens = 256

    def boundary(self, text: str) -> str:
        return cut_at_stops(text, self.stop).strip()

    def scores(self, example: Example, response: Response) -> dict[str, Score]:
        return {"rougeL": METRICS["rougeL"].score(self.boundary(response.text), example.target)}


class Alpaca(_Instruct):
    name = "alpaca"
    fields = ("instruction", "output")
    hub = HubData("tatsu-lab/alpaca", splits={"all": "train"})
    stop = ("### Instruction:",)

    def prompt(self, row: Fields) -> str:
        return alpaca_prompt(str(row["instruction"]), str(row.get("input") or ""))

    def target(self, row: Fields) -> str:
        return str(row["output"]).strip()


class Chat(_Instruct):
    name = "chat"
    fields = ()
    stop = ("\nuser:",)

    def adopt(self, rows: list[Row]) -> list[Row]:
        return [row._replace(values=_in_messages(row.values)) for row in rows]

    def prompt(self, row: Fields) -> str:
        before = messages_of(row)[:-1]
        return "".join(f"{one['role']}: {one['content']}\n" for one in before) + "assistant:"

    def target(self, row: Fields) -> str:
        return f" {messages_of(row)[-1]['content']}"

    def problem(self, row: Fields) -> str | None:
        value = row.get("messages")
        messages = cast("list[Any]", value) if isinstance(value, list) else []
        if "messages" not in row:
            return "there is neither messages, a list of role and content, nor conversations, a list of from and value"
        if len(messages) < 2:
            return "messages is no list of two at least"
        for place, one in enumerate(messages):
            content = one.get("content") if isinstance(one, dict) else None
            if not isinstance(content, str) or not content.strip() or one.get("role") not in ROLES:
                return f"message {place} is no role ({', '.join(ROLES)}) with content"
        return None if messages[-1]["role"] == "assistant" else "the last message is not the assistant's"


def _in_messages(values: Fields) -> Fields:
    """Write the `conversations` of a row as `messages`; what is no turn of a known speaker is left for `problem` to name."""
    turns = values.get("conversations")
    if "messages" in values or not isinstance(turns, list):
        return values
    messages: list[object] = []
    for turn in cast("list[Any]", turns):
        one = dict(cast("dict[str, Any]", turn)) if isinstance(turn, dict) else {}
        speaker, text = one.get("from", one.get("role")), one.get("value", one.get("content"))
        messages.append({"role": SPEAKERS.get(str(speaker), speaker), "content": text})
    return {**{key: value for key, value in values.items() if key != "conversations"}, "messages": messages}


def messages_of(row: Fields) -> list[dict[str, str]]:
    """Return the chat of a row; a row of Alpaca's is one of two messages.

    >>> [one["role"] for one in messages_of({"instruction": "Add.", "input": "1, 2", "output": "3"})]
    ['user', 'assistant']
    """
    if "messages" in row:
        return [{"role": one["role"], "content": one["content"].strip()} for one in row["messages"]]
    asked = "\n\n".join(part for name in ("instruction", "input") if (part := str(row.get(name) or "").strip()))
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": str(row["output"]).strip()}]


ALPACA = tasks.register("alpaca")(Alpaca())
CHAT = tasks.register("chat")(Chat())
