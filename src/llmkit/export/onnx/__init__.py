"""A model as ONNX, with its tokenizer and labels beside it, and its verification."""

import os

# ONNX Runtime reads this when it is imported, sends usage data without it, and creates files.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
