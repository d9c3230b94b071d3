"""Training: a loop that knows no losses, methods that know no files."""
