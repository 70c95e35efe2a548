"""Deep equilibria: fixed points of a learned iteration."""
