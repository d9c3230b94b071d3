"""The two ways a command ends badly; both print one line and never a traceback."""

LOST_RANK = "another rank ended or cannot be reached"  # begins what a rank says that failed by no fault of its own


class AtelierError(Exception):
    """A failure the user can act on. The message is one line: what is wrong, where, what to do."""

    exit_code = 1


class InputError(AtelierError):
    """Wrong input: a parameter, an argument, a file the user gave."""

    exit_code = 2


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch's says that memory is exhausted: on the CPU it has no class of its own."""
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "out of memory")
    )
