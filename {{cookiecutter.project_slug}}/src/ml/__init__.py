"""The model: its pipeline, its review, its service and what happens after merge."""

import os

# ONNX Runtime reports names of models, paths and the machine to its maker otherwise; it reads this when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
