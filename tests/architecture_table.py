"""Every architecture through the whole road: 4 bits, LoRA, back to 16 bits, scored; and the same answers by transformers and PEFT.

`python tests/architecture_table.py [MODEL_TYPE ...]` writes `notes/results/architectures/`, of which `docs/architectures.md` takes
its table. Models are tiny, with random weights, and one tokenizer of words: what is tested is the road, and no model's quality.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

import torch  # noqa: E402
from architectures import DECODERS, ENCODER_DECODERS, ENCODERS, architecture  # noqa: E402
from peft import PeftModel  # noqa: E402
from tiny_models import WORDS  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers, processors  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

from plr.errors import PlrError  # noqa: E402
from plr.evaluation.samples import read_samples  # noqa: E402
from plr.lab import Lab  # noqa: E402

RESULTS = ROOT / "notes" / "results" / "architectures"
VOCABULARY = ["<pad>", "<s>", "</s>", "<unk>", *WORDS]
WRITTEN = "name: words\ndata: rows\nprompt: '{question} w39'\ntarget: ' {answer}'\nmax_new_tokens: 4\n"
CHOSEN = "name: words\nkind: classification\ndata: rows\ntexts: '{question}'\nlabel: answer\nlabels: [good, bad]\n"
SETTINGS = (
    "quantize.group_size=-1",
    "quantize.samples=8",
    "quantize.max_length=16",
    "train.epochs=4",
    "train.batch_size=4",
    "train.learning_rate=0.05",
    "train.validation_limit=4",
)
ROWS = 12


@dataclass(frozen=True)
class Row:
    """The outcome of one architecture: its steps one by one until one is refused, and by whose words."""

    model_type: str
    steps: dict[str, str]
    refused: str = ""
    wrong: str = ""

    @property
    def held(self) -> bool:
        return not self.wrong


def walk(model_type: str, folder: Path) -> Row:
    """Take one architecture the whole way in `folder`."""
    encoder = model_type in ENCODERS
    write_case(model_type, folder)
    lab = Lab(folder / "store", offline=True, dtype="float32")
    task, source = str(folder / "words.yaml"), folder / "model"
    steps: dict[str, str] = {}
    try:
        base = lab.quantize(source, 4, task=task, preset="paper", overrides=SETTINGS)
        share = base.metrics["block_weights"]
        steps["4 bits"] = f"{share['quantized'] / (share['quantized'] + share['dense']):.0%}"
        adapter = lab.train(source, 4, task=task, preset="paper", overrides=SETTINGS)
        steps["LoRA"] = f"{adapter.metrics['trainable_parameters']:,}"
        served = lab.restore(adapter, 16)
        steps["16 bits"] = "yes"
        result = lab.evaluate(served, limit=ROWS)
        steps["scored"] = f"{result.metrics['n']} rows"
    except PlrError as error:
        return Row(model_type, steps, refused=error.message)
    except Exception as error:
        return Row(model_type, steps, wrong=f"{type(error).__name__}: {error}"[:300])
    samples = read_samples(result.path)
    check = _labels_agree if encoder else _answers_agree
    differ = check(source, adapter.path, samples)
    steps["as transformers + PEFT"] = f"{len(samples) - differ} of {len(samples)}"
    return Row(model_type, steps, wrong=f"{differ} answers differ" if differ else "")


def write_case(model_type: str, folder: Path) -> None:
    """Write a model of one architecture, its tokenizer, and a task with its rows into `folder`."""
    encoder = model_type in ENCODERS
    tokenizer: Any = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    names |= {"cls_token": "<s>", "sep_token": "</s>"} if encoder else {}
    inputs = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names).save_pretrained(
        folder / "model"
    )
    architecture(model_type, vocabulary=len(VOCABULARY), spread=0.2).save_pretrained(folder / "model")
    (folder / "words.yaml").write_text(CHOSEN if encoder else WRITTEN)
    (folder / "rows").mkdir()
    draw = random.Random(0)
    asked: set[str] = set()
    while len(asked) < 40:  # of unequal length
        asked.add(" ".join(draw.choice(WORDS[:30]) for _ in range(draw.randint(2, 9))))
    rows = [{"question": text, "answer": ("good", "bad")[i % 2]} for i, text in enumerate(sorted(asked))]
    for split, start, end in (("train", 0, 20), ("validation", 20, 28), ("test", 28, 40)):
        (folder / "rows" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[start:end]))


def _answers_agree(source: Path, adapter: Path, samples: list[Any]) -> int:
    """Count the answers that differ from those of transformers and PEFT, each prompt alone."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(source)
    base = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model: Any = PeftModel.from_pretrained(base, str(adapter)).eval()
    differ = 0
    for sample in samples:
        ids = tokenizer(sample["arguments"]["gen_args_0"]["arg_0"], return_tensors="pt").input_ids
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=4,
            eos_token_id=2,
            pad_token_id=0,
        )
        text = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        differ += text.strip() != sample["resps"][0][0].strip()
    return differ


def _labels_agree(source: Path, adapter: Path, samples: list[Any]) -> int:
    """Count the labels that differ from those of transformers and PEFT, each text alone."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(source)
    base = AutoModelForSequenceClassification.from_pretrained(source, num_labels=2, dtype=torch.float32)
    model: Any = PeftModel.from_pretrained(base, str(adapter)).eval()
    differ = 0
    for sample in samples:
        with torch.no_grad():
            logits = model(**tokenizer(sample["doc"]["question"], return_tensors="pt")).logits[0]
        differ += ("good", "bad")[int(logits.argmax())] != sample["filtered_resps"][0]
    return differ


STEPS = ("4 bits", "LoRA", "16 bits", "scored", "as transformers + PEFT")


def table(rows: list[Row]) -> str:
    """Write the rows as Markdown."""
    lines = ["| model_type | " + " | ".join(STEPS) + " | |", "|" + "---|" * (len(STEPS) + 2)]
    for row in rows:
        end = row.wrong or (f"refused: {row.refused}" if row.refused else "")
        cells = " | ".join(row.steps.get(step, "") for step in STEPS)
        lines.append(f"| `{row.model_type}` | {cells} | {' '.join(end.split())} |")
    return "\n".join(lines) + "\n"


def walked(names: list[str]) -> list[Row]:
    """Walk the architectures called `names`, each in a folder of its own."""
    rows: list[Row] = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            row = walk(name, Path(folder))
            rows.append(
                Row(row.model_type, row.steps, *(text.replace(folder, "") for text in (row.refused, row.wrong)))
            )
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    chosen = sys.argv[1:]
    found = walked(chosen or [*DECODERS, *ENCODERS, *ENCODER_DECODERS])
    if not chosen:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / "table.md").write_text(table(found), encoding="utf-8")
        (RESULTS / "rows.json").write_text(
            json.dumps([asdict(row) for row in found], indent=1) + "\n", encoding="utf-8"
        )
    sys.exit(not all(row.held for row in found))
