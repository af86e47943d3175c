"""Ready models of other libraries as the first stage of a trunk: one file per library."""
