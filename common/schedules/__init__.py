"""Schedules of the learning rate, over rounds and over the steps of a round."""
