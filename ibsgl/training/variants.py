"""The variants of a network: its trained states. A config may add further ones."""

# After the training of the classifier.
PRETRAINED = "pretrained"
# Trained further from the pretrained variant, equally long: without guidance, and with guidance.
CONTROL = "control"
GUIDED = "guided"
# Those that every run has.
VARIANTS = (PRETRAINED, CONTROL, GUIDED)
