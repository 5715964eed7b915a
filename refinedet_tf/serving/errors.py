"""What can go wrong with an export and is the user's to mend."""


class ExportError(ValueError):
    """An export that cannot be made or opened as asked; the message says what to do."""
