"""How tasks share a trunk: one file per sharing architecture."""
