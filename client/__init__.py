"""One participant: its data, its local training, what stays at home, what leaves."""
