"""Memory that ran out, as Python and torch say it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from plr.core.memory import out_of_memory


def test_what_torch_says_when_a_tensor_is_too_large_for_the_cpu() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert type(caught.value) is RuntimeError
    assert out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (ValueError("can't allocate memory"), False),
        (OSError(12, "Cannot allocate memory"), False),
    ],
)
def test_other_errors_are_no_lack_of_memory(error: BaseException, expected: bool) -> None:
    assert out_of_memory(error) == expected


def test_no_torch_is_imported_to_tell() -> None:
    code = """
import sys
from plr.core.memory import out_of_memory
print(out_of_memory(MemoryError()), out_of_memory(ValueError()), "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "False"]
