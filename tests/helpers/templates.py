"""Tiny tokenizers with chat templates of the kinds that people's checkpoints have."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
    "{% for message in messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
# A default turn for thoughts before the last answer only, as a template of a model that reasons has it.
THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}"
    "{{ '<think>\n\n</think>\n\n' + message['content'].lstrip('\n') }}"
    "{% else %}{{ message['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Markers that are plain text, and a system turn inside the first user's turn.
PLAIN_MARKERS = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
SPECIAL = {
    CHATML: ("<|endoftext|>", "<|im_end|>", "<|im_start|>"),
    LLAMA_3: ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    MISTRAL: ("<s>", "</s>"),
    THINKING: ("<|endoftext|>", "<|im_end|>", "<|im_start|>"),
    PLAIN_MARKERS: ("<s>", "</s>"),
}
TEMPLATES = tuple(SPECIAL)


def byte_level(template: str | None, special: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """Bytes and a few merges, also of spaces and line ends; the first two special tokens are bos and eos."""
    special = special or SPECIAL.get(template, ("<s>", "</s>"))
    vocabulary = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("Ġ", "H"), ("ĊĊ", "Ċ"), ("Ċ", "Ċ"), ("h", "i"), (".", "Ċ"), ("H", "i")]
    for left, right in merges:
        vocabulary.setdefault(left, len(vocabulary))
        vocabulary.setdefault(left + right, len(vocabulary))
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    # No pattern parts words, so the text on both sides of a cut could merge.
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    return _with(bpe, special, template)


def sentence_piece(template: str | None, special: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """As Llama 2 has it: a space before every text, and bytes for characters without a token."""
    special = special or SPECIAL.get(template, ("<s>", "</s>"))
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *map(chr, range(33, 127)), "▁"]
    merges = [("▁", "H"), ("▁", "h"), ("▁H", "i"), ("▁h", "i"), ("▁", "▁"), ("H", "i"), ("h", "i")]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys([*pieces, *map("".join, merges)]))}
    bpe = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _with(bpe, special, template)


def _with(bpe: Tokenizer, special: tuple[str, ...], template: str | None) -> PreTrainedTokenizerFast:
    bpe.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=special[0], eos_token=special[1], chat_template=template
    )
