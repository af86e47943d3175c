"""What both sides share: experiment, data, tasks, model, losses, metrics, wire."""
