"""What both sides of the federation share: experiment, data, tasks, model, losses, metrics, wire."""
