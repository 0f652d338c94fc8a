"""Models: their layers, how they are built, what a name or file means, and their weights in and out."""
