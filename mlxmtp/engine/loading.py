"""Loading an engine: the model of a checkpoint, its tokenizer, its head, and the tokens that the head may draft."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlx_lm import utils

from mlxmtp.checkpoints import check_tokenizer, open_checkpoint
from mlxmtp.checkpoints.checkpoint import DEMO, READ_FILES, TEMPLATES, visible_files
from mlxmtp.engine.engine import Engine
from mlxmtp.engine.template import bound_template, renderer
from mlxmtp.engine.token_texts import text_for_every_id
from mlxmtp.errors import CheckpointError, HeadError, OptionError, in_one_line
from mlxmtp.exactness.compare import OnPass
from mlxmtp.exactness.guarantee import IDENTITIES, Identity
from mlxmtp.files import parse_json, read_json
from mlxmtp.heads import Head, HeadSource, NoHeadError, load_head, narrowed_logits, resolve_head
from mlxmtp.limits import Device
from mlxmtp.machine import use_device
from mlxmtp.ranks import Ranks
from mlxmtp.targets import load_target

FULL_VOCAB = "full"
"""The draft vocabulary of all tokens, as an option."""
_EXPECTED_IDS = "token ids, as a JSON list or one a line"


def load(
    path_or_repo: str | Path | None = None,
    *,
    mtp: bool = True,
    head: str | Path | None = None,
    identity: Identity = "fast",
    draft_vocab: int | str | Path | None = None,
    device: Device | None = None,
    on_check: OnPass = lambda *_: None,
    ranks: Ranks | None = None,
) -> Engine:
    """Load a model and, unless `mtp` is False, its MTP head.

    Args:
        path_or_repo: a model's folder or a Hub repo (owner/name); None or "demo" is the bundled model.
        head: a folder or repo to take the head from. None: the model's own head; for families whose heads are separate
            models, the head that belongs to the model's name.
        identity: "fast" computes as MLX does, and `Engine.guarantee` says what holds of the text. "strict" gives the
            tokens of plain decoding, if necessary with row-by-row arithmetic. "canonical" gives the tokens of plain
            decoding that uses the same arithmetic as MTP. Where the wish cannot be met, decoding is plain, and
            `Engine.plain_because` says so.
        draft_vocab: None: where the vocabulary is large, the policy finds out whether a narrowed one pays. "full":
            draft all tokens. A number: draft only this many of the tokenizer's most frequent tokens. A path: draft only
            the token ids of this file, a JSON list or one a line. Special tokens can always be drafted. A draft is then
            cheaper and is accepted less often; the text is the same.
        ranks: the ranks that share the trunk (docs/several-macs.md). On rank 0 the others load the same.

    Raises:
        OptionError: no such identity, tokens or device, or a draft vocabulary without a head.
        CheckpointError: no such model, incomplete or damaged files, or an unsupported architecture.
        HeadError: there is a head, but it cannot be run.
    """
    if identity not in IDENTITIES:
        raise OptionError(f"identity is {identity!r}; expected one of {', '.join(IDENTITIES)}")
    if ranks and identity != "fast":
        raise OptionError(f"identity is {identity!r}, which is measured on one machine; expected fast with --hosts, -n")
    model, lender, vocab = (item if item is None else str(item) for item in (path_or_repo, head, draft_vocab))
    if ranks and ranks.leads:
        ranks.agree(["load", model, lender, vocab, mtp, device])
    build = partial(_load, model, lender, vocab, mtp, device, identity, on_check, ranks)
    return ranks.together(build) if ranks else build()


def _load(
    path_or_repo: str | None,
    head: str | None,
    draft_vocab: str | None,
    mtp: bool,
    device: Device | None,
    identity: Identity,
    on_check: OnPass,
    ranks: Ranks | None,
) -> Engine:
    use_device(device)
    checkpoint = open_checkpoint(DEMO if path_or_repo is None else path_or_repo)
    renderer().start()  # it gets ready while the weights are read
    target = load_target(checkpoint, group=ranks.group if ranks else None)
    utils.maybe_set_recommended_wired_limit()  # stays for the process: changing it while the GPU works is not safe
    tokenizer = load_tokenizer(checkpoint.folder, target.config.get("eos_token_id"), target.vocab_size)
    source: HeadSource | None = None
    loaded: Head | None = None
    plain_because: str | None = "MTP was switched off"
    if mtp:
        try:
            source = resolve_head(checkpoint, head)
            loaded, plain_because = load_head(checkpoint, target, source), None
        except NoHeadError as reason:
            if head is not None:
                raise
            source, plain_because = None, str(reason)
        except HeadError as error:
            raise HeadError(f"{error}; to run the model without its head: --no-mtp, load(..., mtp=False)") from error
    tokens: list[int] | None = None
    narrowed = narrowed_logits(loaded, target, _special_tokens(tokenizer)) if loaded and draft_vocab is None else None
    if draft_vocab is not None and loaded is None:
        raise OptionError(f"a draft vocabulary is for a head, and there is none: {plain_because}")
    if loaded and draft_vocab is not None and draft_vocab != FULL_VOCAB:
        tokens = draft_tokens(draft_vocab, tokenizer, target.output["weight"].shape[0])
        loaded.restrict_vocab(tokens)
    engine = Engine(
        path=checkpoint.folder,
        name=path_or_repo or "demo",
        target=target,
        tokenizer=tokenizer,
        mtp=loaded,
        plain_because=plain_because,
        head_source=source,
        identity=identity,
        draft_tokens=tokens,
        on_check=on_check,
        narrowed=narrowed,
        ranks=ranks,
    )
    engine.enforce_identity()
    return engine


def load_tokenizer(path: Path, end_tokens: int | list[int] | None = None, vocab_size: int | None = None) -> Any:
    """Return mlx-lm's `TokenizerWrapper` of a model's folder; its chat template is rendered within limits.

    Args:
        end_tokens: ids that end a turn; None: the tokenizer's own.
        vocab_size: rows of the embedding: its detokenizer has a text for each id below. None: the number of tokens.

    Raises:
        CheckpointError: the tokenizer's files are missing or damaged.
    """
    check_tokenizer(str(path), os.listdir(path))
    try:
        with _without_hidden_templates(path) as folder, text_for_every_id(vocab_size):
            tokenizer = utils.load_tokenizer(folder, _missing_template(path), eos_token_ids=end_tokens)
    except Exception as error:  # transformers and tokenizers raise whatever they please on a damaged file
        raise CheckpointError(f"{path}: its tokenizer cannot be read ({in_one_line(error)})") from error
    bound_template(tokenizer)
    return tokenizer


@contextmanager
def _without_hidden_templates(path: Path) -> Iterator[Path]:
    """Yield the folder, or one of links without hidden templates (macOS's `._*`), which transformers would read."""
    if not any((path / TEMPLATES).glob(".*")):
        yield path
        return
    with TemporaryDirectory() as name:
        for file in visible_files(path, (*READ_FILES, "config.json")):
            link = Path(name) / file.relative_to(path)
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(file.resolve())
        yield Path(name)


def _missing_template(path: Path) -> dict[str, Any]:
    """Return the option of a tokenizer's loader for the chat template that the loader would miss; {}: it misses none.

    transformers reads chat_template.json for processors alone. Of named templates without one called "default", which
    every prompt without tools needs, the first serves: not the one for tools or documents, if there is another.
    """
    if (path / "chat_template.jinja").exists():
        return {}
    template = _json_object(path / "tokenizer_config.json").get("chat_template")
    template = template or _json_object(path / "chat_template.json").get("chat_template")
    if isinstance(template, list):
        template = {item["name"]: item["template"] for item in template}
    named = {file.stem: file.read_text("utf-8") for file in visible_files(path, (f"{TEMPLATES}/*.jinja",))}
    if named:
        template = named | ({"default": template} if isinstance(template, str) else template or {})
    if isinstance(template, dict) and template and "default" not in template:
        first = next((name for name in template if name not in ("tool_use", "rag")), next(iter(template)))
        template["default"] = template[first]
    return {"chat_template": template} if template else {}


def _json_object(file: Path) -> dict[str, Any]:
    content = read_json(file) if file.exists() else {}
    return content if isinstance(content, dict) else {}


def draft_tokens(draft_vocab: int | str | Path, tokenizer: Any, vocab_size: int) -> list[int]:
    """Return the token ids that a head may draft, ascending, special tokens included: they end turns and open calls.

    Args:
        draft_vocab: as in `load`.
        vocab_size: rows of the output matrix.

    Raises:
        OptionError: not a number and not a file, or no such tokens.
    """
    try:
        count = int(str(draft_vocab))
    except ValueError:
        chosen: Sequence[int] = _tokens_of_file(Path(str(draft_vocab)), vocab_size)
    else:
        if count < 1:
            raise OptionError(f"--draft-vocab is {count}; expected at least 1 token, or a file of {_EXPECTED_IDS}")
        chosen = _tokens_by_frequency(tokenizer)[:count]
    return sorted({token for token in (*chosen, *_special_tokens(tokenizer)) if token < vocab_size})


def _special_tokens(tokenizer: Any) -> list[int]:
    return [*tokenizer.added_tokens_decoder, *tokenizer.eos_token_ids]


def _tokens_by_frequency(tokenizer: Any) -> list[int]:
    """All tokens, the most frequent first. A unigram model stores likelihoods; byte pairs were merged in this order."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise OptionError(f"--draft-vocab: this tokenizer does not tell frequencies; name a file of {_EXPECTED_IDS}")
    model = json.loads(backend.to_str())["model"]
    if model["type"] == "Unigram":
        scores = [score for _, score in model["vocab"]]
        return sorted(range(len(scores)), key=lambda token: -scores[token])
    return sorted(model["vocab"].values())


def _tokens_of_file(path: Path, vocab_size: int) -> list[int]:
    try:
        text = Path(os.path.expanduser(path)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise OptionError(f"--draft-vocab {path}: {reason}; expected a number, or a file of {_EXPECTED_IDS}") from error
    try:
        tokens = parse_json(text) if text.lstrip().startswith("[") else [int(line) for line in text.split()]
    except ValueError as error:
        raise OptionError(f"--draft-vocab {path}: {error}; expected {_EXPECTED_IDS}") from error
    wrong = [token for token in tokens if type(token) is not int or not 0 <= token < vocab_size]
    if wrong or not tokens:
        what = f"{wrong[0]!r} is no token of this model (0 to {vocab_size - 1})" if wrong else "there are none"
        raise OptionError(f"--draft-vocab {path}: {what}; expected {_EXPECTED_IDS}")
    return tokens
