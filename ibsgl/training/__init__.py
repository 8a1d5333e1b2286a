"""Training of the variants: the classifier, then the guided variant and its control (Eq. 2, Eq. 11, Algorithm 1)."""
