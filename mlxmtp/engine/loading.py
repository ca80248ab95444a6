"""Loading an engine: a checkpoint's model, tokenizer and head."""

from __future__ import annotations

from pathlib import Path

from mlxmtp.checkpoints import open_checkpoint
from mlxmtp.engine.draft_vocabulary import draft_tokens
from mlxmtp.engine.engine import Engine
from mlxmtp.engine.tokenizer import load_tokenizer
from mlxmtp.errors import HeadError, OptionError
from mlxmtp.exactness.verdict import IDENTITIES, Identity
from mlxmtp.heads import Head, HeadSource, NoHeadError, load_head, resolve_head
from mlxmtp.targets import load_target

DEMO = Path(__file__).parent.parent / "demo"


def load(
    path_or_repo: str | Path | None = None,
    *,
    mtp: bool = True,
    head: str | Path | None = None,
    identity: Identity = "fast",
    draft_vocab: int | str | Path | None = None,
) -> Engine:
    """Load a model and, unless `mtp` is False, its MTP head.

    Args:
        path_or_repo: a model's folder or a Hub repo (owner/name); None is the bundled demo model.
        head: a folder or repo to take the head from. None: the model's own, or for models whose heads are models of
            their own, the one that goes with the model's name.
        identity: "fast" computes as MLX does, and `Engine.verdict` says what holds of the text. "strict": tokens are
            those of plain decoding, if need be by one-row arithmetic. "canonical": those of plain decoding that has
            the same arithmetic forced on it. Where neither can be kept, decoding is plain, and `plain_because` says so.
        draft_vocab: draft only so many of the tokenizer's most frequent tokens, or those of a file of token ids, as a
            JSON list or one a line; special tokens always. Drafts become cheaper and fewer of them stand; the text
            is as without.

    Raises:
        OptionError: there is no such identity, there are no such tokens, or no head to draft them.
        CheckpointError: no such model, incomplete or damaged files, an unsupported architecture.
        HeadError: there is a head, but not one that can be run.
    """
    if identity not in IDENTITIES:
        raise OptionError(f"identity is {identity!r}; expected one of {', '.join(IDENTITIES)}")
    checkpoint = open_checkpoint(DEMO if path_or_repo is None else path_or_repo)
    target = load_target(checkpoint)
    tokenizer = load_tokenizer(checkpoint.folder, target.config.get("eos_token_id"))
    found: HeadSource | None = None
    loaded: Head | None = None
    plain_because: str | None = "MTP was switched off"
    if mtp:
        try:
            found = resolve_head(checkpoint, head)
            loaded, plain_because = load_head(checkpoint, target, found), None
        except NoHeadError as reason:
            if head is not None:
                raise
            plain_because = str(reason)
        except HeadError as error:
            raise HeadError(f"{error}; to run the model without its head: --no-mtp, load(..., mtp=False)") from error
    name = "demo" if path_or_repo is None else str(path_or_repo)
    source = found if loaded else None
    tokens: list[int] | None = None
    if draft_vocab is not None:
        if loaded is None:
            raise OptionError(f"a draft vocabulary is for a head, and there is none: {plain_because}")
        tokens = draft_tokens(draft_vocab, tokenizer, target.output["weight"].shape[0])
        loaded.restrict_vocab(tokens)
    engine = Engine(checkpoint.folder, name, target, tokenizer, loaded, plain_because, source, identity, tokens)
    engine.keep_identity()
    return engine
