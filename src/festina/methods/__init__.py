"""Published caching methods, each a function that makes a plan."""

from festina.methods.fora import fora

__all__ = ["fora"]
