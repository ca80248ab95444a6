"""A tokenizer for tiny vocabularies."""

from pathlib import Path

from tests.tiny.files import write_json

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
EOS = 2
CHAT_TEMPLATE = (
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(folder: Path, vocab: int) -> None:
    """Write a byte-level tokenizer of exactly `vocab` ids: special tokens, bytes, then filler that text never
    uses. Below 259 ids the rarer bytes are missing and dropped from prompts."""
    pieces = list(SPECIAL) + _byte_alphabet()
    pieces = (pieces + [f"Ġfiller{i}" for i in range(vocab)])[:vocab]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    write_json(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "added_tokens": [{"id": i, "content": text} | flags for i, text in enumerate(SPECIAL)],
            "pre_tokenizer": byte_level,
            "post_processor": byte_level,
            "decoder": byte_level,
            "model": {"type": "BPE", "vocab": {p: i for i, p in enumerate(pieces)}, "merges": []},
        },
    )
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": SPECIAL[EOS],
            "pad_token": SPECIAL[0],
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def _byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes; space, newline and printable ASCII come first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    stand_in = {b: chr(b) for b in printable}
    stand_in |= {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in stand_in)}
    return [stand_in[b] for b in sorted(range(256), key=lambda b: (b not in (32, 10), b not in printable, b))]
