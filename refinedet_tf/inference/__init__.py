"""Running a model, in whatever form it was saved or exported."""
