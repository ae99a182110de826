"""What the template and its project cost: `python -m benchmarks` measures and writes docs/benchmarks.md."""
