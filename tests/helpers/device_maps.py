"""A tiny model's layers, put on devices by name."""

from __future__ import annotations

IDS = list(range(5, 60))


def layers(**places):
    """A device map of the tiny DynaMo model, on the CPU but for what is named."""
    names = ["embed_in", "layers.0", "layers.1", "layers.2", "final_layer_norm", "rotary_emb"]
    device_map = {f"backbone.gpt_neox.{name}": "cpu" for name in names}
    device_map |= {"backbone.lm_head": "cpu", "token_heads.0": "cpu", "token_heads.1": "cpu"}
    return device_map | places
