"""The prompt of Stanford Alpaca (Taori et al. 2023), in one form for training and evaluation."""

from __future__ import annotations

__all__ = ["alpaca_prompt"]


def alpaca_prompt(instruction: str, given: str = "") -> str:
    """Write the prompt; `given` is the input that the instruction speaks of; most instructions have none.

    >>> alpaca_prompt("Add 1 and 2.").splitlines()[2:]
    ['### Instruction:', 'Add 1 and 2.', '', '### Response:']
    """
    instruction, given = instruction.strip(), given.strip()
    context = ", paired with an input that provides further context" if given else ""
    return (
        f"Below is an instruction that describes a task{context}. "
        "Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\n{instruction}\n\n" + (f"### Input:\n{given}\n\n" if given else "") + "### Response:\n"
    )
