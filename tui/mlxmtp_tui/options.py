"""What `mlxmtp chat` was started with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlxmtp.engine.request import GenerationOptions
from mlxmtp.exactness.guarantee import Identity
from mlxmtp.limits import Device
from mlxmtp.worker.messages import Load


@dataclass(frozen=True)
class ChatOptions:
    """The model and the settings of a chat.

    Args:
        model, head, mtp, identity, draft_vocab, device: as in `mlxmtp.load`.
        choose: whether to ask for a model first.
        system: the system prompt.
        settings: of the turns, where neither the model nor the user says otherwise.
        sampling: fields of the settings that the user has chosen; the model recommends others.
        notice: what was wrong before the chat began.
    """

    model: str | None = None
    head: str | None = None
    mtp: bool = True
    choose: bool = False
    system: str = ""
    settings: GenerationOptions = GenerationOptions(max_tokens=4096)  # noqa: RUF009 - it is frozen
    sampling: Mapping[str, Any] = field(default_factory=dict)
    identity: Identity = "fast"
    draft_vocab: str | None = None
    device: Device | None = None
    notice: str = ""

    def load_command(self, id: int) -> Load:
        """The command that loads the model."""
        chosen = {"identity": self.identity, "draft_vocab": self.draft_vocab, "device": self.device}
        return Load(id, self.model, self.head, self.mtp, **chosen)  # type: ignore[arg-type]
