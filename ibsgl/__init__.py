"""Information-bottleneck saliency-guided localization: the method and the harness that measures it."""
