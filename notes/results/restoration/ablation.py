"""The ablation of a restored adapter: `python ablation.py MODEL DATA`.

MODEL is SmolLM2-135M-Instruct, DATA a folder of sql/{train,dev,test}.jsonl. LoRA of rank 2 and 16 on the attention layers or on all
linear layers, for 25 and 125 steps of 16 rows, on 3 bits (`paper`, group size 64). Then every place t between the two bases, and
factors s at three of them, by the loss of the gold answer and teacher-forced exact match on 64 test rows. Writes points.json
and table.md to the folder ablation beside itself, and the figure of the page.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from plr.core.specs import CorrectionKnobs
from plr.lab import Lab
from plr.report.figures import plot
from plr.report.figures.shapes import Figure, Shape, Text
from plr.report.figures.write import write_figure
from plr.restoration.rows import Rows
from plr.restoration.tuned import put_on_line
from plr.restoration.work import Restoration
from plr.study.steps import restored_step
from plr.tasks.data.rows import draw, head_of, load_split

HERE = Path(__file__).parent / "ablation"
FIGURE = Path(__file__).parents[3] / "docs" / "images" / "between.svg"
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LAYERS = {"attention": ATTENTION, "all": [*ATTENTION, "gate_proj", "up_proj", "down_proj"]}
PLACES, FACTORS = (0.0, 0.25, 0.5, 0.75, 1.0), (1.6, 2.5)
ROWS, SEED = 64, 1


def trained(lab: Lab, model: str, data: str, rank: int, layers: str, steps: int) -> Any:
    value = {
        "preset": "paper",
        "tasks": [{"name": "sql_create_context", "data": data, "max_prompt_chars": 130}],
        "adapters": [
            {"method": "lora", "config": {"r": rank, "lora_alpha": 2 * rank, "target_modules": LAYERS[layers]}}
        ],
        "quantize": {"group_size": 64, "samples": 128, "max_length": 256},
        "train": {
            "learning_rate": 5e-4,
            "batch_size": 16,
            "epochs": 1,
            "warmup_fraction": 0.05,
            "train_limit": 16 * steps,
            "validation_limit": 48,
            "evaluations_per_epoch": 2,
        },
        "runtime": {"micro_batch": 8},
    }
    file = HERE / ".ablation.yaml"
    file.write_text(json.dumps(value))  # JSON is YAML
    try:
        return lab.adapter(model, 3, config=file)
    finally:
        file.unlink()


def curve(lab: Lab, step: Any) -> dict[str, dict[str, Any]]:
    """Losses and exact matches by row at every (t, s)."""
    runtime = lab.runtime()
    restored = restored_step(step, step.base.source, "path", CorrectionKnobs(t=0.5, scale=1.0), runtime.precision())
    folder = lab.make(step).path
    tuned = put_on_line(Restoration(restored, folder, folder, lab.store, runtime), runtime)
    rows = Rows(step.task, tuple(draw(load_split(step.task, "test").examples, ROWS, SEED)), head_of(step.task))
    points = [(t, 1.0) for t in PLACES] + [(t, s) for t in (0.0, 0.5, 1.0) for s in FACTORS]
    found = {}
    for t, s in points:
        marks = tuned.marks(rows, t, s)
        found[f"{t:g},{s:g}"] = {"losses": marks.losses, "exact": marks.exact}
    return found


def row(one: dict[str, Any]) -> list[str]:
    def shown(point: str) -> str:
        marks = one["points"][point]
        return f"{sum(marks['losses']) / ROWS:.3f} / {100 * sum(marks['exact']) / ROWS:.0f}"

    best = min(one["points"], key=lambda point: sum(one["points"][point]["losses"]))
    t, s = best.split(",")
    return [
        str(one["rank"]),
        one["layers"],
        str(one["steps"]),
        *(shown(f"{t:g},1") for t in PLACES),
        shown("1,1.6"),
        f"{t}, {s}",
        shown(best),
    ]


def figure(found: list[dict[str, Any]]) -> Figure:
    frame = plot.Box(64, 52, 480, 300)
    losses = {(i, t): sum(one["points"][f"{t:g},1"]["losses"]) / ROWS for i, one in enumerate(found) for t in PLACES}
    x, y = plot.linear((0.0, 1.0), frame.left, frame.right), plot.log([*losses.values()], frame.bottom, frame.top)
    shapes: list[Shape] = [Text(12, 24, "3-bit adapters between their own base (t = 0) and 16 bits (t = 1)", "head")]
    shapes += [
        *plot.up(y, frame.left, frame.right),
        *plot.across(x, frame.bottom, title="t, at s = 1; loss in nats a token"),
    ]
    for i, one in enumerate(found):
        shapes.append(plot.series(i, [(x(t), y(losses[i, t])) for t in PLACES]))
        shapes.append(plot.key_mark(i, frame.right + 18, frame.top + 22 * i, 22))
        shapes.append(
            Text(frame.right + 48, frame.top + 4 + 22 * i, f"rank {one['rank']}, {one['layers']}, {one['steps']} steps")
        )
    return Figure(700, 356, "Loss between the bases", "; ".join(" ".join(row(one)) for one in found), shapes)


def main() -> None:
    model, data = sys.argv[1:]
    lab = Lab(offline=True)
    file = HERE / "points.json"
    found: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    known = {(one["rank"], one["layers"], one["steps"]) for one in found}
    for rank in (16, 2):
        for layers in LAYERS:
            for steps in (25, 125):
                if (rank, layers, steps) not in known:
                    points = curve(lab, trained(lab, model, data, rank, layers, steps))
                    found.append({"rank": rank, "layers": layers, "steps": steps, "points": points})
                    file.write_text(json.dumps(found) + "\n")
    head = ["rank", "layers", "steps", *(f"t = {t:g}" for t in PLACES), "t = 1, s = 1.6", "best t, s", "there"]
    lines = [head, ["---"] * len(head), *map(row, found)]
    (HERE / "table.md").write_text("\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n")
    for file in write_figure(figure(found), FIGURE)[1:]:
        file.unlink()  # the page shows the SVG


if __name__ == "__main__":
    main()
