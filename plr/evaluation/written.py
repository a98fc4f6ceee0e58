"""Score a task whose answer is written: teacher-forced loss of the gold answer, then greedy decoding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from plr.errors import ModelError
from plr.evaluation.cell import OpenCell
from plr.evaluation.protocol import generation_settings, protocol_record
from plr.evaluation.records import FORCED_EXACT, P_GOLD, Sample, Scored, TaskSettings, summary
from plr.evaluation.writers import Writer
from plr.lm import AnswerLoss, Generation
from plr.tasks import Response, outcomes

__all__ = ["score_written"]


def score_written(cell: OpenCell, writer: Writer, on_progress: Callable[[int, int], None] | None = None) -> Scored:
    """Answer every row of `cell` with `writer` and score the answers; where the step asks for no answers, the loss alone.

    Raises:
        ModelError: a loss that is no number.
        DataError: a prompt that does not fit, by its row.
    """
    step, rows, prompts = cell.step, cell.rows, cell.prompts
    names = [row.id for row in rows]
    total = len(rows) * (2 if step.generate else 1)
    # The losses first: they cost little, and what cannot be scored is found out before hours of answers.
    losses = writer.answer_loss([(prompt, row.target) for prompt, row in zip(prompts, rows, strict=True)], names)
    _check_finite(losses, names)
    if on_progress:
        on_progress(len(rows), total)
    settings: TaskSettings = {"output_type": "loglikelihood"}
    generations: list[Generation] = []
    if step.generate:
        settings = {"output_type": "generate_until", "generation_kwargs": generation_settings(cell)}
        generations = writer.generate(
            prompts,
            max_new_tokens=step.max_new_tokens,
            stop=cell.stops,
            names=names,
            on_progress=(lambda done, _: on_progress(len(rows) + done, total)) if on_progress else None,
        )
        samples = _answered(cell, prompts, generations, losses)
    else:
        samples = _unanswered(cell, prompts, losses)
    return Scored(
        samples=samples,
        metrics=summary(samples),
        settings=settings,
        protocol=protocol_record(cell, prompts, writer.facts, generations),
        dtype=writer.facts["dtype"],
        outcomes=outcomes(cell.task, [sample.explanations or {} for sample in samples]),
    )


def _check_finite(losses: Sequence[AnswerLoss], names: Sequence[str]) -> None:
    for name, loss in zip(names, losses, strict=True):
        if not math.isfinite(loss.nll):
            raise ModelError(
                f"the loss of row {name} is {loss.nll}",
                expected="finite logits",
                hint="compute in float32, or check the base: plr eval the unadapted base first",
            )


def _answered(
    cell: OpenCell, prompts: Sequence[str], generations: Sequence[Generation], losses: Sequence[AnswerLoss]
) -> list[Sample]:
    """Record each row with its answer, in row order; all answers are scored in one go."""
    settings = generation_settings(cell)
    responses = [Response(text=answer.text, ended=answer.ended) for answer in generations]
    samples: list[Sample] = []
    for row, prompt, answer, loss, scores in zip(
        cell.rows, prompts, generations, losses, cell.task.score_all(cell.rows, responses), strict=True
    ):
        explanations = {name: score.explanation for name, score in scores.items()}
        if answer.stopped is not None and "ended" in explanations:
            explanations["ended"] = f"ran into {answer.stopped!r}"  # the scorer reads the text before it
        samples.append(
            Sample(
                row,
                arguments=[prompt, settings],
                response=answer.text,
                answer=answer.text,
                scores={name: score.value for name, score in scores.items()} | _forced(loss),
                loss=loss.mean,
                answers={name: score.answer for name, score in scores.items()},
                explanations=explanations,
                nll=loss.nll,
                answer_tokens=loss.tokens,
                tokens=answer.raw_tokens,
                stopped=answer.stopped,
            )
        )
    return samples


def _forced(loss: AnswerLoss) -> dict[str, float | None]:
    """Score the gold answer itself, from the pass that measured its loss."""
    return {FORCED_EXACT: float(loss.exact), P_GOLD: math.exp(-loss.nll)}


def _unanswered(cell: OpenCell, prompts: Sequence[str], losses: Sequence[AnswerLoss]) -> list[Sample]:
    """Record each row with its loss alone."""
    return [
        Sample(
            row,
            arguments=[prompt, row.target],
            response=None,
            answer=None,
            scores=_forced(loss),
            loss=loss.mean,
            explanations={},
            nll=loss.nll,
            answer_tokens=loss.tokens,
        )
        for row, prompt, loss in zip(cell.rows, prompts, losses, strict=True)
    ]
