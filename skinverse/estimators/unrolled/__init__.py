"""Unrolled methods: a few learned iterations, trained from end to end."""
