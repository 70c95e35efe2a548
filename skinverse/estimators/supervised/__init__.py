"""Supervised methods: networks after or instead of an inversion."""
