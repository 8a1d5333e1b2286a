"""Measurements on trained networks: scores of saliency maps, losses, predictions, deletion curves, diagnostics of L^ib."""
