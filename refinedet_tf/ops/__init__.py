"""Pure tensor functions; nothing here knows layers, models or files."""
