"""Generative priors: images near what a trained model can draw."""
