"""The exception tree: branches say what a caller can do; only `api/app.py` knows status codes."""


class HivemeshError(Exception):
    """Anything hivemesh reports in its own words."""


class Invalid(HivemeshError):
    """The request is wrong: correct it and ask again."""


class NotFound(HivemeshError):
    """The request names something that does not exist."""


class Conflict(HivemeshError):
    """Something that exists stands in the way."""


class Forbidden(HivemeshError):
    """The caller may not do this."""


class OutOfSequence(HivemeshError):
    """The object changed since the caller read it. Docker's tools match on the text `update out of sequence`."""


class Unavailable(HivemeshError):
    """It cannot be done now, or not here; it may work later or elsewhere."""


class Unsupported(HivemeshError):
    """hivemesh understands the request but does not do this."""


class Exhausted(Unavailable):
    """A pool has nothing left to give."""
