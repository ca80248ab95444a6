"""The chat behind the screen: conversation, session file and engine process, held together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mlxmtp.worker.client import EngineClient, EngineStartError, MakeCommand
from mlxmtp.worker.messages import (
    Compare,
    Comparison,
    Died,
    Downloading,
    Event,
    Failed,
    Finished,
    Generate,
    Load,
    Loaded,
    PromptProgress,
    Stopped,
    TurnDelta,
    Warned,
)
from mlxmtp.worker.process import StartTransport
from mlxmtp_tui.conversation import Answer, Conversation
from mlxmtp_tui.files import expanded, missing
from mlxmtp_tui.live import Live
from mlxmtp_tui.roles import Options, View
from mlxmtp_tui.sessions import Session

PARTIAL_S = 0.8
"""How much of an answer a crash may cost."""


class Chat:
    """Commands of the user in, changes of the view out.

    Args:
        start: starts an engine.
        session, conversation: of a saved chat; None: a new one.
    """

    def __init__(
        self,
        view: View,
        start: StartTransport,
        options: Options,
        new_session: Callable[[str], Session],
        resumed: tuple[Session, Conversation] | None = None,
    ) -> None:
        self.live = Live()
        self.settings = options.settings
        self.loaded: Loaded | None = None
        self.model = options.model
        self.conversation = resumed[1] if resumed else Conversation(options.system)
        self._view = view
        self._options = options
        self._new_session = new_session
        self._session = resumed[0] if resumed else None
        self._client = EngineClient(start, self._on_event)
        self._command = 0  # whose events count; 0: of no command
        self._parts: list[list[str]] = []
        self._kept_at, self._kept = 0.0, 0
        self._waiting = self._turn_runs = False
        self._before: tuple[Loaded, Options] | None = None  # in place of which another model loads
        self._remember_turns()
        if resumed and options.system:
            self.instruct(options.system)

    @property
    def session(self) -> Session:
        if self._session is None:
            self._session = self._new_session(self.model_name)
            if self.conversation.system:
                self._session.system(self.conversation.system)
        return self._session

    @property
    def has_session(self) -> bool:
        """Whether there is a file for this chat."""
        return self._session is not None

    @property
    def model_name(self) -> str:
        return self.model or "demo"

    async def start(self) -> None:
        """Start the engine's process, and load the model unless it is to be chosen."""
        self.live.become("starting")
        try:
            await self._client.start()
        except EngineStartError as error:
            self._gone(str(error))
            return
        if self._options.choose and self.loaded is None and self.model is None:
            self._become("choosing")
        else:
            self.load(self.model, head=self._options.head)

    def load(self, model: str | None, head: str | None = None) -> None:
        """Load a model in place of the present one; None is the demo."""
        self._leave()
        self._before = (self.loaded, self._options) if self.loaded else None
        self.model, self.loaded, self.live.compared = model, None, None
        self._options = replace(self._options, choose=False, model=model, head=head)
        if self._session:
            self._session.model(self.model_name)
        if not self._client.running:
            self._become("gone")
            self._view.say(f"ctrl+r starts the engine, with {self.model_name}")
            return
        self._become("loading")
        asked = self._options
        self._send(lambda id: Load(id, model, head, asked.mtp, identity=asked.identity, draft_vocab=asked.draft_vocab))

    def submit(self, text: str) -> bool:
        """Ask; whether the text was taken.

        Raises:
            MentionError: a file that it names cannot be read.
        """
        if self._waiting or self.live.status in ("answering", "stopping", "measuring"):
            self._view.say("still busy; esc stops it")
            return False
        # half a surrogate pair, as terminals pass on, would have every later prompt refused
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        sent = expanded(text)
        self.conversation.ask(text, sent)
        self.session.asked(text, sent)
        self._view.turn_began()
        if unknown := missing(text):
            self._view.say(f"there is no file {', '.join(unknown)}; the model reads the name only")
        self._saved()
        self._answer()
        return True

    def retry(self) -> None:
        """Answer the last message again."""
        turns = self.conversation.turns
        if not turns or self.live.status not in ("ready", "loading"):
            self._view.say("nothing to answer again" if not turns else "not now; esc stops what runs")
            return
        last = turns[-1]
        self._rewind(len(turns) - 1)
        self.conversation.ask(last.typed, last.sent)
        self.session.asked(last.typed, last.sent)
        self._view.turns_changed()
        self._answer()

    def take_back(self) -> str | None:
        """Undo the last turn; what was typed."""
        turns = self.conversation.turns
        if not turns or self.live.status not in ("ready", "loading", "gone", "choosing"):
            self._view.say("nothing to take back" if not turns else "not now; esc stops what runs")
            return None
        typed = turns[-1].typed
        self._waiting = False
        self._rewind(len(turns) - 1)
        self._view.turns_changed()
        return typed

    def clear(self) -> None:
        """A new chat; the old one is saved."""
        self.open(None, Conversation(self.conversation.system))

    def open(self, session: Session | None, conversation: Conversation) -> None:
        """Go on with another chat; None: a new file when there is something to write."""
        self._leave()
        if self._session:
            self._session.close()
        self._session, self.conversation = session, conversation
        self._remember_turns()
        self._waiting = False
        self._view.turns_changed()

    def instruct(self, system: str) -> None:
        """Set the system prompt."""
        self.conversation.system = system
        if self._session:
            self._session.system(system)
        self._view.state_changed()

    def set(self, **changes: Any) -> None:
        """Change settings, from the next turn on."""
        self.settings = replace(self.settings, **changes)
        self._view.state_changed()

    def measure(self) -> None:
        """Measure MTP beside plain decoding on this conversation."""
        if self.live.status != "ready":
            self._view.say("not now; esc stops what runs" if self.live.busy else "no model is loaded")
            return
        messages = self.conversation.messages() or [{"role": "user", "content": "Tell me a story."}]
        if messages[-1]["role"] == "assistant":
            messages.append({"role": "user", "content": "Go on."})
        self._become("measuring")
        self._send(lambda id: Compare(id, messages, self.settings))

    def stop(self) -> bool:
        """End what runs, as soon as may be, and keep what came; whether something ran."""
        if self._waiting:
            self._waiting = False
            self._end_turn(Answer(_message([]), "interrupted"))
            return True
        if self.live.status not in ("answering", "measuring") or not self._client.running:
            return False
        self._client.stop(self._command)
        self._become("stopping")
        return True

    async def restart(self) -> None:
        """Replace an engine that is gone, or does not answer."""
        self._leave("failed")
        self.loaded = self._before = None
        await self._client.kill()
        await self.start()

    async def close(self) -> None:
        """Nothing goes on behind us."""
        self._leave()
        if self._session:
            self._session.close()
        await self._client.close()

    def _answer(self) -> None:
        self._parts, self._kept = [], 0
        self._waiting = self.loaded is None
        if self._waiting:
            self._view.state_changed()
            return
        self._turn_runs = True
        self.live.begin()
        self._view.state_changed()
        self._send(lambda id: Generate(id, self.conversation.messages(), self.settings))

    def _send(self, command: MakeCommand) -> None:
        """Send a command; the events of earlier ones are ignored from now on."""
        self._command = self._client.send(command)

    def _on_event(self, event: Event) -> None:
        self.live.heard = self.live.clock()
        if event.id == self._command or isinstance(event, Died | Warned):
            self.take(event)

    def take(self, event: Event) -> None:
        """Something happened."""
        match event:
            case Loaded():
                self.loaded, self._before = event, None
                self._become("ready")
                if self._waiting:
                    self._answer()
            case PromptProgress():
                self.live.prefill = event
            case Downloading():
                self.live.fetching = event
            case TurnDelta():
                self._parts += event.segments
                self.live.said(event.stats, event.memory)
                self._view.turn_said(event.segments)
            case Finished():
                self.live.end(event.stats, event.memory)
                self._end_turn(Answer(event.message, event.reason, event.stats, self.live.speedup(event.stats)))
            case Comparison():
                self._take_compared(event)
            case Stopped():
                self._leave()
                self._become("ready")
            case Warned():
                self._view.say(event.message)
            case Failed():
                self._take_failure(event)
            case Died():
                self._gone(
                    f"the engine cannot be understood: {event.garbled}"
                    if event.garbled
                    else f"the engine has died ({event.why})"
                )
        self._view.state_changed()

    def _take_compared(self, event: Comparison) -> None:
        self.live.compared = event
        if event.done == event.total:
            self._become("ready")
            self._view.measured(event)

    def _take_failure(self, event: Failed) -> None:
        loading = self.live.status == "loading"
        hint = "; try a smaller model or a shorter chat" if event.kind == "memory" else ""
        self._view.say(event.message + hint, error=True)
        if self._turn_runs:
            self.live.end(None, None)
            self._end_turn(Answer(_message(self._parts), "failed", self.live.stats))
        if loading and event.still_loaded and self._before:
            loaded, self._options = self._before
            self.model = self._options.model
            if self._session:
                self._session.model(self.model_name)
            self.take(loaded)
        else:
            self._become("choosing" if loading else "ready")

    def _gone(self, why: str) -> None:
        self._leave("failed")
        self.loaded = self._before = None
        self._become("gone")
        self._view.say(f"{why}; ctrl+r starts it again, the chat is kept", error=True)

    def _leave(self, reason: str = "interrupted") -> None:
        """End what runs without waiting for its end; what came of an answer is kept."""
        status = self.live.status
        if status in ("answering", "stopping", "measuring"):
            self._client.stop(self._command)
            self._command = 0
            self.live.end(None, None)
        if self._turn_runs:
            self._end_turn(Answer(_message(self._parts), reason, self.live.stats))

    def _end_turn(self, answer: Answer) -> None:
        self._turn_runs = False
        self.conversation.answer(answer)
        self.session.answered(answer)
        self._view.turn_ended()
        self._saved()

    def _remember_turns(self) -> None:
        answers = [turn.answer for turn in self.conversation.turns]
        self.live.remember(answer.stats for answer in answers if answer and answer.stats)

    def _rewind(self, turns: int) -> None:
        self.conversation.rewind(turns)
        self.session.rewound(turns)

    def keep(self) -> None:
        """Save what has come of an answer, once a second; called more often."""
        now = self.live.clock()
        if self.live.status == "answering" and len(self._parts) > self._kept and now - self._kept_at >= PARTIAL_S:
            self._kept_at, self._kept = now, len(self._parts)
            answer = Answer(_message(self._parts), "interrupted", self.live.stats)
            self.session.answering(len(self.conversation.turns), answer)
            self._saved()

    def _saved(self) -> None:
        if problem := self.session.problem:
            self._view.say(problem, error=True)

    def _become(self, status: Any) -> None:
        self.live.become(status)
        self._view.state_changed()


def _message(parts: list[list[str]]) -> dict[str, Any]:
    """What came of an answer; calls stay the text that they are."""
    of = {kind: "".join(text for this, text in parts if this == kind) for kind in ("text", "thinking", "tool")}
    message = {"role": "assistant", "content": of["text"] + (f"\n{of['tool']}" if of["tool"] else "")}
    return message | ({"reasoning_content": of["thinking"]} if of["thinking"] else {})
