"""Attacks on what a federation releases, and audits of what it claims to protect."""
