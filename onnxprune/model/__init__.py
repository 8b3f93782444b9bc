"""Models as they are stored: protos, weights beside them, files."""
