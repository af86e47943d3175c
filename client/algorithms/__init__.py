"""What a client does with trunk and heads: one algorithm a file."""
