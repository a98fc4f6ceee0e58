"""`import plr` makes PEFT know plr's methods, whichever of the two comes first, and imports nothing heavy itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

KNOWN = """
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType
names = [PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(name)].__name__ for name in ("SPARSE", "BOTTLENECK", "BITFIT")]
assert names == ["SparseConfig", "BottleneckConfig", "BitFitConfig"], names
"""


@pytest.mark.parametrize("order", ["import plr\nimport peft", "import peft\nimport plr"])
def test_peft_knows_the_methods(order: str) -> None:
    subprocess.run([sys.executable, "-c", order + KNOWN], check=True, capture_output=True)


def test_plr_alone_imports_nothing_heavy() -> None:
    code = "import plr, sys; assert not {'torch', 'peft', 'pydantic'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_two_methods_of_one_name_are_an_error() -> None:
    from plr.adapters.peft_types import register
    from plr.adapters.sparse.tuner import SparseConfig, SparseModel

    assert register("sparse", SparseConfig, SparseModel) == "SPARSE"
    with pytest.raises(KeyError, match="PEFT has a method called 'lora' already"):
        register("lora", SparseConfig, SparseModel)
