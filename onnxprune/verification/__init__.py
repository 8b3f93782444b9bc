"""Two models side by side: structure, outputs, time, and gates on them."""
