"""The gate: the distance of a quantized base from its 16-bit model, on text it was not calibrated on.

How it works.

1. Before the model is quantized, `Gate` draws its texts: the first rows of the task's validation split; of a calibration
   file the documents that were not drawn; and a text of the user's own, if one was given. It keeps what the 16-bit model
   says of them (`plr.lm.divergence`).
2. After it, `measure` compares: the loss of the answers, and of all tokens the perplexity, the KL divergence to the 16-bit
   model and how often both hold the same token for the likeliest.
3. The verdict follows a rule, worst first, over all texts:

   - **broken**: a loss at or above chance, ln(vocabulary): a base that knows nothing but the list of its tokens;
   - **damaged**: less than half of what context tells the 16-bit model is left. What context tells is I = H - L: L is the
     loss, H the entropy of the tokens measured, which is the least loss that a guess by frequency alone can have. A base
     with I_k <= 0 is no better than such a guess; a small loss against ln(vocabulary) does not show that;
   - **ok** otherwise.

   A text has no say in a rule that the 16-bit model itself fails on it (a loss at chance; I <= 0): it cannot tell.

What it gives up: H of a short text is too small (a guess that has seen the text), so the rule is a little strict there.
An encoder predicts no next token: nothing is measured, and the record says so.
Nothing here changes a byte of the base.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

from plr.bases.heads import is_encoder
from plr.bases.load import Loaded
from plr.core.fingerprint import JsonObject
from plr.core.specs import Calibration, TaskSpec
from plr.errors import DataError, ModelError
from plr.lm import encode_pair
from plr.lm.classify import encode_texts
from plr.lm.divergence import Reference, Shift
from plr.lm.support import decoder_config, position_limit
from plr.lm.tokens import encode_prompt, windows
from plr.tasks import Classification, Example, task_of
from plr.tasks.data.rows import has_split, load_split, read_texts, undrawn_texts
from plr.tasks.data.splits import normalized

__all__ = ["GATE_ROWS", "TEXT_TOKENS", "Gate"]

GATE_ROWS = 32
"""Rows of the validation split that are measured."""
TEXT_TOKENS = 4096
"""Tokens that are measured of a running text."""
LEFT = 0.5
"""A base that keeps less than this share of what context tells the 16-bit model is damaged."""


@dataclass
class _Text:
    """One text of the gate, in tokens."""

    name: str
    rows: list[list[int]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    """Number of last tokens of each row that are its answer; empty for running text."""
    left_out: int = 0
    """Rows that do not fit into the model's positions."""
    why_not: str = ""
    """Reason why there is nothing to measure."""


class Gate:
    """Measures `loaded.model` now, and again whenever `measure` is called.

    Args:
        loaded: the 16-bit model, about to be quantized in place, and its tokenizer.
        calibration: what it will be calibrated on; None for a method without calibration.
        task: whose validation split is measured; the calibration's task or guard if left out.
        text: a JSONL or text file of the user's, measured too; documents that calibrate are left out of it.

    Raises:
        DataError: a file that is not there, changed, or holds no text.
    """

    def __init__(
        self,
        loaded: Loaded,
        calibration: Calibration | None = None,
        *,
        task: TaskSpec | None = None,
        text: str | Path | None = None,
    ) -> None:
        self.loaded = loaded
        limit = position_limit(loaded.model)
        self.longest = math.inf if limit is None else limit + 1
        task = task or (calibration.task or calibration.guard if calibration else None)
        self.texts: list[_Text] = []
        self.reference: Reference | None = None
        self.why_not = ""
        if is_encoder(loaded.model.config):
            self.why_not = "an encoder predicts no next token; its adapters' scores tell what is left of it"
            names = [f"task {task.name}, validation"] if task else []
            names += [Path(file).name for file in (calibration and calibration.path, text) if file is not None]
            self.texts = [_Text(name) for name in names]
            return
        if task:
            self.texts.append(self._task(task))
        if calibration is not None and calibration.task is None:
            self.texts.append(self._undrawn(calibration))
        if text is not None:
            self.texts.append(self._file_text(Path(text), calibration))
        if rows := [row for one in self.texts for row in one.rows]:
            try:
                self.reference = Reference(loaded.model, rows)
            except ModelError as error:
                self.why_not = error.message
        elif not self.texts:
            self.why_not = "no task and no text to measure on"

    def measure(self) -> JsonObject:
        """Compare `loaded.model`, as it is now, with the 16-bit model: the record for the manifest.

        `verdict`; `chance` (nats); `rows`, `loss_16bit` and `loss` (nats a token of the answers), if there is a task;
        `texts`, a list: for each text `text` (its name), `rows`, `tokens`, `perplexity_16bit`, `perplexity`, `kl`
        (nats a token), `top1_agreement` (share), `context_free` (H, nats) and `kept` (share of I, None where the text
        cannot tell), or `not_measured` with the reason.

        Raises:
            ModelError: the loss is not a number.
        """
        chance = math.log(decoder_config(self.loaded.model).vocab_size)
        shifts = iter(self.reference.compare(self.loaded.model) if self.reference else [])
        record: JsonObject = {"rows": 0, "chance": chance, "verdict": "", "texts": []}
        for text in self.texts:
            if self.reference is None or not text.rows:
                record["texts"].append({"text": text.name, "not_measured": text.why_not or self.why_not})
                continue
            own = [next(shifts) for _ in text.rows]
            record["texts"].append({"text": text.name, **_measured(text, own)})
            if text.answers:
                record |= {"rows": len(own), **_answer_loss(text, own)}
        _check_finite(record)
        return record | {"verdict": _verdict(record, self.why_not)}

    def _task(self, task: TaskSpec) -> _Text:
        text = _Text(f"task {task.name}, validation")
        rows = load_split(task, "validation").examples[:GATE_ROWS] if has_split(task, "validation") else []
        for row in rows:
            prompt, target = self._encode(task, row)
            if not 2 <= len(prompt) + len(target) <= self.longest:
                text.left_out += 1
                continue
            text.rows.append(prompt + target)
            if target:
                text.answers.append(min(len(target), len(prompt) + len(target) - 1))
        if not text.rows:
            text.why_not = f"{text.left_out} rows, none fits the model" if text.left_out else "no validation rows"
        return text

    def _encode(self, task: TaskSpec, row: Example) -> tuple[list[int], list[int]]:
        """Encode prompt and answer; of a task with labels the text alone, for nothing writes the label."""
        work = task_of(task)
        if isinstance(work, Classification):
            return encode_texts(self.loaded.tokenizer, [work.texts(row.row)])[0]["input_ids"], []
        return encode_pair(self.loaded.tokenizer, row.prompt, row.target)

    def _undrawn(self, calibration: Calibration) -> _Text:
        text = _Text(f"{Path(calibration.path or '').name}, documents not drawn")
        documents = undrawn_texts(calibration)
        self._cut(text, documents, calibration.max_length)
        if not documents:
            text.why_not = "every document of the file calibrates"
        return text

    def _file_text(self, path: Path, calibration: Calibration | None) -> _Text:
        if not path.is_file():
            raise DataError(f"there is no text file {path} to measure on", expected="a .jsonl or text file")
        text = _Text(path.name)
        documents = read_texts(path)
        if calibration is not None and calibration.path is not None:
            free = {normalized(one) for one in undrawn_texts(calibration)}
            used = {normalized(one) for one in read_texts(Path(calibration.path))} - free
            documents = [one for one in documents if normalized(one) not in used]
        self._cut(
            text, documents, calibration.max_length if calibration else Calibration.model_fields["max_length"].default
        )
        if not documents:
            text.why_not = "every document of the file calibrates"
        return text

    def _cut(self, text: _Text, documents: list[str], max_length: int) -> None:
        """Cut windows of `max_length` tokens, TEXT_TOKENS in all; the first token of a window is context alone."""
        width, room = int(min(max(2, max_length), self.longest)), TEXT_TOKENS
        for document in documents:
            ids = encode_prompt(self.loaded.tokenizer, document[: 8 * TEXT_TOKENS])  # more is not measured
            for window in (one[:room] for one in windows(self.loaded.tokenizer, ids, width)):
                if len(window) > 1:
                    text.rows.append(window)
                    room -= len(window)
                if room < 2:
                    return
        if not text.rows:
            text.why_not = "no document has two tokens"


def _measured(text: _Text, shifts: list[Shift]) -> JsonObject:
    """Make the record of one text, over all its tokens but the first of each row."""
    before, after, kl, same = (
        torch.cat([getattr(shift, name) for shift in shifts]).mean().item()
        for name in ("before", "after", "kl", "same")
    )
    context_free = _entropy([token for row in text.rows for token in row[1:]])
    known = context_free - before
    return {
        "rows": len(shifts),
        "left_out": text.left_out,
        "tokens": sum(len(shift.kl) for shift in shifts),
        "perplexity_16bit": _exp(before),
        "perplexity": _exp(after),
        "kl": kl,
        "top1_agreement": same,
        "context_free": context_free,
        "kept": (context_free - after) / known if known > 0 else None,
    }


def _answer_loss(text: _Text, shifts: list[Shift]) -> dict[str, float]:
    """Compute the nats a token of the answers, EOS included."""
    tokens = sum(text.answers)
    before, after = (
        sum(getattr(shift, name)[-count:].sum().item() for shift, count in zip(shifts, text.answers, strict=True))
        for name in ("before", "after")
    )
    return {"loss_16bit": before / tokens, "loss": after / tokens}


def _entropy(tokens: list[int]) -> float:
    """Compute the least loss in nats a token of a guess that knows how often each of these tokens occurs, and no context.

    >>> round(_entropy([7, 7, 8, 8]), 4)
    0.6931
    """
    return sum(count / len(tokens) * math.log(len(tokens) / count) for count in Counter(tokens).values())


def _exp(nats: float) -> float:
    """Compute the perplexity; infinite where it is beyond a double, as NaN it stays NaN."""
    return math.exp(nats) if not nats > 700 else math.inf


def _verdict(record: JsonObject, why_not: str) -> str:
    """Judge a record by the rule of the module's docstring, worst first."""
    measured = [text for text in record["texts"] if "not_measured" not in text]
    if not measured:
        reasons = dict.fromkeys([*filter(None, [why_not]), *(text["not_measured"] for text in record["texts"])])
        return f"not measured: {'; '.join(reasons)}"
    losses = [(math.log(t["perplexity_16bit"]), math.log(t["perplexity"])) for t in measured]
    if "loss" in record:
        losses.append((record["loss_16bit"], record["loss"]))
    fair = [after for before, after in losses if before < record["chance"]]
    if not fair:
        return "broken: at or above chance, as is the 16-bit model"
    if max(fair) >= record["chance"]:
        return "broken: at or above chance"
    damaged = [text for text in measured if text["kept"] is not None and text["kept"] < LEFT]
    if not damaged:
        return "ok"
    worst = min(damaged, key=lambda text: text["kept"])
    if worst["kept"] <= 0:
        return f"damaged: no better than guessing by frequency ({worst['text']})"
    return f"damaged: {worst['kept']:.0%} left of what context tells the 16-bit model ({worst['text']})"


def _check_finite(record: JsonObject) -> None:
    measured = [text for text in record["texts"] if "not_measured" not in text]
    for value in (record.get("loss", 0.0), *(text[name] for text in measured for name in ("perplexity", "kl"))):
        if not math.isfinite(value):
            raise ModelError(f"the quantized base gives a loss of {value}", hint="raise damp_percent or the bits")
