"""What a user did wrong, in one sentence: the only exceptions that the command line prints without a traceback."""


class UserError(Exception):
    """A mistake that the user can mend: the message says what, where and what to do. Exit code 2."""


class DataError(UserError):
    """Missing, damaged or unsuitable data: corpus, tokenizer or token shards."""
