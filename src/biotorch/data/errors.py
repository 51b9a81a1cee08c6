"""What is wrong with the data themselves."""

from __future__ import annotations


class DataError(ValueError):
    """Files are there but damaged or in another form than needed; the message names the file and the cure."""
