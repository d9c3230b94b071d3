"""The ways a command ends badly: each is one line and an exit code, never a traceback."""

ALARM = "ALARM"  # begins what a training says when it collapses
LOST_RANK = "another rank ended or cannot be reached"  # begins what a rank says that failed by no fault of its own


def shown(text: str) -> str:
    """Text that is not ours, for a terminal: one line, in which line breaks and escape sequences are spelt out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


class AtelierError(Exception):
    """A failure the user can act on. The message is one line: what is wrong, where, what to do."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(shown(message))


class InputError(AtelierError):
    """Wrong input: a parameter, an argument, a file the user gave."""

    exit_code = 2


class Terminated(AtelierError):
    """SIGTERM was received, and what was under way saved."""

    exit_code = 143


class ToldByWriter(AtelierError):
    """Ends a rank without a word: the first rank has the same error and tells it."""

    def __init__(self, error: AtelierError) -> None:
        super().__init__(str(error))
        self.exit_code = error.exit_code


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch's says that memory is exhausted: on the CPU it has no class of its own."""
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "out of memory")
    )
