"""Ensembles: predictions averaged over runs, or over the heads of all clients."""
