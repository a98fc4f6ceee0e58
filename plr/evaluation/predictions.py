"""Reader of prediction files: one JSON object a line.

Two forms are read, and may be mixed:

- `{"doc_id": 17, "response": " Paris", "ended": true}`: `doc_id` is the place of the row in its source split, from 0.
  `ended` says whether the model stopped by EOS within its limit; left out (or null), metrics that ask for it are not
  measured on that row. Of a classification task `response` is the name of the label (or the number);
- a line of a `samples_*.jsonl` as plr and lm-eval write it: `doc_id`, `resps`, and `doc`, which is compared with the row
  that is scored.

Half a character (a surrogate that stands alone, which JSON can write) is read as U+FFFD, as a decoder of bytes writes it.
Every other line is refused with its number. A row that is predicted twice in the same words counts once (lm-eval writes a line for
each of its filters); in different words it is refused, with both numbers.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, cast

from plr.errors import DataError

__all__ = ["Prediction", "Predictions", "read_predictions"]

_HALF = re.compile("[\ud800-\udfff]")
_ONE_A_LINE = "write each prediction as a JSON object on a line of its own"
FORM = '{"doc_id": 0, "response": "text"}, or a line of samples_*.jsonl'


@dataclass(frozen=True)
class Prediction:
    """One answer. `response` is text, or the outputs of a head; `ended` None where the file does not say."""

    doc_id: int
    response: str | tuple[float, ...]
    ended: bool | None
    where: str
    doc: Mapping[str, object] | None = None
    """The row that was answered, where the file has it."""


@dataclass(frozen=True)
class Predictions:
    """The predictions of a file by `doc_id`, in its order; `repeated` counts lines that repeat an answer word for word."""

    path: Path
    by_id: Mapping[int, Prediction]
    repeated: int


def read_predictions(path: Path) -> Predictions:
    """Read the predictions in a file, or in a folder that has one `samples_*.jsonl`.

    Raises:
        DataError: nothing there, or a line that is not in one of the forms; the message names the line.
    """
    file = _file(path)
    by_id: dict[int, Prediction] = {}
    repeated = 0
    for number, line in enumerate(file.read_bytes().split(b"\n"), 1):
        where = f"{file}, line {number}"
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        one = _prediction(_object(line, where), where)
        before = by_id.setdefault(one.doc_id, one)
        if before is not one:
            if (before.response, before.ended) != (one.response, one.ended):
                first = before.where.rpartition("line ")[2]
                raise DataError(
                    f"{where}: row {one.doc_id} is answered a second time, and otherwise than on line {first}",
                    expected="one answer a row",
                    hint="score each run in a file of its own",
                )
            repeated += 1
    if not by_id:
        raise DataError(f"{file} holds no predictions", expected=FORM)
    return Predictions(file, by_id, repeated)


def _file(path: Path) -> Path:
    if path.is_dir():
        files = sorted(path.glob("samples_*.jsonl"))
        if len(files) != 1:
            raise DataError(
                f"{path} has {len(files) or 'no'} files samples_*.jsonl",
                expected="a folder with one, or a file",
                hint="name the file" if files else None,
            )
        return files[0]
    if not path.is_file():
        raise DataError(f"there is no file {path}", expected="predictions, one JSON object a line: " + FORM)
    return path


def _object(line: bytes, where: str) -> dict[str, object]:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 text (byte {error.start} of the line)",
            expected="UTF-8",
            hint="unpack it first: it is compressed" if line.startswith(b"\x1f\x8b") else "save it as UTF-8 text",
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a plain ValueError
        raise DataError(f"{where}: not JSON ({error})", expected=FORM, hint=_ONE_A_LINE) from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: a JSON {type(value).__name__}", expected=FORM, hint=_ONE_A_LINE)
    return cast("dict[str, object]", value)


def _prediction(value: Mapping[str, object], where: str) -> Prediction:
    doc_id = value.get("doc_id")
    if type(doc_id) is not int or doc_id < 0:
        shown = repr(doc_id) if "doc_id" in value else "missing"
        _refuse(where, f"doc_id is {shown}", "the place of the row in its split, a whole number from 0")
    sample = "response" not in value and "resps" in value
    response = _only(value["resps"], where) if sample else value.get("response")
    if "response" not in value and not sample:
        keys = ", ".join(map(str, value)) or "none"
        _refuse(where, f"there is no response; the keys are {keys}", FORM)
    doc = value.get("doc") if sample else None
    return Prediction(
        doc_id,
        _response(response, where),
        _ended(value.get("ended"), where),
        where,
        cast("dict[str, object]", doc) if isinstance(doc, dict) else None,
    )


def _only(resps: object, where: str) -> object:
    """Take the one generation out of `[[text]]`."""
    outer = cast("list[object]", resps) if isinstance(resps, list) else []
    inner = cast("list[object]", outer[0]) if len(outer) == 1 and isinstance(outer[0], list) else []
    if len(inner) != 1:
        _refuse(
            where,
            "resps is not one generation",
            'resps: [["text"]], one answer a row',
            "samples of a task that compares likelihoods hold no text to score",
        )
    return inner[0]


def _response(value: object, where: str) -> str | tuple[float, ...]:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if _HALF.search(value) else value
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = [value]
    if isinstance(value, list) and value:
        items = cast("list[object]", value)
        numbers = [item for item in items if isinstance(item, int | float) and abs(item) <= sys.float_info.max]
        if len(numbers) == len(items):
            return tuple(map(float, numbers))
    short = repr(cast("object", value))
    raise DataError(
        f"{where}: the response is {short if len(short) < 80 else short[:77] + '...'}",
        expected="text, or of a classification task a number or the finite outputs of the head",
    )


def _ended(value: object, where: str) -> bool | None:
    if value is None:
        return None
    if value not in (0, 1):  # True and False among them, and the 1.0 of a samples file
        _refuse(where, f"ended is {value!r}", "true, false or null")
    return bool(value)


def _refuse(where: str, what: str, expected: str, hint: str | None = None) -> NoReturn:
    raise DataError(f"{where}: {what}", expected=expected, hint=hint)
