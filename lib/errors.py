"""The two errors a user can meet. Scripts turn them into one line on stderr and an exit code (see training/runtime.py)."""


class InputError(Exception):
    """Something the user gave is wrong: a file, a key, a frame. The message says what was expected, found and to do."""

    exit_code = 2


class NumericalError(Exception):
    """A computation produced NaN or infinity from inputs that were finite."""

    exit_code = 3
