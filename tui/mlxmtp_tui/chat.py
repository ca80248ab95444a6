"""The chat behind the screen: it keeps the conversation, its file and the engine's process in step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from textual.message import Message

from mlxmtp.engine.request import recommended_in_words
from mlxmtp.worker import messages as worker
from mlxmtp.worker.client import EngineClient, EngineStartError, MakeCommand
from mlxmtp.worker.process import StartTransport
from mlxmtp_tui.chatlog import ChatLog
from mlxmtp_tui.conversation import Answer, Conversation, partial_message
from mlxmtp_tui.files import expand_mentions, missing_files
from mlxmtp_tui.messages import Measured, Notice, StateChanged, TurnFinished, TurnGrew, TurnsReplaced, TurnStarted
from mlxmtp_tui.options import ChatOptions
from mlxmtp_tui.sessions import Session
from mlxmtp_tui.state import ChatState, Status

NOT_NOW = "not now; esc stops what runs"


class Chat:
    """Takes the user's actions and the engine's events; posts messages to the screen.

    Args:
        post: takes the messages (mlxmtp_tui/messages.py).
        start: starts an engine process.
        new_session: makes the file of a new chat, for a model's name.
        resumed: the file and the conversation of a saved chat.
    """

    def __init__(
        self,
        post: Callable[[Message], object],
        start: StartTransport,
        options: ChatOptions,
        new_session: Callable[[str], Session],
        resumed: tuple[Session, Conversation] | None = None,
    ) -> None:
        self.state = ChatState()
        self.settings, self.chosen = replace(options.settings, **options.sampling), dict(options.sampling)
        self.loaded: worker.Loaded | None = None
        self.model = options.model
        session, conversation = resumed or (None, Conversation(options.system))
        self.log = ChatLog(lambda: new_session(self.model_name), conversation, session)
        self._post, self._options = post, options
        self._client = EngineClient(start, self._on_event)
        self._command = 0  # the command whose events count; 0 for none
        self._waiting = False  # the newest turn waits for a model
        self._replaced: tuple[worker.Loaded, ChatOptions] | None = None  # the model in place of which another loads
        self.state.set_turns(self.conversation.stats)
        if resumed and options.system:
            self.set_system(options.system)

    @property
    def conversation(self) -> Conversation:
        return self.log.conversation

    @property
    def model_name(self) -> str:
        return self.model or "demo"

    async def start(self) -> None:
        """Start the engine's process, and load the model unless the user has to choose one."""
        self.state.set_status("starting")
        try:
            await self._client.start()
        except EngineStartError as error:
            self._lose_engine(str(error))
            return
        if self._options.choose and self.loaded is None and self.model is None:
            self._set_status("choosing")
        else:
            self.load(self.model, head=self._options.head)

    def load(self, model: str | None, head: str | None = None) -> None:
        """Load a model in place of the present one; None for the demo."""
        self._abandon()
        self._replaced = (self.loaded, self._options) if self.loaded else None
        self.model, self.loaded, self.state.comparison = model, None, None
        self._options = replace(self._options, choose=False, model=model, head=head)
        self.log.set_model(self.model_name)
        if not self._client.running:
            self._set_status("gone")
            self._notify(f"ctrl+r starts the engine, with {self.model_name}")
            return
        self._set_status("loading")
        self._send(self._options.load_command)

    def submit(self, text: str) -> bool:
        """Send a message to the model. Returns whether it was accepted; it is not while the engine is busy.

        Raises:
            MentionError: a file that it mentions cannot be read.
        """
        if self._waiting or self.state.status in ("answering", "stopping", "measuring"):
            self._notify("still busy; esc stops it")
            return False
        # terminals pass on half surrogate pairs; the engine would refuse every later prompt
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        sent = expand_mentions(text)
        self.log.ask(text, sent)
        self._post(TurnStarted(self.conversation.turns[-1]))
        if missing := missing_files(text):
            self._notify(f"there is no file {', '.join(missing)}; the model reads the name only")
        self._report_unsaved()
        self._generate()
        return True

    def retry(self) -> None:
        """Answer the last message again."""
        turns = self.conversation.turns
        if not turns or self.state.status not in ("ready", "loading"):
            self._notify("nothing to answer again" if not turns else NOT_NOW)
            return
        last = turns[-1]
        self.log.rewind(len(turns) - 1)
        self.log.ask(last.typed, last.sent)
        self._post(TurnsReplaced(list(self.conversation.turns)))
        self._generate()

    def undo(self) -> str | None:
        """Remove the last turn. Returns what was typed; None where nothing can be removed now."""
        turns = self.conversation.turns
        if not turns or self.state.status not in ("ready", "loading", "gone", "choosing"):
            self._notify("nothing to take back" if not turns else NOT_NOW)
            return None
        typed = turns[-1].typed
        self._waiting = False
        self.log.rewind(len(turns) - 1)
        self._post(TurnsReplaced(list(self.conversation.turns)))
        return typed

    def clear(self) -> None:
        """Begin a new chat; the old one is saved."""
        self.open(None, Conversation(self.conversation.system))

    def open(self, session: Session | None, conversation: Conversation) -> None:
        """Go on with another chat. Without a session, a file is made when there is something to write."""
        self._abandon()
        self.log.open(session, conversation)
        self.state.set_turns(self.conversation.stats)
        self._waiting = False
        self._post(TurnsReplaced(list(self.conversation.turns)))

    def set_system(self, system: str) -> None:
        """Set the system prompt, from the next turn on."""
        self.log.set_system(system)
        self._post(StateChanged())

    def change_settings(self, **changes: Any) -> None:
        """Change fields of the settings, from the next turn on."""
        self.settings, self.chosen = replace(self.settings, **changes), self.chosen | changes
        self._post(StateChanged())

    def measure(self) -> None:
        """Measure MTP and plain decoding on this conversation."""
        if self.state.status != "ready":
            self._notify(NOT_NOW if self.state.busy else "no model is loaded")
            return
        self._set_status("measuring")
        self._send(lambda id: worker.Compare(id, self.conversation.messages_to_measure(), self.settings))

    def stop(self) -> bool:
        """End the turn or a measurement soon and keep what was generated. Returns whether one was running."""
        if self._waiting:
            self._waiting = False
            self._finish_turn(Answer(partial_message([]), "interrupted"))
            return True
        stoppable = ("answering", "measuring") if self.state.check is None else ("loading",)
        if self.state.status not in stoppable or not self._client.running:
            return False
        self._client.stop(self._command)
        self._set_status("stopping")
        return True

    async def restart(self) -> None:
        """Replace an engine that is gone or does not answer."""
        self._abandon("failed")
        self.loaded = self._replaced = None
        await self._client.kill()
        await self.start()

    async def close(self) -> None:
        """End the turn, the file and the engine's process."""
        self._abandon()
        self.log.close()
        await self._client.close()

    def save_partial(self) -> None:
        """Save what there is of an answer; to be called several times a second."""
        if self.state.status == "answering":
            self.log.save_partial(self.state.clock(), self.state.stats)
            self._report_unsaved()

    def _generate(self) -> None:
        """Answer the newest turn, once a model is loaded."""
        self._waiting = self.loaded is None
        if not self._waiting:
            self.log.begin_answer()
            self.state.begin_turn()
            self._send(lambda id: worker.Generate(id, self.conversation.messages(), self.settings))
        self._post(StateChanged())

    def _send(self, command: MakeCommand) -> None:
        """Send a command; the events of earlier ones are ignored from now on."""
        self._command = self._client.send(command)

    def _on_event(self, event: worker.Event) -> None:
        self.state.last_event_at = self.state.clock()
        if event.id == self._command or isinstance(event, worker.Died | worker.Warned):
            self._handle(event)

    def _handle(self, event: worker.Event) -> None:
        match event:
            case worker.Loaded():
                self.loaded, self._replaced = event, None
                self.settings = replace(self._options.settings, **{**event.sampling, **self.chosen})
                if words := recommended_in_words(event.sampling, self.chosen):
                    self._notify(f"sampling as the model recommends: {words}")
                self._set_status("ready")
                if self._waiting:
                    self._generate()
            case worker.PromptProgress() | worker.Downloading() | worker.CheckProgress():
                self.state.note_progress(event)
            case worker.TurnDelta():
                self.log.extend_answer(event.segments)
                self.state.add_delta(event.stats, event.memory)
                self._post(TurnGrew(event.segments))
            case worker.Finished():
                self.state.end_turn(event.stats, event.memory)
                self._finish_turn(Answer(event.message, event.reason, event.stats, self.state.speedup(event.stats)))
            case worker.Comparison():
                self.state.comparison = event
                if event.done == event.total:
                    self._set_status("ready")
                    self._post(Measured(event))
            case worker.Stopped():
                self._abandon()
                self._set_status("ready" if self.loaded else "choosing")
            case worker.Warned():
                self._notify(event.message)
            case worker.Failed():
                self._handle_failure(event)
            case worker.Died():
                garbled = f"the engine cannot be understood: {event.garbled}"
                self._lose_engine(garbled if event.garbled else f"the engine has died ({event.why})")
        self._post(StateChanged())

    def _handle_failure(self, event: worker.Failed) -> None:
        loading = self.state.status == "loading"
        hint = "; try a smaller model or a shorter chat" if event.kind == "memory" else ""
        self._notify(event.message + hint, error=True)
        if self.log.answering:
            self.state.end_turn(None, None)
            self._finish_turn(self.log.partial_answer("failed", self.state.stats))
        if loading and event.still_loaded and self._replaced:
            loaded, self._options = self._replaced
            self.model = self._options.model
            self.log.set_model(self.model_name)
            self._handle(loaded)
        else:
            self._set_status("choosing" if loading else "ready")

    def _lose_engine(self, why: str) -> None:
        self._abandon("failed")
        self.loaded = self._replaced = None
        self._set_status("gone")
        self._notify(f"{why}; ctrl+r starts it again, the chat is kept", error=True)

    def _abandon(self, reason: str = "interrupted") -> None:
        """End the turn or the measurement without waiting for the engine; what was generated is kept."""
        if self.state.status in ("answering", "stopping", "measuring"):
            self._client.stop(self._command)
            self._command = 0
            self.state.end_turn(None, None)
        if self.log.answering:
            self._finish_turn(self.log.partial_answer(reason, self.state.stats))

    def _finish_turn(self, answer: Answer) -> None:
        self.log.answer(answer)
        self._post(TurnFinished(answer))
        self._report_unsaved()

    def _report_unsaved(self) -> None:
        """Notify of a file that cannot be written."""
        if problem := self.log.session.problem:
            self._notify(problem, error=True)

    def _set_status(self, status: Status) -> None:
        self.state.set_status(status)
        self._post(StateChanged())

    def _notify(self, text: str, *, error: bool = False) -> None:
        self._post(Notice(text, error))
