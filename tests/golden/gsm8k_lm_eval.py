"""Golden scores of GSM8K: responses in, what lm-eval's own classes make of them out.

    python tests/golden/gsm8k_lm_eval.py        # rewrites gsm8k_lm_eval.json beside this file; needs lm-eval 0.4.13

The filters, the stop strings and the settings of exact_match are read from lm-eval's ``tasks/gsm8k/gsm8k.yaml``, and
are not repeated here.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_suffix(".json")
SEED, COUNT = 20261122, 400

TRAPS = [
    ("#### $15", "#### 15"),
    ("#### 15.00", "#### 15"),
    ("the answer is 5...", "#### 5"),
    ("#### 18\n#### 19", "#### 18"),
    ("#### 18\n\nQuestion: 7 apples?\nAnswer: #### 7", "#### 18"),
    ("#### -3", "#### -3"),
    ("#### 1,200.", "#### 1,200"),
    ("#### .", "#### 0"),
    ("####5", "#### 5"),
    ("####  5", "#### 5"),
    ("", "#### 5"),
    ("$", "#### 5"),
    ("...", "#### 5"),
    ("no number", "#### 5"),
    ("[invalid]", "[invalid]"),
    ("no number", "[INVALID]"),
    ("#### 5</s>#### 6", "#### 5"),
    ("<|im_end|>#### 6", "#### 6"),
    ("Question: 5 #### 5", "#### 5"),
    ("<<2+2=4>>4\n#### 4", "<<2+2=4>>4\n#### 4"),
    ("#### 4 apples, 5 pears", "#### 4"),
    ("10-5", "#### 5"),
    ("it costs $1,000.50", "#### 1,000.50"),
    ("#### \u0665", "#### 5"),
    ("#### 1e3", "#### 1000"),
    ("#### 5.\n", "#### 5.\n"),
    ("#### 12#### 13", "12 #### 13#### 12"),
]

_PIECES = (
    *(
        "#### ",
        "####",
        "### ",
        "Question:",
        "</s>",
        "<|im_end|>",
        "\n",
        "\n\n",
        " ",
        " ",
        "-",
        "$",
        ",",
        ".",
        "%",
        "= ",
    ),
    *("the answer is ", "so ", "apples", "He has <<2+3=5>>5.", "[invalid]", "\u20ac", "\u0664", "\t", "/"),
)


def responses(count: int, seed: int) -> list[tuple[str, str]]:
    """``count`` pairs (response, gold), numbers in every spelling between marks, stop strings and words; then TRAPS."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        number = _number(rng)
        pieces = [rng.choice([*_PIECES, _number(rng), _number(rng), number]) for _ in range(rng.randint(0, 12))]
        if rng.random() < 0.5:
            pieces.insert(rng.randint(0, len(pieces)), f"#### {number}")
        made.append(("".join(pieces), f"work {_number(rng)}\n#### {number}"))
    return made + TRAPS


def _number(rng: random.Random) -> str:
    value = rng.choice([rng.randint(0, 9), rng.randint(0, 99), rng.randint(0, 10**6)])
    return rng.choice(["", "", "-", "$", "-$", "$-"]) + rng.choice(
        [f"{value}", f"{value:,}", f"{value}.", f"{value}.00"]
    )


def lm_eval_scores(response: str, gold: str) -> dict[str, Any]:
    """What lm-eval reads and how it scores it, under both filters."""
    import lm_eval
    import yaml
    from lm_eval.api.metrics import exact_match_fn
    from lm_eval.filters.extraction import RegexFilter
    from lm_eval.filters.selection import TakeFirstFilter
    from lm_eval.models.utils import postprocess_generated_text

    if not _CONFIG:
        path = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml"
        _CONFIG.update(yaml.safe_load(path.read_text(encoding="utf-8")))
    text = postprocess_generated_text(response, _CONFIG["generation_kwargs"]["until"], None)
    metric = {key: value for key, value in _CONFIG["metric_list"][0].items() if key.startswith(("ignore", "regexes"))}
    result: dict[str, Any] = {}
    for entry in _CONFIG["filter_list"]:
        steps = [dict(step) for step in entry["filter"]]
        assert [step.pop("function") for step in steps] == ["regex", "take_first"]
        read = next(iter(TakeFirstFilter().apply(RegexFilter(**steps[0]).apply([[text]], [{}]), [{}])))
        score = exact_match_fn(predictions=[read], references=[gold], **metric)["exact_match"]
        result[entry["name"]] = [read, float(score)]
    return result


_CONFIG: dict[str, Any] = {}


def main() -> None:
    rows = [[response, gold, lm_eval_scores(response, gold)] for response, gold in responses(COUNT, SEED)]
    FILE.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
