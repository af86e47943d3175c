"""A Flower app as its quickstart writes one: the yardstick of a deployed round."""
