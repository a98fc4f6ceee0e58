"""The sparse adapter does what PEFT's own methods do: save, load, combine, mix, compile, checkpoint, copy."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from tiny_models import rounded, tiny_model
from torch import Tensor, nn

from plr.adapters.sparse.layer import SparseLayer
from plr.adapters.sparse.tuner import SPARSE, SparseConfig, SparseConfigError
from plr.errors import IntegrityError, PlrError

IDS = torch.arange(3, 35).view(2, 16)
WHERE = ["q_proj", "v_proj"]
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def llama(dtype: torch.dtype = torch.float32, bits: int = 16) -> Any:
    return rounded(tiny_model("llama", seed=1, num_key_value_heads=2).to(dtype), bits, group_size=32)


def config(**settings: Any) -> SparseConfig:
    whole = {
        "n": 4,
        "m": 8,
        "k": 5,
        "target_modules": WHERE,
        "init_weights": False,
        "task_type": "CAUSAL_LM",
        **settings,
    }
    return SparseConfig(**whole)


def attached(base: Any = None, **settings: Any) -> Any:
    torch.manual_seed(2)
    return get_peft_model(llama() if base is None else base, config(**settings)).eval()


def train(model: Any, steps: int = 3, lr: float = 0.05) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = []
    model.train()
    for _ in range(steps):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


@torch.no_grad()
def logits(model: Any, **more: Any) -> Tensor:
    return model(input_ids=IDS, **more).logits


def layers(model: Any) -> dict[str, SparseLayer]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, SparseLayer)}


# -- configuration --


def test_peft_knows_the_method() -> None:
    assert SPARSE == "SPARSE"
    assert peft.PEFT_TYPE_TO_CONFIG_MAPPING[SPARSE] is SparseConfig
    assert config().peft_type is SPARSE


def test_presets_of_the_paper() -> None:
    a, b = SparseConfig.roberta(), SparseConfig.llama3_8b(target_modules=["q_proj"])
    assert (a.n, a.m, a.k, a.alpha) == (24, 32, 15, 1.0)
    assert (b.n, b.m, b.k, b.alpha, b.target_modules) == (64, 64, 50, 2.0, {"q_proj"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "n = 0"),
        ({"m": 2.5}, "m = 2.5"),
        ({"k": True}, "k = True"),
        ({"budget": 0}, "budget = 0"),
        ({"alpha": -1.0}, "alpha = -1.0"),
        ({"k_ramp": 0}, "k_ramp = 0"),
        ({"init_std": float("nan")}, "init_std = nan"),
        ({"k_pattern": {"q_proj": 0}}, r"k_pattern\['q_proj'\] = 0"),
        ({"bias": "lora_only"}, "bias = 'lora_only'"),
        ({"target_modules": "q", "layers_to_transform": [1]}, "layers_to_transform"),
        ({"layers_pattern": "layers"}, "layers_to_transform` must also be specified"),
    ],
)
def test_values_out_of_range_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SparseConfigError, match=message):
        config(**settings)


def test_a_grid_that_does_not_divide_names_the_module_and_touches_nothing() -> None:
    model = llama()
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj has a weight of 32 x 32 .* n = 5") as caught:
        get_peft_model(model, config(n=5))
    assert isinstance(caught.value, PlrError)
    assert layers(model) == {}


def test_k_pattern_ramp_and_budget_reach_the_layers() -> None:
    found = [len(layer.positions("default")) for layer in layers(attached(k_pattern={r"layers\.1\..*": 9})).values()]
    assert found == [5, 5, 9, 9]
    found = [len(layer.positions("default")) for layer in layers(attached(k=8, k_ramp=3.0)).values()]
    assert found == [4, 4, 12, 12]
    model = attached(budget=600, k_ramp=2.0)
    assert 600 - 8 * 4 < model.get_nb_trainable_parameters()[0] <= 600


def test_where_it_goes() -> None:
    assert len(layers(attached(target_modules="all-linear"))) == 14
    assert len(layers(attached(target_modules=r".*\.1\..*(q|k)_proj"))) == 2
    assert len(layers(attached(layers_to_transform=[1]))) == 2
    assert len(layers(attached(exclude_modules=["layers.0.self_attn.q_proj"]))) == 3
    assert len(layers(attached(target_modules=None))) == 4  # where PEFT puts LoRA


# -- saving and loading --


def test_saved_and_loaded_logits_are_bit_equal(tmp_path: Path) -> None:
    model = attached(k_ramp=3.0, k=8, init_weights=True)
    losses = train(model, 6)
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    stem = "base_model.model.model.layers.1.self_attn.q_proj.sparse_"
    assert saved[f"{stem}positions"].dtype == torch.int64
    assert {name: tuple(saved[stem + name].shape) for name in ("scores", "values", "positions")} == {
        "scores": (4, 8),
        "values": (12, 8, 4),
        "positions": (12,),
    }
    assert type(PeftConfig.from_pretrained(str(tmp_path))) is SparseConfig
    for low in (False, True):
        again = PeftModel.from_pretrained(llama(), str(tmp_path), low_cpu_mem_usage=low).eval()
        assert torch.equal(logits(again), logits(model))
        assert not any(t.is_meta for t in again.state_dict().values())


def test_a_second_adapter_of_another_shape_beside_the_first(tmp_path: Path) -> None:
    model = attached()
    torch.manual_seed(5)
    model.add_adapter("other", config(n=2, m=4, k=3, alpha=2.0, target_modules=["k_proj", "v_proj"]))
    first = logits(model)
    model.set_adapter("other")
    second = logits(model)
    assert not torch.equal(first, second)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(llama(), str(tmp_path / "other"), adapter_name="b")
    again.load_adapter(str(tmp_path), adapter_name="a")
    assert torch.equal(logits(again.eval()), second)
    again.set_adapter("a")
    assert torch.equal(logits(again), first)


def test_training_goes_on_after_loading_as_if_it_had_not_been_saved(tmp_path: Path) -> None:
    model = attached(init_weights=True, k=8)
    train(model, 3, lr=0.3)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(llama(), str(tmp_path), is_trainable=True)
    assert train(model, 4, lr=0.3) == train(again, 4, lr=0.3)
    for a, b in zip(layers(model).values(), layers(again).values(), strict=True):
        assert torch.equal(a.positions("default"), b.positions("default"))


@pytest.mark.parametrize("positions", [[0, 1, 2, 3, 3], [0, 1, 2, 3, 32], [-1, 0, 1, 2, 3]])
def test_a_file_that_names_no_k_blocks_is_refused(positions: list[int]) -> None:
    model = attached()
    state = get_peft_model_state_dict(model)
    key = next(key for key in state if key.endswith("v_proj.sparse_positions"))
    state[key] = torch.tensor(positions)
    with pytest.raises(IntegrityError, match=r"v_proj\.sparse_positions .* does not name 5 different blocks"):
        set_peft_model_state_dict(model, state)


def test_shapes_can_be_worked_out_without_memory() -> None:
    with torch.device("meta"):
        model = get_peft_model(llama(), config())
        shown = model.train()(input_ids=torch.zeros(2, 7, dtype=torch.long)).logits
        assert shown.shape == (2, 7, 64)
        shown.sum().backward()


def test_state_dict_round_trip_swaps_in_place() -> None:
    model, other = attached(), llama()
    torch.manual_seed(7)
    other = get_peft_model(other, config()).eval()
    state = get_peft_model_state_dict(other)
    assert len(state) == 3 * 4
    assert not torch.equal(logits(model), logits(other))
    result = set_peft_model_state_dict(model, state)
    assert result.unexpected_keys == []
    assert torch.equal(logits(model), logits(other))


def test_hotswap_of_peft_refuses_the_method_by_name(tmp_path: Path) -> None:
    from peft.utils.hotswap import hotswap_adapter

    model = attached()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"Hotswapping only supports .* SPARSE was passed"):
        hotswap_adapter(model, str(tmp_path), adapter_name="default", torch_device="cpu")


def test_injected_by_the_names_of_a_state_dict() -> None:
    state = get_peft_model_state_dict(attached())
    state = {key.removeprefix("base_model.model."): value for key, value in state.items()}
    model = peft.inject_adapter_in_model(config(target_modules=WHERE), llama(), state_dict=state)
    assert len(layers(model)) == 4
    with pytest.raises(SparseConfigError, match="its share of k is not known"):
        peft.inject_adapter_in_model(config(target_modules=["o_proj"], budget=900), llama(), state_dict=state)


# -- several adapters --


def test_a_name_that_a_dictionary_cannot_hold_is_refused() -> None:
    model = attached()
    for name in ("copy", "values"):
        with pytest.raises(ValueError, match=f"an adapter cannot be called '{name}'"):
            model.add_adapter(name, config())


def test_disable_delete_and_unload_give_the_base_back() -> None:
    base = logits(llama())
    model = attached()
    model.add_adapter("other", config(k=2))
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    changed = logits(model)
    model.delete_adapter("other")
    assert torch.equal(logits(model), changed)
    assert not any("other" in key for key in model.state_dict())
    assert torch.equal(logits(model.unload()), base)


def test_adapters_active_together_add_up() -> None:
    model = attached()
    model.add_adapter("other", config(k=3))
    layer = next(iter(layers(model).values()))
    x = torch.randn(3, 32)
    parts = []
    for names in ("default", "other", ["default", "other"]):
        model.base_model.set_adapter(names)
        parts.append(layer(x) - layer.base_layer(x))
    torch.testing.assert_close(parts[0] + parts[1], parts[2])


@pytest.mark.parametrize("safe", [False, True])
def test_merged_base_computes_the_same_without_the_adapter(safe: bool) -> None:
    model = attached()
    expected = logits(model)
    merged = model.merge_and_unload(safe_merge=safe)
    assert layers(merged) == {}
    torch.testing.assert_close(logits(merged), expected, rtol=1e-5, atol=1e-5)


def test_merge_and_unmerge_of_the_model_restores_it_bit_by_bit() -> None:
    model = attached()
    before, expected = copy.deepcopy(model.state_dict()), logits(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    model.unmerge_adapter()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_each_row_with_its_own_adapter() -> None:
    model = attached()
    model.add_adapter("other", config(n=2, k=2, target_modules=["q_proj", "up_proj"]))
    ids = torch.randint(3, 60, (6, 8), generator=torch.Generator().manual_seed(0))
    names = ["__base__", "default", "other"] * 2
    with torch.no_grad():
        mixed = model(input_ids=ids, adapter_names=names).logits
        for name in ("default", "other"):
            model.set_adapter(name)
            alone = model(input_ids=ids).logits
            rows = [i for i, other in enumerate(names) if other == name]
            torch.testing.assert_close(mixed[rows], alone[rows])
        with model.disable_adapter():
            torch.testing.assert_close(mixed[::3], model(input_ids=ids).logits[::3])
        one = model.generate(input_ids=ids[:2], adapter_names=["default", "other"], max_new_tokens=2, num_beams=2)
    assert len(one) == 2
    with pytest.raises(ValueError, match="non-existing adapter"):
        model(input_ids=ids, adapter_names=["nobody"] * 6)
    with pytest.raises(ValueError, match="Length of `adapter_names`"):
        model(input_ids=ids, adapter_names=["default"])
    with pytest.raises(ValueError, match="training mode"):
        model.train()(input_ids=ids, adapter_names=names)


# -- weighted sums --


def test_weighted_adapter_is_the_sum_of_the_updates_on_the_union_of_blocks(tmp_path: Path) -> None:
    model = attached(alpha=2.0)
    model.add_adapter("b", config(k=7, alpha=0.5, target_modules=["v_proj", "o_proj"]))
    model.add_weighted_adapter(["default", "b"], [0.7, -1.3], "sum")
    ks = {}
    for name, layer in layers(model).items():
        parts = [(a, w) for a, w in (("default", 0.7), ("b", -1.3)) if a in layer.sparse_values]
        expected = sum(w * layer.get_delta_weight(a) for a, w in parts)
        torch.testing.assert_close(layer.get_delta_weight("sum"), expected, rtol=1e-5, atol=1e-6)
        union = {p for a, _ in parts for p in layer.positions(a).tolist()}
        assert set(layer.positions("sum").tolist()) == union
        flat = layer.sparse_scores["sum"].flatten()
        assert float(flat[list(union)].min()) > 0
        assert float(flat.topk(len(union)).values[-1]) == float(flat[list(union)].min())  # still the top k
        ks[name.removeprefix("base_model.model.")] = len(union)
    model.set_adapter("sum")
    expected, positions = logits(model), [layer.positions("sum").clone() for layer in layers(model).values()]
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    again = PeftModel.from_pretrained(llama(), str(tmp_path / "sum")).eval()
    assert torch.equal(logits(again), expected)
    assert {
        n.removeprefix("base_model.model."): len(layer.positions("default")) for n, layer in layers(again).items()
    } == ks
    model.train()(input_ids=IDS)
    assert all(
        torch.equal(p, layer.positions("sum")) for p, layer in zip(positions, layers(model).values(), strict=True)
    )


def test_weighted_adapter_of_one_is_that_one() -> None:
    model = attached()
    model.add_weighted_adapter(["default"], [1.0], "twin")
    expected = logits(model)
    model.set_adapter("twin")
    torch.testing.assert_close(logits(model), expected)


def test_sums_that_are_not_defined_are_refused() -> None:
    model = attached()
    model.add_adapter("coarse", config(n=2))
    model.add_adapter("head", config(modules_to_save=["lm_head"]))
    for names, weights, kind, message in [
        (["default", "coarse"], [1, 1], "linear", "different blocks"),
        (["default"], [1, 1], "linear", "1 adapters and 2 weights"),
        (["default"], [1], "svd", "Invalid combination_type: svd"),
        (["nobody"], [1], "linear", "Adapter nobody does not exist"),
        (["default", "head"], [1, 1], "linear", "modules_to_save cannot be combined"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.add_weighted_adapter(names, weights, "new", combination_type=kind)
    with pytest.raises(ValueError, match="Adapter coarse already exists"):
        model.add_weighted_adapter(["default"], [1.0], "coarse")
    assert list(model.peft_config) == ["default", "coarse", "head"]


# -- dtypes and bases --


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("upcast", [True, False])
def test_half_precision_base(dtype: torch.dtype, upcast: bool) -> None:
    torch.manual_seed(2)
    model = get_peft_model(llama(dtype), config(), autocast_adapter_dtype=upcast)
    kinds = {p.dtype for p in model.parameters() if p.requires_grad}
    assert kinds == {torch.float32 if upcast else dtype}
    assert all(layer.positions("default").dtype == torch.int64 for layer in layers(model).values())
    assert logits(model).dtype == dtype
    model.train()(input_ids=IDS, labels=IDS).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.dtype == parameter.dtype, name
            assert bool(parameter.grad.isfinite().all()), name
            assert float(parameter.grad.abs().max()) > 0, name
    if upcast:
        losses = train(model, 3, lr=0.01)
        assert losses[-1] < losses[0]


def test_trains_under_autocast() -> None:
    model = attached(init_weights=True)
    with torch.autocast("cpu", torch.bfloat16):
        losses = train(model, 4)
    assert losses[-1] < losses[0]
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("kernel", ["dequantized", "packed"])
def test_on_a_k_bit_base_it_trains_and_refuses_to_merge(kernel: str, tmp_path: Path) -> None:
    base = llama(bits=4)
    for module in base.modules():
        if hasattr(module, "kernel"):
            module.kernel = kernel
    model = attached(base, init_weights=True)
    losses = train(model, 4)
    assert losses[-1] < losses[0]
    with pytest.raises(TypeError, match="cannot be merged into a PackedLinear"):
        model.merge_adapter()
    model.save_pretrained(tmp_path)
    on_16 = PeftModel.from_pretrained(llama(), str(tmp_path)).eval()
    dense = llama(bits=4)
    assert (
        torch.equal(logits(PeftModel.from_pretrained(dense, str(tmp_path)).eval()), logits(model)) or kernel == "packed"
    )
    assert not torch.equal(logits(on_16), logits(model))


def test_gpt2_whose_layers_are_conv1d(tmp_path: Path) -> None:
    def gpt2() -> Any:
        return tiny_model("gpt2", seed=1, intermediate_size=128)

    model = attached(gpt2(), target_modules=["c_attn", "c_fc"])
    assert train(model, 4)[-1] < train(model, 1)[0] + 1
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(gpt2(), str(tmp_path)).eval()), logits(model))
    expected = logits(model)
    torch.testing.assert_close(logits(model.merge_and_unload()), expected, rtol=1e-4, atol=1e-4)


def test_classification_trains_and_saves_its_head(tmp_path: Path) -> None:
    def bert() -> Any:
        sizes = {"hidden_size": 96, "intermediate_size": 96, "max_position_embeddings": 40}
        return tiny_model("roberta", seed=1, **sizes, num_labels=3)

    torch.manual_seed(2)
    settings = SparseConfig.roberta(target_modules=["query", "value"], task_type=TaskType.SEQ_CLS)
    model = get_peft_model(bert(), settings)
    classes = torch.tensor([0, 2])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(4):
        loss = model(input_ids=IDS, labels=classes).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    model.eval().save_pretrained(tmp_path)
    assert any("classifier" in key for key in load_file(tmp_path / "adapter_model.safetensors"))
    again = PeftModel.from_pretrained(bert(), str(tmp_path)).eval()
    assert torch.equal(logits(again), logits(model))


def test_modules_to_save_are_trained_and_saved(tmp_path: Path) -> None:
    model = attached(modules_to_save=["lm_head"], init_weights=True)
    train(model, 2)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(llama(), str(tmp_path)).eval()
    assert torch.equal(logits(again), logits(model))
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(llama()))


# -- gradients, compilation, copies --


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_equal_gradients_also_when_the_selection_moves(reentrant: bool) -> None:
    found = []
    for checkpointing in (False, True):
        model = attached()
        for layer in layers(model).values():
            with torch.no_grad():
                layer.sparse_scores["default"].view(-1)[layer.positions("default")[1]] = -5.0
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model.train()(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
        found[-1]["positions"] = torch.stack([layer.positions("default") for layer in layers(model).values()])
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], msg=name)


def test_compiled_without_a_graph_break_in_eval_and_in_training() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(12, 16), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu())

    def made() -> Any:
        torch.manual_seed(0)
        return get_peft_model(Two(), SparseConfig(n=4, m=4, k=3, target_modules=["a", "b"], init_weights=False))

    x, eager, compiled = torch.randn(6, 12), made(), made()
    run = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(x), eager(x))
    compiled.eval()
    eager.eval()
    with torch.no_grad():
        torch.testing.assert_close(run(x), eager(x))
    compiled.train()
    eager.train()
    optimizers = [torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.5) for m in (eager, compiled)]
    for _ in range(3):
        for model, optimizer, call in zip((eager, compiled), optimizers, (eager, run), strict=True):
            call(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            for layer in layers(model).values():
                with torch.no_grad():
                    layer.sparse_scores["default"].view(-1)[layer.positions("default")[0]] = -1.0
    torch.testing.assert_close(run(x), eager(x))
    for a, b in zip(layers(eager).values(), layers(compiled).values(), strict=True):
        assert torch.equal(a.positions("default"), b.positions("default"))


def test_copies_are_whole_and_apart() -> None:
    model = attached()
    expected = logits(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(other), expected)
        train(other, 2)
        assert torch.equal(logits(model), expected)


def test_only_the_adapter_is_trained() -> None:
    model = attached()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, 2)
    for name, parameter in model.named_parameters():
        assert torch.equal(before[name], parameter) == ("sparse_" not in name)
