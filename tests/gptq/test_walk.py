"""The staged walk against plain layer-by-layer quantization, over architectures and widths."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plr.gptq import (
    GPTQError,
    GroupSizeError,
    HessianError,
    ModuleReport,
    PackedLinear,
    PackingError,
    WalkError,
    gptq_solve,
    quantize_model,
)
from plr.gptq.blocks import find_blocks, find_targets, is_linear, replace_module

from .conftest import ARCHITECTURES, make_batches, make_model


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits


def layer_by_layer(model: nn.Module, batches: list[dict[str, Tensor]], **options: Any) -> None:
    """The oracle: for each layer, run the whole model afresh, collect its inputs, solve it, go on."""
    for name, linear in find_targets(model, ("lm_head",)).items():
        rows: list[Tensor] = []

        def collect(_: nn.Module, args: tuple[Tensor], rows: list[Tensor] = rows) -> None:
            rows.append(args[0].reshape(-1, args[0].shape[-1]))

        handle = linear.register_forward_pre_hook(collect)
        for batch in batches:
            logits(model, batch)
        handle.remove()
        X = torch.cat(rows)
        solution = gptq_solve(linear.weight, 2 / X.shape[0] * X.t() @ X, **options)
        replace_module(model, name, PackedLinear.from_solution(solution, linear.bias, dtype=linear.weight.dtype))


@pytest.mark.parametrize("name", ["llama", "opt", "bert"])
def test_equals_quantizing_layer_by_layer_with_full_recomputation(name: str) -> None:
    """In float64 the two agree code for code: sharing and staging change nothing but the time."""
    batches, options = make_batches(), {"bits": 3, "group_size": 32}
    staged, plain = make_model(name).double(), make_model(name).double()
    quantize_model(staged, batches, **options)
    layer_by_layer(plain, batches, **options)
    difference = (logits(staged, batches[0]) - logits(plain, batches[0])).abs().max()
    codes = [(a.qweight, b.qweight) for a, b in zip(packed(staged), packed(plain), strict=True)]
    assert len(codes) == len(find_blocks_linears(name))
    # The Hessians are accumulated in float32: a tie may fall either way, in a handful of 2 x 64 x 64 .. codes.
    differing = sum((a != b).sum().item() for a, b in codes) / sum(a.numel() for a, _ in codes)
    assert differing < 0.01
    assert difference < 0.05 * logits(plain, batches[0]).abs().max()


def packed(model: nn.Module) -> list[PackedLinear]:
    return [m for m in model.modules() if isinstance(m, PackedLinear)]


def find_blocks_linears(name: str) -> dict[str, nn.Linear]:
    return find_targets(make_model(name), ("lm_head",))


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_architecture_is_quantized_in_place_with_less_error_than_rounding(name: str) -> None:
    model, batches = make_model(name), make_batches()
    targets, (_, blocks) = set(find_targets(model, ("lm_head",))), find_blocks(model)
    before = logits(model, batches[0])
    reports = quantize_model(model, batches, bits=4, group_size=32)
    assert {r.name for r in reports} == targets
    assert all(isinstance(model.get_submodule(n), PackedLinear) for n in targets)
    assert not any(is_linear(m) for m in blocks.modules())
    for r in reports:
        assert r.error is not None
        assert r.rtn_error is not None
        assert r.damp is not None
        assert 0 < r.error < r.rtn_error
        assert r.n_tokens == 3 * 4 * 24
    after = logits(model, batches[0])
    assert 0 < (after - before).norm() < 0.2 * before.norm()
    assert not model.training


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("method", ["gptq", "rtn"])
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_every_width_and_method(name: str, method: str, bits: int) -> None:
    model = make_model(name)
    reports = quantize_model(model, make_batches(), bits=bits, group_size=32, method=method, sym=False)
    assert all(layer.bits == bits for layer in packed(model))
    assert all((r.error == r.rtn_error) == (method == "rtn") for r in reports)


def test_wider_codes_are_closer_to_the_source() -> None:
    batches = make_batches()
    source = logits(make_model("llama"), batches[0])
    distances = []
    for bits in (2, 3, 4, 8):
        model = make_model("llama")
        quantize_model(model, batches, bits=bits, group_size=32)
        distances.append((logits(model, batches[0]) - source).norm().item())
    assert distances == sorted(distances, reverse=True)


def count_calls(model: nn.Module) -> Counter[str]:
    """Calls of each kind of module within the blocks, dense layers and packed ones alike."""
    calls: Counter[str] = Counter()
    original = torch.nn.functional.linear

    def counted(input: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        calls[f"linear {tuple(weight.shape)}"] += 1
        return original(input, weight, *rest)

    torch.nn.functional.linear = counted
    try:
        quantize_model(model, make_batches(), bits=4, group_size=32)
    finally:
        torch.nn.functional.linear = original
    return calls


def test_each_layer_is_applied_exactly_once_to_each_batch_and_the_head_never() -> None:
    calls = count_calls(make_model("llama"))
    layers, batches = 2, 3
    assert calls == {
        "linear (64, 64)": layers * batches * 2,  # q, o
        "linear (32, 64)": layers * batches * 2,  # k, v
        "linear (128, 64)": layers * batches * 2,  # gate, up
        "linear (64, 128)": layers * batches,  # down
    }


@pytest.mark.parametrize(
    ("name", "shared"),
    [
        ("llama", {"k_proj", "v_proj", "up_proj"}),
        ("gemma2", {"k_proj", "v_proj", "up_proj"}),
        ("opt", {"k_proj", "v_proj"}),
        ("bert", {"key", "value"}),
        ("gpt_neox", set()),
    ],
)
def test_layers_with_the_same_input_share_one_hessian(
    name: str, shared: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from plr.gptq import stage

    factored: list[str] = []
    original = stage.factor_with

    def counted(*args: Any, **kwargs: Any) -> Any:
        factored.append(kwargs["name"])
        return original(*args, **kwargs)

    monkeypatch.setattr(stage, "factor_with", counted)
    # OPT asks for q, k, v in an order of its own: the first one asked owns the Hessian.
    reports = quantize_model(make_model(name), make_batches(), bits=4, group_size=32)
    last = [r.name.rpartition(".")[2] for r in reports if r.shared_input]
    assert len(last) == 2 * len(shared)
    if name != "opt":
        assert set(last) == shared
    assert factored == [r.name for r in reports if not r.shared_input]


def test_an_input_changed_in_place_is_not_taken_for_the_same() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            x.mul_(2)
            return y + self.b(x)

    reports = quantize_model(stack(Block(), Block()), [{"x": torch.randn(4, 8, 32)}], bits=4, group_size=32)
    assert [r.shared_input for r in reports] == [False] * 4


def stack(*blocks: nn.Module) -> nn.Module:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(blocks)

        def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            for block in self.layers:
                x = block(x)
            return x

    return Stack()


@pytest.mark.parametrize("name", ["llama", "bert", "opt"])
def test_padding_does_not_change_the_result(name: str) -> None:
    """Two samples of unlike length: alone, and padded on the right to one batch."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 64, (2, 40), generator=generator)
    apart = [
        {"input_ids": ids[:1], "attention_mask": torch.ones(1, 40, dtype=torch.long)},
        {"input_ids": ids[1:, :25], "attention_mask": torch.ones(1, 25, dtype=torch.long)},
    ]
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[1, 25:] = 0
    together = [{"input_ids": ids * mask, "attention_mask": mask}]
    reports, models = [], []
    for batches in (apart, together):
        model = make_model(name)
        reports.append(quantize_model(model, batches, bits=4, group_size=32))
        models.append(model)
    assert all(r.n_tokens == 65 for run in reports for r in run)
    first = [run[0] for run in reports]
    assert first[0].error == pytest.approx(first[1].error, rel=1e-3)
    a, b = (logits(model, apart[0]) for model in models)
    assert (a - b).norm() < 0.02 * a.norm()
    # The padding would have mattered:
    model = make_model(name)
    spoilt = quantize_model(model, [{"input_ids": ids * mask}], bits=4, group_size=32)
    assert spoilt[0].n_tokens == 80


def test_training_mode_cache_and_requires_grad_are_as_before() -> None:
    model = make_model("opt").train()
    for p in model.parameters():
        p.requires_grad_(False)
    quantize_model(model, make_batches(), bits=4, group_size=32)
    assert model.training
    assert all(layer.training for layer in packed(model))
    assert model.config.use_cache is True
    assert not any(layer.bias.requires_grad for layer in packed(model) if layer.bias is not None)
    assert torch.is_grad_enabled()


def test_no_thread_is_started_and_autocast_is_off_again() -> None:
    before = threading.active_count()

    def look(done: int, total: int, report: ModuleReport) -> None:
        assert threading.active_count() == before
        assert not torch.is_autocast_enabled("cpu")  # the solver and the caller compute in float32

    batches = make_batches(n=5)
    quantize_model(make_model("llama"), batches, bits=4, group_size=32, forward_dtype=torch.bfloat16, on_progress=look)
    assert not torch.is_autocast_enabled("cpu")


def test_the_forward_dtype_reaches_every_batch_up_to_the_last_layer() -> None:
    """Autocast is shared by all batches of the thread: what one leaves must not be off for the others."""
    model, seen = make_model("llama"), []
    down = model.model.layers[-1].mlp.act_fn
    down.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    quantize_model(model, make_batches(n=4), bits=4, group_size=32, forward_dtype=torch.bfloat16)
    assert seen == [torch.bfloat16] * 4


def test_progress_is_told_after_each_layer() -> None:
    seen: list[tuple[int, int, str]] = []

    def note(done: int, total: int, report: ModuleReport) -> None:
        seen.append((done, total, report.name))

    reports = quantize_model(make_model("llama"), make_batches(), bits=4, group_size=32, on_progress=note)
    assert seen == [(i + 1, 14, r.name) for i, r in enumerate(reports)]


def test_rounding_needs_no_calibration() -> None:
    model = make_model("llama")
    reports = quantize_model(model, [], bits=4, group_size=32, method="rtn")
    assert len(reports) == len(packed(model)) == 14
    assert all(r.error is None and r.n_tokens == 0 for r in reports)


@pytest.mark.parametrize("pattern", ["down_proj", "model.layers.0.mlp.down_proj", "*.mlp.down_*", "mlp.down_proj"])
def test_skipped_layers_stay_dense(pattern: str) -> None:
    model = make_model("llama")
    quantize_model(model, make_batches(), bits=4, group_size=32, skip=(pattern,))
    assert type(model.model.layers[0].mlp.down_proj) is nn.Linear


def test_other_settings_reach_the_solver() -> None:
    model = make_model("llama")
    quantize_model(
        model, make_batches(), bits=2, group_size=-1, sym=False, desc_act=True, grid="mse", kernel="packed",
        damp_percent=0.1, block_size=32,
    )  # fmt: skip
    assert all(layer.scales.shape[0] == 1 and layer.kernel == "packed" for layer in packed(model))


def test_a_group_size_that_does_not_fit_is_an_error_before_any_work() -> None:
    model = make_model("llama")
    with pytest.raises(GroupSizeError, match=r"model\.layers\.0\.self_attn\.q_proj has in_features=64.*group_size=48"):
        quantize_model(model, make_batches(), bits=4, group_size=48)
    assert not packed(model)


def test_a_shape_that_three_bits_cannot_hold_is_an_error_before_any_work() -> None:
    model = make_model("llama", inner=112)
    with pytest.raises(PackingError, match=r"model\.layers\.0\.mlp\.gate_proj: out_features=112 at 3 bits"):
        quantize_model(model, make_batches(), bits=3, group_size=16)
    assert not packed(model)


def test_a_quantized_model_is_refused() -> None:
    model = make_model("llama")
    quantize_model(model, [], bits=4, group_size=32, method="rtn")
    with pytest.raises(WalkError, match="LlamaForCausalLM is quantized already"):
        quantize_model(model, make_batches(), bits=4, group_size=32)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(WalkError, match=r"Linear has no nn\.ModuleList"):
        quantize_model(nn.Linear(4, 4), make_batches(), bits=4, group_size=-1)


def test_skipping_everything_is_an_error() -> None:
    with pytest.raises(WalkError, match=r"All layers of model\.layers are skipped"):
        quantize_model(make_model("llama"), make_batches(), bits=4, group_size=32, skip=("*",))


def test_no_batches_is_an_error() -> None:
    with pytest.raises(WalkError, match="No calibration batches"):
        quantize_model(make_model("llama"), [], bits=4, group_size=32)


def test_an_unknown_method_is_an_error() -> None:
    with pytest.raises(GPTQError, match=r"method='awq'.*gptq, rtn"):
        quantize_model(make_model("llama"), make_batches(), bits=4, method="awq")


def test_a_layer_never_reached_is_named() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    batches = [{"x": torch.randn(4, 8, 32)}]
    with pytest.raises(WalkError, match=r"never reached layers\.0\.idle, layers\.1\.idle"):
        quantize_model(stack(Block(), Block()), batches, bits=4, group_size=32)
    quantize_model(stack(Block(), Block()), batches, bits=4, group_size=32, skip=("idle",))


@pytest.mark.parametrize("keep_reference", [True, False])
def test_a_layer_called_twice_is_named(keep_reference: bool) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice = nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            layer = self.twice
            x = layer(x)
            return layer(x) if keep_reference else self.twice(x)

    before = threading.active_count()
    with pytest.raises(WalkError, match=r"layers\.0\.twice was called more than once"):
        quantize_model(stack(Block()), [{"x": torch.randn(4, 8, 32)}], bits=4, group_size=32)
    assert threading.active_count() == before


def test_batches_that_take_different_ways_are_an_error() -> None:
    class Router(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            return self.left(x) if x.sum() > 0 else self.right(x)

    batches = [{"x": torch.ones(1, 2, 32)}, {"x": -torch.ones(1, 2, 32)}]
    with pytest.raises(WalkError, match=r"part ways: 2 of 2 wait, at layers\.0\.left, layers\.0\.right"):
        quantize_model(stack(Router()), batches, bits=4, group_size=32)


def test_padding_that_cannot_be_told_is_an_error() -> None:
    class Fold(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fold = nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            return self.fold(x.reshape(x.shape[0], -1, 64)).reshape(x.shape)

    mask = torch.ones(2, 8, dtype=torch.long)
    batch = {"x": torch.randn(2, 8, 32), "attention_mask": mask}
    quantize_model(stack(Fold()), [batch], bits=4, group_size=32)
    mask[0, 5:] = 0
    with pytest.raises(WalkError, match=r"layers\.0\.fold was called with 8 rows for a batch of 16 positions"):
        quantize_model(stack(Fold()), [batch], bits=4, group_size=32)


@pytest.mark.parametrize(
    ("mask", "message"),
    [(torch.zeros(2, 8), "is all padding"), (torch.zeros(2, 1, 8, 8), r"attention_mask of shape \(2, 1, 8, 8\)")],
)
def test_a_mask_that_is_no_mask_is_an_error(mask: Tensor, message: str) -> None:
    with pytest.raises(WalkError, match=message):
        quantize_model(
            make_model("llama"), [{"input_ids": torch.ones(2, 8), "attention_mask": mask}], bits=4, group_size=32
        )


def test_an_exception_in_the_model_comes_through_and_leaves_no_thread() -> None:
    model, before = make_model("llama"), threading.active_count()

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("in block 1")

    handle = model.model.layers[1].self_attn.register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError, match="in block 1"):
        quantize_model(model, make_batches(n=4), bits=4, group_size=32)
    assert threading.active_count() == before
    handle.remove()
    assert torch.isfinite(logits(model, make_batches()[0])).all()  # no gate left behind


def test_a_layer_that_cannot_be_solved_fails_with_its_name_and_rows_and_is_not_rounded() -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.fill_(torch.inf)
        model.model.layers[1].input_layernorm.weight.fill_(0)
    before = threading.active_count()
    with pytest.raises(
        HessianError, match=r"Hessian of model\.layers\.1\.self_attn\.q_proj is all zeros over 288 rows"
    ):
        quantize_model(model, make_batches(), bits=4, group_size=32)
    assert type(model.model.layers[1].self_attn.q_proj) is nn.Linear
    assert threading.active_count() == before
