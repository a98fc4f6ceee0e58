"""Numbers and pictures of a sparse adapter's block scores, against dense matrices, simulated draws and decoded pixels."""

from __future__ import annotations

import base64
import json
import re
import struct
import xml.etree.ElementTree as ET
import zlib
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from sparse_files import PREFIX, dense, write_adapter, write_sparse

from plr.adapters.sparse.reading import BlockModule, depth_rows, module_rows, read_sparse, sparse_adapters
from plr.core.specs import AdapterSpec, ModelRef, Source, TaskSpec, Train, TrainSpec
from plr.core.store import Store
from plr.errors import IntegrityError, UsageError
from plr.report.figures.blocks import blocks_figure
from plr.report.figures.svg import svg_whole


def _module(scores: Any, positions: list[int], *, std: float | None = 1.0) -> BlockModule:
    values = np.ones((len(positions), 1, 1))
    return BlockModule("layers.0.q", 0, "q", np.asarray(scores, dtype=float), values, np.array(positions), 1.0, std)


def _picture(svg: str) -> list[ET.Element]:
    return ET.fromstring(svg).findall(".//{http://www.w3.org/2000/svg}image")


def _pixels(image: ET.Element) -> Any:
    """Colour numbers of a 4-bit PNG, with every checksum tested."""
    data = base64.b64decode(image.attrib["href"].removeprefix("data:image/png;base64,"))
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + size
    width, height, depth, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (depth, colour, len(chunks[b"PLTE"])) == (4, 3, 48)
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), dtype=np.uint8).reshape(height, -1)
    assert not lines[:, 0].any()
    return np.stack([lines[:, 1:] >> 4, lines[:, 1:] & 15], axis=2).reshape(height, -1)[:, :width]


def test_reading_gives_the_tensors_in_the_order_of_the_layers(tmp_path: Path) -> None:
    adapter = read_sparse(write_sparse(tmp_path, layers=12, kinds=("v_proj", "q_proj")))
    assert [(m.layer, m.kind) for m in adapter.modules[:3]] == [(0, "q_proj"), (0, "v_proj"), (1, "q_proj")]
    assert [m.layer for m in adapter.modules[-2:]] == [11, 11]
    first = adapter.modules[0]
    assert (first.scores.shape, first.values.shape, first.k, first.alpha) == ((4, 6), (5, 2, 3), 5, 2.0)
    assert first.chosen == set(np.argsort(-first.scores.reshape(-1))[:5])
    assert adapter.others == ()


def test_bfloat16_is_read_exactly(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    write_sparse(tmp_path)
    values = torch.randn(5, 2, 3).bfloat16()
    key = f"{PREFIX}0.q_proj"
    scores = torch.arange(24.0).reshape(4, 6).bfloat16()
    tensors = {"sparse_scores": scores, "sparse_values": values, "sparse_positions": torch.arange(19, 24)}
    save_file({f"{key}.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "adapter_model.safetensors")
    module = read_sparse(tmp_path).modules[0]
    assert np.array_equal(module.values, values.double().numpy())
    assert np.array_equal(module.scores, scores.double().numpy())


def test_energy_is_the_sum_of_squares_of_the_dense_update(tmp_path: Path) -> None:
    adapter = read_sparse(write_sparse(tmp_path, alpha=3.0))
    squares = [float((dense(module) ** 2).sum()) for module in adapter.modules]
    assert [module.energy for module in adapter.modules] == pytest.approx(squares)
    assert [row["energy_share"] for row in module_rows(adapter)] == pytest.approx([s / sum(squares) for s in squares])


def test_wanted_counts_the_blocks_above_the_level_of_k_draws() -> None:
    scores = np.full((4, 5), -1.0)
    level = NormalDist(0, 2.0).inv_cdf(1 - 3 / 20)
    scores.flat[:7] = level + 0.01 * np.arange(7, 0, -1)
    scores.flat[7] = level - 0.01
    module = _module(scores, [0, 1, 2], std=2.0)
    assert module.level == pytest.approx(level)
    assert (module.wanted, module.threshold, module.bar) == (
        7,
        pytest.approx(level + 0.05),
        pytest.approx(level + 0.04),
    )
    assert module.restless  # 7 are more than 3 + 2 sqrt(3 * 0.85) = 6.2
    scores.flat[:2] = -1.0
    assert not _module(scores, [2, 3, 4], std=2.0).restless
    assert _module(scores, [0, 1, 2], std=None).wanted is None


def test_fresh_scores_are_not_restless_on_the_whole() -> None:
    rng = np.random.default_rng(3)
    found = []
    for _ in range(200):
        scores = rng.normal(0, 0.5, (16, 16))
        found.append(_module(scores, list(np.argsort(-scores.reshape(-1))[:12]), std=0.5))
    assert np.mean([module.wanted for module in found]) == pytest.approx(12, abs=0.8)
    assert np.mean([module.restless for module in found]) < 0.1


@pytest.mark.parametrize("falls", [0, 10, 40])
def test_tried_estimates_how_many_blocks_had_a_slot(falls: int) -> None:
    """Scores move inside the k alone: a chosen block falls just below the bar, and the best outside comes in."""
    estimates, truths = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        flat = rng.normal(0, 1.0, 600)
        chosen = list(np.argsort(-flat)[:20])
        had = set(chosen)
        for _ in range(falls):
            outside = np.setdiff1d(np.arange(600), chosen)
            best = outside[np.argmax(flat[outside])]
            fallen = chosen.pop(int(rng.integers(20)))
            flat[fallen] = flat[best] - 0.001 - 0.2 * rng.random()
            chosen.append(best)
            had.add(best)
        estimates.append(_module(flat.reshape(20, 30), [int(c) for c in chosen]).tried)
        truths.append(len(had))
    assert np.mean([float(e or 0) for e in estimates]) == pytest.approx(np.mean(truths), abs=3.5)


def test_scores_that_began_half_normal() -> None:
    scores = np.abs(np.random.default_rng(0).normal(0, 1.0, (40, 40)))
    module = _module(scores, list(np.argsort(-scores.reshape(-1))[:1000]))
    assert module.wanted == pytest.approx(1000, abs=60)


def test_every_block_chosen() -> None:
    module = _module([[1.0, 2.0]], [0, 1])
    assert (module.level, module.bar, module.wanted, module.tried, module.restless) == (None, None, None, None, False)


def test_depth_rows_sum_up_thirds(tmp_path: Path) -> None:
    rows = module_rows(read_sparse(write_sparse(tmp_path, layers=6)))
    depths = depth_rows(rows)
    assert [(row["kind"], row["depth"], row["modules"]) for row in depths[:3]] == [
        ("q_proj", "near the input", 2),
        ("q_proj", "middle", 2),
        ("q_proj", "near the output", 2),
    ]
    assert sum(row["energy_share"] for row in depths) == pytest.approx(1)
    assert depths[0]["wanted"] == (rows[0]["wanted"] + rows[2]["wanted"]) / 2
    assert [row["depth"] for row in depth_rows(rows[:2])] == ["near the input", "near the input"]


def test_what_is_no_sparse_adapter(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no adapter"):
        read_sparse(tmp_path / "nothing")
    lora = write_adapter(tmp_path / "lora", {"x": np.zeros(1)}, {"peft_type": "LORA"})
    with pytest.raises(UsageError, match="of the method lora: it has no blocks"):
        read_sparse(lora)
    broken = write_sparse(tmp_path / "broken")
    (broken / "adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(UsageError, match="holds no adapter that can be read"):
        read_sparse(broken)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("sparse_positions", None, "has no base_model"),
        ("sparse_positions", np.array([0, 1, 2, 3, 24]), "do not fit together"),
        ("sparse_positions", np.array([0, 1, 2, 3, 3]), "names a block twice"),
        ("sparse_values", np.zeros((4, 2, 3), np.float32), "do not fit together"),
        ("sparse_scores", np.full((4, 6), np.nan, np.float32), "not finite"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path: Path, part: str, value: Any, message: str) -> None:
    from safetensors.numpy import load_file

    write_sparse(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    key = f"{PREFIX}1.self_attn.q_proj.{part}"
    tensors = {name: tensor for name, tensor in tensors.items() if name != key} | (
        {} if value is None else {key: value}
    )
    write_adapter(tmp_path, tensors, json.loads((tmp_path / "adapter_config.json").read_text()))
    with pytest.raises(IntegrityError, match=message):
        read_sparse(tmp_path)


def test_the_picture_shows_every_score(tmp_path: Path) -> None:
    adapter = read_sparse(write_sparse(tmp_path, layers=3))
    svg = svg_whole(blocks_figure(adapter, "a < b"))
    images = _picture(svg)
    assert len(images) == len(adapter.modules)
    low, high = min(m.scores.min() for m in adapter.modules), max(m.scores.max() for m in adapter.modules)
    for module, image in zip(adapter.modules, images, strict=True):
        pixels = _pixels(image)
        cell = pixels.shape[0] // 4
        assert pixels.shape == (4 * cell, 6 * cell)
        assert (float(image.attrib["height"]), float(image.attrib["width"])) == pixels.shape
        expected = np.minimum(15, (16 * (module.scores - low) / (high - low)).astype(int))
        assert np.array_equal(pixels[::cell, ::cell], expected)
        assert np.array_equal(pixels[cell - 1 :: cell, cell - 1 :: cell], expected)


def test_the_chosen_blocks_are_outlined_where_they_lie(tmp_path: Path) -> None:
    adapter = read_sparse(write_sparse(tmp_path, layers=1, kinds=("q_proj",)))
    svg = svg_whole(blocks_figure(adapter))
    image = _picture(svg)[0]
    x0, y0, cell = float(image.attrib["x"]), float(image.attrib["y"]), float(image.attrib["width"]) / 6
    path = re.search(r'<path class="chosen" d="([^"]+)"', svg)
    assert path
    corners = [tuple(map(float, pair)) for pair in re.findall(r"M([\d.]+) ([\d.]+)h", path[1])]
    places = {round((y - y0) // cell * 6 + (x - x0) // cell) for x, y in corners}
    assert places == adapter.modules[0].chosen


def test_modules_of_different_shapes_and_several_of_a_kind_do_not_overlap(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors: dict[str, Any] = {}
    for name, (n, m) in {
        "layers.0.experts.0.up_proj": (4, 2),
        "layers.0.experts.1.up_proj": (4, 2),
        "head": (2, 8),
    }.items():
        parts = {"scores": rng.normal(size=(n, m)), "values": np.zeros((1, 1, 1)), "positions": np.array([3])}
        tensors |= {f"base_model.model.{name}.sparse_{part}": array for part, array in parts.items()}
    adapter = read_sparse(write_adapter(tmp_path, tensors, {"peft_type": "SPARSE"}))
    assert adapter.modules[0].wanted is None
    assert adapter.energy == 0
    corners = {(image.attrib["x"], image.attrib["y"]) for image in _picture(svg_whole(blocks_figure(adapter)))}
    assert len(corners) == 3


def test_equal_scores_have_a_picture() -> None:
    from plr.adapters.sparse.reading import SparseAdapter

    module = _module(np.ones((2, 2)), [0])
    assert len(_picture(svg_whole(blocks_figure(SparseAdapter("a", Path(), {}, (module,), ()))))) == 1


def test_styles_of_a_picture_hold_in_it_alone(tmp_path: Path) -> None:
    svg = svg_whole(blocks_figure(read_sparse(write_sparse(tmp_path))), "here")
    style = svg[svg.index("<style>") + 7 : svg.index("</style>")]
    for line in style.strip().splitlines():
        assert line.startswith(("svg.here", "@media", "}"))


def test_sparse_adapters_of_a_study(tmp_path: Path) -> None:
    source = Source(model=ModelRef(kind="local", name="m", revision="0"))
    task = TaskSpec(name="t", version=1)
    steps = [
        Train(base=source, task=task, adapter=AdapterSpec(method=method), train=TrainSpec(seed=seed))
        for method, seed in (("lora", 0), ("sparse", 0), ("sparse", 1))
    ]
    store = Store(tmp_path)
    for step in steps[:2]:
        store.make(step, lambda folder: {"path": str(write_sparse(folder))})
    assert [adapter.name for adapter in sparse_adapters([source, *steps], store)] == [steps[1].label]
