"""Running a causal language model for evaluation: greedy answers, answer losses, perplexity.

Works on any transformers causal language model: plain, with PEFT adapters left unmerged, or with quantized linear
layers, on CPU and CUDA.
"""

from plr.lm.dtype import choose_dtype
from plr.lm.generate import Generation, generate
from plr.lm.loss import AnswerLoss, answer_loss, logits_probe, perplexity
from plr.lm.tokens import encode_pair

__all__ = [
    "AnswerLoss",
    "Generation",
    "answer_loss",
    "choose_dtype",
    "encode_pair",
    "generate",
    "logits_probe",
    "perplexity",
]
