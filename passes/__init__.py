"""The passes that onnxprune ships: one per file, imported as `onnxprune.passes`."""
