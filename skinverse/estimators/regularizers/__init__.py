"""Learned regularisers: energies trained as critics or through the reconstruction."""
