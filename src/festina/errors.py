"""The one exception a user of Festina has to know."""

__all__ = ["FestinaError"]


class FestinaError(ValueError):
    """A mistake the caller can mend; the message says what was found, what was wanted and what to do."""
