"""The cut, its proof, and the mask oracle."""
