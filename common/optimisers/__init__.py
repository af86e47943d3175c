"""The optimisers of local training by name, and what each can be told."""
