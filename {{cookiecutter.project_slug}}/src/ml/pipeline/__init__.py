"""What makes the model: one module a stage."""
