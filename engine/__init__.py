"""MAML++: the algorithm, from images to a tested model. It knows nothing of kernel backends."""
