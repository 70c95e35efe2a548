"""Classical methods: formulas, stopped iterations, convex problems."""
