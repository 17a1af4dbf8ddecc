"""What makes models and steps faster on a CPU. Nothing here is needed for the right result."""
