"""The same recipe file end to end on a laptop in minutes: tiny models, few generated rows, short lengths, all else as
written."""

from .rehearse import rehearse

__all__ = ["rehearse"]
