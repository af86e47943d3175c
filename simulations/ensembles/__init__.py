"""Ensembles: predictions averaged over runs, over snapshots of one, or over all clients' heads."""
