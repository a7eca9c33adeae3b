"""Deployed models: export, the served code, ONNX."""
