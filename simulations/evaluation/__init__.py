"""A finished run looked at closely: what its models say about rows that were held out."""
