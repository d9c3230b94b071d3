"""The two ways a command ends badly; both print one line and never a traceback."""


class AtelierError(Exception):
    """A failure the user can act on. The message is one line: what is wrong, where, what to do."""

    exit_code = 1


class InputError(AtelierError):
    """Wrong input: a parameter, an argument, a file the user gave."""

    exit_code = 2
