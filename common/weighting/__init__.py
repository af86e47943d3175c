"""How task losses become one: weightings, scalings and gradient balancing, one method per file."""
