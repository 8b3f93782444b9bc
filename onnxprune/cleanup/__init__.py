"""What weights alone prove superfluous."""
