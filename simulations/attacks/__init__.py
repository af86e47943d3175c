"""Attacks on what a run sent, and on what it made, and audits of what it claims to protect."""
