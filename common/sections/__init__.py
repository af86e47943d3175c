"""The tables of an experiment file, a frozen pydantic model each."""
