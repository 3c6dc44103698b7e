"""The error of input that cannot be used."""


class DataError(ValueError):
    """Input that cannot be used; says what was found, expected and what to do."""
