"""What others get of a model: a playground for any browser, a folder for a model hub."""
