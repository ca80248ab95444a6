"""Numbers on the command line, with errors that say what was expected and what was found."""

from argparse import ArgumentTypeError
from collections.abc import Callable


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ArgumentTypeError(f"expected a number, found {text!r}") from None


def whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ArgumentTypeError(f"expected a whole number, found {text!r}") from None


def at_least(minimum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = whole(text)
        if value < minimum:
            raise ArgumentTypeError(f"expected a whole number of at least {minimum}, found {value}")
        return value

    return parse
