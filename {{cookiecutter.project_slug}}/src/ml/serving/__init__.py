"""Answers requests: checks rows against the model's contract and scores them with ONNX Runtime."""
