"""plr: quantization transfer."""
