"""Exported models: what is written into a SavedModel or a TFLite file."""
