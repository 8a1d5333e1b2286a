"""Measurements on trained networks: scores of saliency maps, the effect of guidance, deletion curves."""
