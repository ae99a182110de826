"""The model: its pipeline, its review, its service and what happens after merge."""
