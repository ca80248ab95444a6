"""The tokenizer, trained on the training text, and the rows of tokens for each training step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from demo_training.corpora import KINDS, Document
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# Single tokens that are not "special", as in Qwen: decoded text keeps them for the tool parser.
MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
MAX_POSITIONS = 4096
# Share of the rows by kind. There is little small talk, so that it is repeated many times.
MIXTURE = {"python": 0.34, "code": 0.13, "maths": 0.25, "chat": 0.10, "tools": 0.18}


def chat_template() -> str:
    return (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8").strip()


def wrap_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
        chat_template=chat_template(),
    )


def render(documents: list[Document]) -> list[str]:
    """Return the texts of the documents. Chats are rendered with the template of the checkpoint."""
    template = wrap_tokenizer(Tokenizer(models.BPE()))

    def text(document: Document) -> str:
        if not document.messages:
            return document.text
        tools = document.tools or None
        return template.apply_chat_template(document.messages, tools=tools, tokenize=False)

    return [text(document) for document in documents]


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer. Each digit is a token, because arithmetic is learnt digit by digit."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, IM_START, IM_END, *MARKERS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["content"] not in MARKERS
    return wrap_tokenizer(Tokenizer.from_str(json.dumps(state)))


class Rows:
    """Rows of length + 1 tokens. A row begins at a document's start; of raw Python, also in the middle."""

    def __init__(self, documents: list[Document], tokenizer: PreTrainedTokenizerFast, length: int) -> None:
        self.length = length
        self.separator = np.array([tokenizer.convert_tokens_to_ids(END_OF_TEXT)], dtype=np.int64)
        self.documents: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
        encodings = tokenizer.backend_tokenizer.encode_batch_fast(render(documents), add_special_tokens=False)
        for document, encoding in zip(documents, encodings, strict=True):
            ids = np.array(encoding.ids, dtype=np.int64)
            self.documents[document.kind].append(np.concatenate([ids, self.separator]))
        self.by_start = {kind: self._shares(kind, length) for kind in KINDS}
        self.by_length = {kind: self._shares(kind, None) for kind in KINDS}

    def _shares(self, kind: str, cap: int | None) -> np.ndarray:
        sizes = np.array([len(ids) for ids in self.documents[kind]], dtype=float)
        sizes = sizes if cap is None else np.minimum(sizes, cap)
        return sizes / sizes.sum()

    def sizes(self) -> dict[str, int]:
        return {kind: sum(map(len, documents)) for kind, documents in self.documents.items()}

    def batch(self, seed: int, step: int, rows: int) -> np.ndarray:
        """Return the rows of a step. They depend on seed and step only, so that a resumed run goes on exactly."""
        rng = np.random.default_rng([seed, step])
        kinds = rng.choice(KINDS, size=rows, p=[MIXTURE[kind] for kind in KINDS])
        return np.stack([self.row(str(kind), rng) for kind in kinds])

    def row(self, kind: str, rng: np.random.Generator) -> np.ndarray:
        documents, pieces, total = self.documents[kind], [], 0
        inside = kind == "python" and rng.random() < 0.6
        while total <= self.length:
            # Chats are drawn evenly; files by size, as otherwise small files would come up too often.
            shares = None if kind != "python" else self.by_length[kind] if inside else self.by_start[kind]
            ids = documents[rng.choice(len(documents), p=shares)]
            if inside and not pieces and len(ids) > self.length:
                ids = ids[rng.integers(len(ids) - self.length) :]
            pieces.append(ids)
            total += len(ids)
        return np.concatenate(pieces)[: self.length + 1]

    def spread(self, kind: str, limit: int) -> list[np.ndarray]:
        """Return up to `limit` rows for evaluation, evenly spread over the text of this kind."""
        rows = list(self._windows(kind) if kind == "python" else self._packed(kind))
        return [rows[index] for index in np.linspace(0, len(rows) - 1, min(limit, len(rows))).astype(int)]

    def _windows(self, kind: str) -> Iterator[np.ndarray]:
        """Yield long documents cut into rows, without the remainders."""
        for ids in self.documents[kind]:
            for start in range(0, len(ids) - self.length, self.length):
                yield ids[start : start + self.length + 1]

    def _packed(self, kind: str) -> Iterator[np.ndarray]:
        """Yield rows that each start with a new document. The last one is filled by repetition."""
        pieces, total = [], 0
        for ids in self.documents[kind]:
            pieces.append(ids)
            total += len(ids)
            if total > self.length:
                yield np.concatenate(pieces)[: self.length + 1]
                pieces, total = [], 0
        if pieces:
            yield np.resize(np.concatenate(pieces), self.length + 1)
