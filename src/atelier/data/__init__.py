"""Data sets: their sources, their verified raw form, their prepared form."""
