"""A finished run as a JSON document and as text."""
