"""Attacks on what a run sent: what can who reads the messages learn of the clients' rows?"""
