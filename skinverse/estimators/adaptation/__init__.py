"""Adaptation of what has been learned to another operator."""
