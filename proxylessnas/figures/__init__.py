"""Figures of models: block by block, tree cells, probabilities of a search, images for TensorBoard."""
