"""Turns, the messages that the model reads, and the document that /export writes."""

import pytest
from mlxmtp_tui.conversation import Answer, Conversation, as_markdown, format_call

from tests.tui.harness import answer, message

CALL = ("weather", {"city": "Zürich", "days": 2})


def test_messages_stand_in_order_behind_the_system_prompt_and_say_what_was_sent() -> None:
    conversation = Conversation("Be short.")
    conversation.ask("look at @a.txt", "look at @a.txt\n\na.txt:\n```txt\nhello\n```")
    conversation.answer(answer("It says hello."))
    conversation.ask("Thanks", "Thanks")
    assert conversation.messages() == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "look at @a.txt\n\na.txt:\n```txt\nhello\n```"},
        {"role": "assistant", "content": "It says hello."},
        {"role": "user", "content": "Thanks"},
    ]
    conversation.system = ""
    assert conversation.messages()[0]["role"] == "user"


def test_thinking_and_calls_go_back_to_the_model_as_they_came() -> None:
    said = message("There.", "Which city?", [CALL])
    conversation = Conversation()
    conversation.ask("Weather?", "Weather?")
    conversation.answer(Answer(said, "stop"))
    assert conversation.messages()[-1] == said


def test_an_answer_without_a_word_is_no_message_but_thinking_or_a_call_alone_is_one() -> None:
    for content, count in ((message(""), 1), (message("", "hm"), 2), (message("", "", [CALL]), 2), (message("x"), 2)):
        conversation = Conversation()
        conversation.ask("a", "a")
        conversation.answer(Answer(content, "interrupted"))
        assert len(conversation.messages()) == count, content


def test_roles_alternate_though_a_question_was_left_without_an_answer() -> None:
    """Some templates (Gemma, Mistral) refuse two messages of the user in a row, and with them all that follows."""
    conversation = Conversation("Be short.")
    for typed, said in (("a", None), ("b", ""), ("c", "C"), ("d", None), ("e", None)):
        conversation.ask(typed, typed)
        if said is not None:
            conversation.answer(answer(said, "interrupted"))
    messages = conversation.messages()
    assert [one["role"] for one in messages] == ["system", "user", "assistant", "user"]
    for content, typed in ((messages[1]["content"], "abc"), (messages[3]["content"], "de")):
        assert content.split() == list(typed), "and no question is lost"


def test_rewind_keeps_the_first_turns_and_the_last_answer_is_the_newest_with_a_word() -> None:
    conversation = Conversation()
    assert conversation.last_answer is None
    for name in "abc":
        conversation.ask(name, name)
        conversation.answer(answer(name.upper() if name != "c" else ""))
    assert conversation.last_answer is not None
    assert conversation.last_answer.text == "B", "the third came to nothing"
    conversation.rewind(1)
    assert [turn.typed for turn in conversation.turns] == ["a"]
    conversation.rewind(0)
    assert conversation.turns == []
    assert conversation.messages() == []


def test_the_title_is_the_first_line_that_says_something() -> None:
    conversation = Conversation()
    assert conversation.title == ""
    conversation.ask("\n   \n  Why is the sky blue?  \nSay it shortly.", "")
    conversation.ask("second", "second")
    assert conversation.title == "Why is the sky blue?"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"city": "Zürich", "days": 2}, "`weather(city='Zürich', days=2)`"),
        ({}, "`weather()`"),
        ("not an object", "`weather(not an object)`"),
    ],
)
def test_a_call_reads_like_code(given: object, line: str) -> None:
    assert format_call({"name": "weather", "arguments": given}) == line


def test_the_exported_document_has_everything_once_and_in_order() -> None:
    conversation = Conversation("Be short.")
    conversation.ask("Weather?", "Weather?")
    conversation.answer(Answer(message("Let me see.", "Which city?", [CALL]), "stop"))
    conversation.ask("And now?", "And now?")
    document = as_markdown(conversation, "owner/name")
    parts = ["# Weather?", "Model: owner/name", "## System", "Be short.", "## You", "Weather?", "## Model"]
    parts += ["<details><summary>Thinking</summary>\n\nWhich city?\n\n</details>", "Let me see.", "`weather("]
    parts += ["## You\n\nAnd now?\n"]
    at = 0
    for part in parts:
        assert part in document[at:], part
        at = document.index(part, at) + len(part)
    assert document.count("## Model") == 1, "the second turn has no answer"
    assert document.endswith("And now?\n")
