"""Identity flow: what hangs together in a graph, and the Dims it makes."""
