"""The contents of weight files in the names and layouts of the model's variables."""
