"""Why nothing is derived."""


class Refusal(Exception):
    """A model, or a call of it, that cannot be followed.

    The message is what stood in the way: a clause with subject and verb that starts a sentence, without a full stop.
    """
