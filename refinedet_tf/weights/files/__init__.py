"""Parsers of weight files that other programs wrote. Nothing in a file is ever executed."""
