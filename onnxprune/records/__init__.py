"""Plan files, and checkpoints that are cut as they say."""
