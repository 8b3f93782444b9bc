"""ONNX Runtime, what it is fed, and a process of its own for what may crash."""
