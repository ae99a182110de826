"""What happens around a commit: its objects are stored, what was delivered is recorded."""
