"""The table: every method by name, with its whole default configuration and what it is.

The keys written here are the method's identity: they are hashed, and no default of a library stands behind them. Start
values are chosen so that a fresh adapter changes nothing wherever the method allows it, because the same adapter is put on
other bases later. A name that is not here but known to PEFT is found too, see `plr.adapters.known`.

`learning_rate` is relative to LoRA's on the same base. It was found on the embedded base at 16 bits: tiny_math, 30 steps of 8
rows, AdamW, linear decay, LoRA at 6e-3, factors in steps of about three, seed 0; taken is the best held-out loss or a little below
it (a short run likes a higher rate than a long one). At 4 bits, 60 steps at these rates end at 0.19 to 0.40 nats a token where LoRA
ends at 0.23 (prompt tuning: 1.15, from 3.5). One model and one seed: a start for a search, not its end.
"""

from __future__ import annotations

from typing import TypedDict, Unpack

from plr.adapters.adalora import AdaLora
from plr.adapters.base import AdapterMethod, Family, Kind, Properties, Settings, adapters
from plr.adapters.full import FullMethod
from plr.adapters.known import OtherPeftMethod, peft_names
from plr.adapters.llama_adapter import LlamaAdapter
from plr.adapters.lora import Lora
from plr.adapters.peft import PeftMethod
from plr.adapters.relora.relora import ReLoraMethod
from plr.adapters.sparse.method import Sparse
from plr.adapters.targets import ATTENTION

__all__: list[str] = []

WHERE: Settings = {"target_modules": list(ATTENTION)}
LORA: Settings = {
    "r": 16,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "bias": "none",
    "use_rslora": False,
    "use_dora": False,
    "init_lora_weights": True,
    **WHERE,
}
BOTTLENECK: Settings = {"bottleneck_size": 64, "non_linearity": "gelu", "scaling": 1.0, "dropout": 0.0}
VIRTUAL: Settings = {"num_virtual_tokens": 20}


class _Properties(TypedDict, total=False):
    """Those of `Properties` that differ from LoRA's."""

    family: Family
    merges: bool
    learning_rate: float
    kinds: tuple[Kind, ...]
    quantized: bool


def _peft(
    name: str,
    config_class: str,
    config: Settings,
    summary: str,
    source: str,
    *,
    made_by: type[PeftMethod] = PeftMethod,
    module: str = "peft",
    updates: str | None = None,
    state: tuple[str, ...] = (),
    **properties: Unpack[_Properties],
) -> None:
    """Make one row of the table; `properties` are those of `Properties` that differ from LoRA's."""
    properties.setdefault("family", "reparameterization")
    described = Properties(summary=summary, source=source, **properties)
    adapters.register(name)(made_by(config_class, config, described, module, updates=updates, state=state))


# Low rank.

_peft(
    "lora",
    "LoraConfig",
    LORA,
    "a low-rank update BA beside each layer",
    "Hu et al. 2021, LoRA (arXiv:2106.09685)",
    made_by=Lora,
)
_peft(
    "rslora",
    "LoraConfig",
    LORA | {"use_rslora": True},
    "LoRA scaled by alpha / sqrt(r), so that high ranks learn",
    "Kalajdzievski 2023, rsLoRA (arXiv:2312.03732)",
    learning_rate=0.5,
    made_by=Lora,
)
_peft(
    "dora",
    "LoraConfig",
    LORA | {"use_dora": True},
    "LoRA on the direction of each weight row, a magnitude beside it",
    "Liu et al. 2024, DoRA (arXiv:2402.09353)",
    made_by=Lora,
)
_peft(
    "pissa",
    "LoraConfig",
    LORA | {"init_lora_weights": "pissa_niter_16"},
    "LoRA that starts at the weight's first singular vectors; saved as the update alone",
    "Meng et al. 2024, PiSSA (arXiv:2404.02948)",
    quantized=False,
    made_by=Lora,
)
adapters.register("relora")(ReLoraMethod())
_peft(
    "adalora",
    "AdaLoraConfig",
    {
        "init_r": 24,
        "target_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
        "tinit": 0.1,
        "tfinal": 0.3,
        "deltaT": 1,
        "beta1": 0.85,
        "beta2": 0.85,
        "orth_reg_weight": 0.5,
    }
    | WHERE,
    "LoRA as an SVD that gives up the ranks that matter least",
    "Zhang et al. 2023, AdaLoRA (arXiv:2303.10512)",
    learning_rate=5.0,
    made_by=AdaLora,
)
_peft(
    "vera",
    "VeraConfig",
    {
        "r": 256,
        "projection_prng_key": 0,
        "save_projection": True,
        "vera_dropout": 0.0,
        "d_initial": 0.1,
        "bias": "none",
        "init_weights": True,
    }
    | WHERE,
    "two frozen random matrices for all layers, scaling vectors trained",
    "Kopiczko et al. 2023, VeRA (arXiv:2310.11454)",
    learning_rate=20.0,
)
_peft(
    "randlora",
    "RandLoraConfig",
    {
        "r": 32,
        "randlora_alpha": 640,
        "randlora_dropout": 0.0,
        "projection_prng_key": 0,
        "save_projection": True,
        "sparse": False,
        "very_sparse": False,
        "bias": "none",
        "init_weights": True,
    }
    | WHERE,
    "a full-rank sum of random low-rank matrices with trained scales",
    "Albert et al. 2025, RandLoRA (arXiv:2502.00987)",
    learning_rate=0.5,
)
_peft(
    "loha",
    "LoHaConfig",
    {
        "r": 8,
        "alpha": 8,
        "rank_dropout": 0.0,
        "module_dropout": 0.0,
        "use_effective_conv2d": False,
        "init_weights": True,
    }
    | WHERE,
    "the elementwise product of two low-rank matrices",
    "Hyeon-Woo et al. 2021, FedPara (arXiv:2108.06098)",
    learning_rate=5.0,
)
_peft(
    "lokr",
    "LoKrConfig",
    {
        "r": 8,
        "alpha": 8,
        "rank_dropout": 0.0,
        "module_dropout": 0.0,
        "use_effective_conv2d": False,
        "decompose_both": False,
        "decompose_factor": -1,
        "rank_dropout_scale": False,
        "init_weights": True,
    }
    | WHERE,
    "a Kronecker product with a low-rank factor",
    "Yeh et al. 2023, LyCORIS (arXiv:2309.14859)",
    learning_rate=10.0,
)
_peft(
    "miss",
    "MissConfig",
    {"r": 64, "mini_r": 1, "miss_dropout": 0.0, "bias": "none", "init_weights": True} | WHERE,
    "one small matrix shared by all shards of a weight's input",
    "Kang and Yin 2024, MiSS (arXiv:2409.15371)",
    learning_rate=0.5,
)
# Frequencies and circulants.

_peft(
    "fourierft",
    "FourierFTConfig",
    {"n_frequency": 1000, "scaling": 150.0, "random_loc_seed": 777, "bias": "none", "init_weights": True} | WHERE,
    "a few Fourier coefficients of the update",
    "Gao et al. 2024, FourierFT (arXiv:2405.03003)",
    learning_rate=5.0,
)
_peft(
    "c3a",
    "C3AConfig",
    {"block_size": 64, "bias": "none", "init_weights": True} | WHERE,
    "block-circular convolution of the input",
    "Chen et al. 2024, C3A (arXiv:2407.19342)",
    learning_rate=200.0,
)
# Rotations and reflections of the weight.

_peft(
    "oft",
    "OFTConfig",
    {
        "r": 0,
        "oft_block_size": 32,
        "module_dropout": 0.0,
        "coft": False,
        "eps": 6e-05,
        "block_share": False,
        "use_cayley_neumann": True,
        "num_cayley_neumann_terms": 5,
        "bias": "none",
        "init_weights": True,
    }
    | WHERE,
    "the weight's input rotated in blocks",
    "Qiu et al. 2023, OFT (arXiv:2306.07280)",
)
_peft(
    "boft",
    "BOFTConfig",
    {
        "boft_block_size": 4,
        "boft_block_num": 0,
        "boft_n_butterfly_factor": 1,
        "boft_dropout": 0.0,
        "bias": "none",
        "init_weights": True,
    }
    | WHERE,
    "OFT with butterfly-factored rotations",
    "Liu et al. 2023, BOFT (arXiv:2311.06243)",
    learning_rate=5.0,
)
_peft(
    "hra",
    "HRAConfig",
    {"r": 8, "apply_GS": False, "bias": "none", "init_weights": True} | WHERE,
    "the weight's input reflected r times (Householder)",
    "Yuan et al. 2024, HRA (arXiv:2405.17484)",
    learning_rate=5.0,
)
_peft(
    "road",
    "RoadConfig",
    {"variant": "road_1", "group_size": 64, "init_weights": True} | WHERE,
    "pairs of outputs rotated and scaled",
    "Liao et al. 2024, RoAd (arXiv:2409.00119)",
    learning_rate=10.0,
)
# A few of the model's own numbers.

_peft(
    "shira",
    "ShiraConfig",
    {"r": 16, "mask_type": "random", "random_seed": 0, "init_weights": True} | WHERE,
    "single weights at random places, as many as LoRA of rank r has numbers",
    "Bhardwaj et al. 2024, SHiRA (arXiv:2406.13175)",
    family="selective",
    updates="shira_weight",
)
_peft(
    "sparse",
    "SparseConfig",
    {
        "n": 32,
        "m": 32,
        "k": 16,
        "alpha": 1.0,
        "k_pattern": {},
        "k_ramp": 1.0,
        "budget": None,
        "init_std": 1.0,
        "init_weights": True,
        "bias": "none",
    }
    | WHERE,
    "the k blocks of each weight whose trained scores are highest",
    "Harada, Yamazaki and Yoshida (Toshiba), sparse parameters",
    family="selective",
    learning_rate=5.0,
    made_by=Sparse,
    module="plr.adapters.sparse.tuner",
    state=("sparse_positions",),
)
_peft(
    "ia3",
    "IA3Config",
    {
        "target_modules": ["k_proj", "v_proj", "down_proj"],
        "feedforward_modules": ["down_proj"],
        "init_ia3_weights": True,
    },
    "keys, values and the MLP's inside scaled by vectors",
    "Liu et al. 2022, (IA)3 (arXiv:2205.05638)",
    family="additive",
    learning_rate=20.0,
)
_peft(
    "ln_tuning",
    "LNTuningConfig",
    {"target_modules": ["input_layernorm", "post_attention_layernorm", "norm"]},
    "the layer norms trained, all else frozen",
    "Zhao et al. 2023, Tuning LayerNorm (arXiv:2312.11420)",
    family="selective",
    learning_rate=10.0,
)
_peft(
    "bitfit",
    "BitFitConfig",
    {"target_modules": None, "add_biases": False},
    "the biases (of every module that has one); add_biases for a model without",
    "Ben Zaken et al. 2022, BitFit (arXiv:2106.10199)",
    family="selective",
    learning_rate=10.0,
    module="plr.adapters.bitfit",
    updates="bitfit_delta",
)
# Small networks.

_peft(
    "bottleneck",
    "BottleneckConfig",
    BOTTLENECK | {"mode": "serial", "target_modules": ["o_proj", "down_proj"]},
    "a small network behind the output of each sublayer",
    "Houlsby et al. 2019, adapters (arXiv:1902.00751)",
    family="additive",
    merges=False,
    module="plr.adapters.bottleneck",
)
_peft(
    "parallel_bottleneck",
    "BottleneckConfig",
    BOTTLENECK | {"mode": "parallel", "target_modules": ["mlp"]},
    "a small network beside each feed-forward network",
    "He et al. 2022, a unified view (arXiv:2110.04366)",
    family="additive",
    merges=False,
    module="plr.adapters.bottleneck",
)
# Virtual tokens.

_peft(
    "prompt_tuning",
    "PromptTuningConfig",
    VIRTUAL | {"prompt_tuning_init": "SAMPLE_VOCAB"},
    "trained token embeddings before every text",
    "Lester et al. 2021, prompt tuning (arXiv:2104.08691)",
    family="prompt",
    merges=False,
    learning_rate=20.0,
)
_peft(
    "p_tuning",
    "PromptEncoderConfig",
    VIRTUAL
    | {
        "encoder_reparameterization_type": "MLP",
        "encoder_hidden_size": 128,
        "encoder_num_layers": 2,
        "encoder_dropout": 0.0,
    },
    "virtual tokens written by a small network, which is dropped after training",
    "Liu et al. 2021, P-tuning (arXiv:2103.10385)",
    family="prompt",
    merges=False,
)
_peft(
    "prefix_tuning",
    "PrefixTuningConfig",
    VIRTUAL | {"prefix_projection": False, "encoder_hidden_size": None, "init_weights": None},
    "trained keys and values before every text, in every layer",
    "Li and Liang 2021, prefix tuning (arXiv:2101.00190)",
    family="prompt",
    merges=False,
    learning_rate=30.0,
)
_peft(
    "llama_adapter",
    "AdaptionPromptConfig",
    {"adapter_len": 10, "adapter_layers": 30, "target_modules": "self_attn"},
    "trained prompts behind a zero gate in the upper layers' attention",
    "Zhang et al. 2023, LLaMA-Adapter (arXiv:2303.16199)",
    family="prompt",
    merges=False,
    learning_rate=30.0,
    kinds=("generation",),
    made_by=LlamaAdapter,
)
# All of it.

adapters.register("full")(FullMethod())


def _of_peft(name: str) -> AdapterMethod | None:
    """Make a method of PEFT without an entry above; PEFT's name for LLaMA-Adapter is its entry's other name."""
    if name == "adaption_prompt":
        return adapters.get("llama_adapter")
    return OtherPeftMethod(name) if name in peft_names() else None


adapters.fallback = _of_peft
