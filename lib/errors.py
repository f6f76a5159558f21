"""How a script ends other than well. Scripts turn these into one line on stderr and an exit code (see training/runtime.py)."""


class InputError(Exception):
    """Something the user gave is wrong: a file, a key, a frame. The message says what was expected, found and to do."""

    exit_code = 2

    def __str__(self) -> str:
        return printable(super().__str__())


class NotFiniteError(InputError):
    """Numbers in a file are NaN or infinite: what may be left out where the user says so."""


class NumericalError(Exception):
    """A computation produced NaN or infinity from inputs that were finite."""

    exit_code = 3


class Stopped(Exception):
    """A signal asked the run to end, and it did so with everything saved."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number  # 143 for SIGTERM, 130 for SIGINT, as shells count


def printable(text: str) -> str:
    """For a terminal, which would obey control characters that a file (or its name) has; line breaks stay."""
    return "".join(letter if letter.isprintable() or letter == "\n" else repr(letter)[1:-1] for letter in text)
