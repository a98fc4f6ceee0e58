"""Overlap and sum of sparse adapters: laws of the numbers, and the sum against PEFT's own forward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sparse_files import dense, write_sparse

from plr.adapters.sparse.algebra import compose, overlap, overlaps
from plr.adapters.sparse.reading import SparseAdapter, read_sparse
from plr.errors import ProvenanceError, UsageError


@pytest.fixture
def pair(tmp_path: Path) -> list[SparseAdapter]:
    return [read_sparse(write_sparse(tmp_path / name, seed=seed, k=9), name) for seed, name in enumerate("ab")]


def _moved(adapter: SparseAdapter, factor: float, *, apart: bool = False) -> SparseAdapter:
    """The same adapter with its values times ``factor``; ``apart``: in the blocks that it has not chosen."""
    from dataclasses import replace

    modules = []
    for module in adapter.modules:
        scores, positions = module.scores, module.positions
        if apart:
            positions = np.array(sorted(set(range(scores.size)) - module.chosen)[: module.k])
            scores = np.ones_like(scores)
        modules.append(replace(module, values=factor * module.values, positions=positions, scores=scores))
    return SparseAdapter("other", adapter.folder, adapter.config, tuple(modules), ())


def test_an_adapter_with_itself(pair: list[SparseAdapter]) -> None:
    found = overlap(pair[0], pair[0])
    assert (found["jaccard"], found["shared_blocks"]) == (1.0, 36)
    ones = [found[key] for key in ("shared_energy_first", "shared_energy_second", "cosine", "interference")]
    assert ones == pytest.approx([1, 1, 1, 1])


def test_opposite_and_disjoint_adapters(pair: list[SparseAdapter]) -> None:
    opposite = overlap(pair[0], _moved(pair[0], -2.0))
    assert (opposite["jaccard"], opposite["cosine"]) == (1.0, pytest.approx(-1))
    assert opposite["interference"] == pytest.approx(-4 / 5)  # 2 * -2 / (1 + 4)
    apart = overlap(pair[0], _moved(pair[0], 1.0, apart=True))
    assert [apart[key] for key in ("jaccard", "shared_energy_first", "cosine", "interference")] == [0, 0, None, 0]


def test_numbers_are_those_of_the_dense_updates(pair: list[SparseAdapter]) -> None:
    found = overlap(*pair)
    a, b = ([dense(module) for module in adapter.modules] for adapter in pair)
    both = [(x != 0) & (y != 0) for x, y in zip(a, b, strict=True)]
    product = sum(float((x * y).sum()) for x, y in zip(a, b, strict=True))
    norms = [sum(float((x[mask] ** 2).sum()) for x, mask in zip(side, both, strict=True)) for side in (a, b)]
    wholes = [sum(float((x**2).sum()) for x in side) for side in (a, b)]
    assert found["cosine"] == pytest.approx(product / (norms[0] * norms[1]) ** 0.5)
    assert found["interference"] == pytest.approx(2 * product / sum(wholes))
    assert found["shared_energy_first"] == pytest.approx(norms[0] / wholes[0])
    shared = sum(int(mask.sum()) for mask in both) / 6
    assert found["jaccard"] == pytest.approx(shared / (72 - shared))
    assert overlap(*reversed(pair))["jaccard"] == found["jaccard"]
    assert sum(module["shared_blocks"] for module in found["modules"]) == found["shared_blocks"] == shared


def test_random_adapters_overlap_as_by_chance(tmp_path: Path) -> None:
    found = [
        overlap(
            *(
                read_sparse(write_sparse(tmp_path / f"{i}-{side}", seed=100 * i + side, layers=8, k=9))
                for side in (1, 2)
            )
        )
        for i in range(8)
    ]
    assert np.mean([one["jaccard"] for one in found]) == pytest.approx(found[0]["jaccard_by_chance"], rel=0.12)


def test_adapters_of_one_draw_are_told_from_others(tmp_path: Path, pair: list[SparseAdapter]) -> None:
    """Training moves chosen scores alone; what neither chose betrays the seed."""
    from dataclasses import replace

    moved = []
    for module in pair[0].modules:
        scores = module.scores.copy()
        scores.reshape(-1)[module.positions] += 0.5
        moved.append(replace(module, scores=scores))
    trained = SparseAdapter("trained", tmp_path, pair[0].config, tuple(moved), ())
    assert overlap(pair[0], trained)["same_start"]
    assert not overlap(*pair)["same_start"]


def test_several_adapters_have_all_pairs(pair: list[SparseAdapter]) -> None:
    assert len(overlaps([*pair, pair[0]])) == 3
    assert overlaps(pair[:1]) == []


def test_the_sum_is_exact_and_its_blocks_are_the_top_k(pair: list[SparseAdapter], tmp_path: Path) -> None:
    made = compose(pair, tmp_path / "sum", [1.0, -0.5])
    whole = read_sparse(tmp_path / "sum")
    assert made["blocks"] == sum(module.k for module in whole.modules)
    for module in whole.modules:
        a, b = (adapter.by_name[module.name] for adapter in pair)
        assert module.chosen == a.chosen | b.chosen
        assert np.allclose(dense(module), dense(a) - 0.5 * dense(b), rtol=1e-5, atol=1e-7)
        flat = module.scores.reshape(-1)
        outside = np.delete(flat, module.positions)
        assert flat[module.positions].min() >= outside.max()
        assert flat[module.positions].min() >= 1e-3 * (1 - 1e-6)


def test_the_sum_of_adapters_on_different_modules(tmp_path: Path) -> None:
    a = read_sparse(write_sparse(tmp_path / "a", kinds=("q_proj",), k=3), "a")
    b = read_sparse(write_sparse(tmp_path / "b", kinds=("v_proj",), k=7), "b")
    with pytest.raises(UsageError, match="a and b adapt no module together"):
        overlap(a, b)
    compose([a, b], tmp_path / "sum")
    config = json.loads((tmp_path / "sum/adapter_config.json").read_text())
    assert sorted(config["k_pattern"].values()) == [3, 3, 7, 7]
    assert len(config["target_modules"]) == 4


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"n": 3, "m": 8, "k": 5}, UsageError, "into different blocks"),
        ({"base_model_name_or_path": "another"}, ProvenanceError, "different base models: another, base"),
        (
            {"extra": {"base_model.model.classifier.weight": np.zeros((2, 2), np.float32)}},
            UsageError,
            "modules that were trained whole",
        ),
    ],
)
def test_sums_that_are_refused(tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str) -> None:
    a = read_sparse(write_sparse(tmp_path / "a"))
    b = read_sparse(write_sparse(tmp_path / "b", **change))
    with pytest.raises(error, match=message):
        compose([a, b], tmp_path / "sum")
    assert not (tmp_path / "sum").exists()


def test_weights_and_folder_of_a_sum(pair: list[SparseAdapter], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2 adapters with 1 weights"):
        compose(pair, tmp_path / "sum", [1.0])
    with pytest.raises(UsageError, match="a sum of 1 adapters"):
        compose(pair[:1], tmp_path / "sum")
    with pytest.raises(UsageError, match="nothing is overwritten"):
        compose(pair, tmp_path)


def test_the_sum_computes_what_peft_computes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("peft")
    from peft import PeftModel, get_peft_model
    from tiny_models import tiny_model

    from plr.adapters.sparse.tuner import SparseConfig

    def fresh() -> Any:
        sizes = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 32, "num_attention_heads": 2}
        return tiny_model("llama", **sizes).double()

    folders = []
    for index, (k, names) in enumerate(((5, ["q_proj", "v_proj"]), (8, ["q_proj", "o_proj"]))):
        torch.manual_seed(index + 1)
        config = SparseConfig(n=4, m=6, k=k, alpha=1.0 + index, init_weights=False, target_modules=names)
        model: Any = get_peft_model(fresh(), config)
        folders.append(tmp_path / str(index))
        model.save_pretrained(folders[-1])
    compose([read_sparse(folder) for folder in folders], tmp_path / "sum", [1.0, 0.5])
    ids = torch.randint(0, 40, (2, 7))
    ours: Any = PeftModel.from_pretrained(fresh(), str(tmp_path / "sum"))
    theirs: Any = PeftModel.from_pretrained(fresh(), str(folders[0]), adapter_name="a")
    theirs.load_adapter(str(folders[1]), adapter_name="b")
    theirs.base_model.add_weighted_adapter(["a", "b"], [1.0, 0.5], "sum")
    theirs.set_adapter("sum")
    with torch.no_grad():
        logits = [model(input_ids=ids).logits for model in (ours.eval(), theirs.eval(), fresh())]
    assert torch.allclose(logits[0], logits[1], atol=1e-5)
    assert float((logits[0] - logits[2]).abs().max()) > 1e-2
