"""An adapter of which a part does not fit its base is refused, or counted in the record where a mismatch is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.inputs import SETTINGS, write_inputs
from recommit import recommit
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model
from transformers import AutoTokenizer

from plr.core.store import Artifact
from plr.errors import ProvenanceError
from plr.lab import Lab


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    write_inputs(tmp_path)
    return Lab(tmp_path / "store", offline=True, dtype="float32")


def trained(lab: Lab, folder: Path) -> Artifact:
    return lab.train(folder / "m", 16, task=str(folder / "words.yaml"), preset="paper", overrides=SETTINGS)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_a_tensor_too_few_or_too_many_is_refused_by_name(lab: Lab, tmp_path: Path) -> None:
    made = trained(lab, tmp_path)
    file = made.path / "adapter_model.safetensors"
    tensors = load_file(file)
    key = max(tensors)
    save_file({name: tensor for name, tensor in tensors.items() if name != key} | {"more": tensors[key].clone()}, file)
    with pytest.raises(
        ProvenanceError, match=r"lacks 1 tensors that belong to it there, and holds 1 that have no place"
    ):
        lab.evaluate(recommit(made))
    with pytest.raises(ProvenanceError, match="lacks 1 tensors"):
        lab.restore(recommit(made), 16, merge=True)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
@pytest.mark.parametrize(("layers", "missing", "unexpected"), [(3, 8, 0), (1, 0, 8)])
def test_another_number_of_layers_is_counted_where_it_is_allowed(
    lab: Lab, tmp_path: Path, layers: int, missing: int, unexpected: int
) -> None:
    made, other = trained(lab, tmp_path), tmp_path / "other"
    tiny_model(
        "llama", num_hidden_layers=layers, initializer_range=0.3, eos_token_id=1, pad_token_id=0
    ).save_pretrained(other)
    AutoTokenizer.from_pretrained(tmp_path / "m").save_pretrained(other)
    with pytest.raises(ProvenanceError):
        lab.restore(made, 16, model=other)
    served = lab.restore(made, 16, model=other, allow_mismatch=True)
    counted = {"missing_adapter_tensors": missing, "unexpected_adapter_tensors": unexpected}
    assert {key: served.metrics[key] for key in counted} == counted
    assert lab.evaluate(served, limit=2).metrics["adapter_tensors"] == counted
