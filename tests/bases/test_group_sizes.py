"""Group sizes against the widths that config.json tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plr.bases.look import check_group_size, fitting_group_size
from plr.core.specs import ModelRef, QuantizationKnobs
from plr.errors import UsageError
from plr.study.resolve import Resolver


def model(folder: Path, **widths: int) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **widths}))
    return folder


def test_the_largest_that_divides_every_width(tmp_path: Path) -> None:
    odd = model(tmp_path / "odd", hidden_size=576, intermediate_size=1536)
    assert fitting_group_size(odd, "odd", 128) == 64
    assert fitting_group_size(odd, "odd", 32) == 32
    assert fitting_group_size(model(tmp_path / "even", hidden_size=4096, intermediate_size=11008), "even", 256) == 256
    assert fitting_group_size(model(tmp_path / "prime", hidden_size=577), "prime", 128) == -1
    with pytest.raises(UsageError, match=r"(?s)group_size 128 does not divide hidden_size 576 .* give --group-size 64"):
        check_group_size(odd, "odd", 128)


def test_a_recipe_is_fitted_and_it_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ref = ModelRef(kind="local", name="odd", revision="0", path=str(model(tmp_path / "odd", hidden_size=576)))
    resolver = Resolver(offline=True)
    knobs = QuantizationKnobs()
    assert resolver.fitted(ref, knobs).group_size == 64
    assert resolver.fitted(ref, knobs).group_size == 64
    assert [record.getMessage() for record in caplog.records] == [
        "group_size 128 of the recipe does not fit odd: 64 is taken"
    ]
    assert resolver.fitted(ref, QuantizationKnobs(group_size=-1)).group_size == -1
    assert resolver.fitted(ModelRef(kind="hub", name="a/b", revision="0"), knobs).group_size == 128
