"""Looking up the end of a text in what came before, against a search through all of it."""

import random

import pytest

from mlxmtp.decoding.draft import MAX_MATCH, MIN_MATCH, PromptLookup


def places(text: list[int]) -> tuple[int, list[int]]:
    """How many of the last tokens stood before, as far as is looked, and behind which tokens."""
    end = len(text)
    lengths = dict.fromkeys(range(1, end), 0)
    for place in lengths:
        while (
            lengths[place] < min(place, MAX_MATCH)
            and text[place - lengths[place] - 1] == text[end - lengths[place] - 1]
        ):
            lengths[place] += 1
    longest = max(lengths.values(), default=0)
    return (longest, [place for place in lengths if lengths[place] == longest]) if longest >= MIN_MATCH else (0, [])


def followed(text: list[int], place: int, count: int) -> list[int]:
    """The tokens behind a place; at the end of the text, those that would come if it repeated itself from there."""
    grown = list(text)
    for i in range(count):
        grown.append(grown[place + i])
    return grown[len(text) :]


@pytest.mark.parametrize("alphabet", [1, 3, 8])
def test_the_longest_match_after_every_piece(alphabet: int) -> None:
    rng = random.Random(alphabet)
    for _ in range(30):
        lookup, text = PromptLookup(), list[int]()
        while len(text) < 80:
            again = rng.randrange(max(len(text), 1))
            piece = [rng.randrange(alphabet)] if rng.random() < 0.5 else text[again : again + rng.randrange(1, 9)]
            text += piece
            lookup.extend(piece)
            longest, found = places(text)
            assert lookup.match == longest
            if longest:
                assert lookup.after(12) in [followed(text, place, 12) for place in found]


def test_of_places_that_are_alike_the_latest() -> None:
    lookup = PromptLookup()
    lookup.extend([1, 2, 3, 4, 7, 1, 2, 3, 4, 8, 1, 2, 3, 4])
    assert (lookup.match, lookup.after(2)) == (4, [8, 1])


def test_a_match_that_is_longer_than_it_looks() -> None:
    lookup, text = PromptLookup(), list(range(100))
    lookup.extend([*text, *text[:90]])
    assert (lookup.match, lookup.after(3)) == (MAX_MATCH, [90, 91, 92])
    lookup.extend([90, 5])
    assert lookup.match == 0


def test_of_a_short_text_there_is_nothing() -> None:
    lookup = PromptLookup()
    for _ in range(MIN_MATCH):
        assert lookup.match == 0
        lookup.extend([5])
    lookup.extend([5])
    assert (lookup.match, lookup.after(6)) == (MIN_MATCH, [5] * 6)
